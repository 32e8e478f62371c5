"""Sums over given numbers, as in the game of 24: read without Python's help, compared up to order, and enumerated."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

_TOKEN = re.compile(r"\s*(?:(\d+)|([-+*/()]))")
_DEEPEST = 20
"""Parentheses in one another; the game needs no more than its numbers."""
_LONGEST = 200
Form = tuple[str, tuple[tuple[int, object], ...]] | int
"""A number, or a kind of terms and those terms, sorted, each added (1) or subtracted (−1), multiplied or divided by."""


class NoExpression(ValueError):
    """A text that is none; the message says why."""


@dataclass(frozen=True)
class Expression:
    """A sum or product of whole numbers."""

    value: Fraction
    numbers: tuple[int, ...]
    """All that it uses, from left to right."""
    form: Form
    """The same for expressions that differ in the order of terms and factors and in needless parentheses alone."""


def read(text: str) -> Expression:
    """An expression of whole numbers, + − * / and parentheses. Raises NoExpression."""
    if len(text) > _LONGEST:
        raise NoExpression(f"{len(text)} characters")
    tokens, at = list[str](), 0
    while at < len(text.rstrip()):
        match = _TOKEN.match(text, at)
        if match is None:
            raise NoExpression(f"{text[at:].strip()[:10]!r} is no number and no sign")
        tokens.append(match[1] or match[2])
        at = match.end()
    reader = _Reader(tokens)
    found = reader.sum(0)
    if reader.rest:
        raise NoExpression(f"{reader.rest[0]!r} where it should end")
    return found


class _Reader:
    """By recursive descent."""

    def __init__(self, tokens: list[str]) -> None:
        self.rest = list(tokens)

    def sum(self, depth: int) -> Expression:
        return self._chain("+-", depth)

    def _chain(self, signs: str, depth: int) -> Expression:
        found = self._operand(signs, depth)
        while self.rest and self.rest[0] in signs:
            sign = self.rest.pop(0)
            found = joined(found, sign, self._operand(signs, depth))
        return found

    def _operand(self, signs: str, depth: int) -> Expression:
        return self._chain("*/", depth) if signs == "+-" else self._atom(depth)

    def _atom(self, depth: int) -> Expression:
        if not self.rest:
            raise NoExpression("it ends where a number should stand")
        token = self.rest.pop(0)
        if token.isdigit():
            return number(int(token))
        if token != "(" or depth == _DEEPEST:
            raise NoExpression(f"{token!r} where a number should stand")
        found = self.sum(depth + 1)
        if not self.rest or self.rest.pop(0) != ")":
            raise NoExpression("a parenthesis stays open")
        return found


def number(value: int) -> Expression:
    """A number alone."""
    return Expression(Fraction(value), (value,), value)


def joined(left: Expression, sign: str, right: Expression) -> Expression:
    """Two expressions with + − * / between them. Raises NoExpression for a division by zero."""
    if sign == "/" and right.value == 0:
        raise NoExpression("a division by zero")
    a, b = left.value, right.value
    value = a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b
    kind, power = ("+", 1 if sign == "+" else -1) if sign in "+-" else ("*", 1 if sign == "*" else -1)
    terms = (*_terms(left.form, kind, 1), *_terms(right.form, kind, power))
    return Expression(value, (*left.numbers, *right.numbers), (kind, tuple(sorted(terms, key=repr))))


def _terms(form: Form, kind: str, power: int) -> tuple[tuple[int, object], ...]:
    if isinstance(form, tuple) and form[0] == kind:
        return tuple((power * own, term) for own, term in form[1])
    return ((power, form),)


def solutions(numbers: Sequence[int], target: int) -> dict[Form, str]:
    """Every way to make the target of all of the numbers, each once: by its form, a text of it."""
    return dict(_solutions(tuple(sorted(numbers)), target))


_Written = tuple[Expression, str, str]
"""An expression, a text of it, and the sign that holds that together."""


@lru_cache(maxsize=4_096)
def _solutions(numbers: tuple[int, ...], target: int) -> tuple[tuple[Form, str], ...]:
    if len(numbers) == 1:
        return ((numbers[0], str(numbers[0])),) if numbers[0] == target else ()
    found: dict[Form, str] = {}
    for left, right in _pairs(numbers):
        a, b = left[0].value, right[0].value
        made = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}
        for sign in [sign for sign, value in made.items() if value == target]:
            expression, text, _ = _written(left, sign, right)
            found.setdefault(expression.form, text)
    return tuple(found.items())


@lru_cache(maxsize=4_096)
def _expressions(numbers: tuple[int, ...]) -> tuple[_Written, ...]:
    """All of sorted numbers, one of each form."""
    if len(numbers) == 1:
        return ((number(numbers[0]), str(numbers[0]), ""),)
    found: dict[Form, _Written] = {}
    for left, right in _pairs(numbers):
        for sign in "+-*/" if right[0].value else "+-*":
            made = _written(left, sign, right)
            found.setdefault(made[0].form, made)
    return tuple(found.values())


def _pairs(numbers: tuple[int, ...]) -> Iterator[tuple[_Written, _Written]]:
    """Expressions of one part of the numbers, with those of the rest."""
    for part, rest in _splits(numbers):
        yield from itertools.product(_expressions(part), _expressions(rest))


def _written(left: _Written, sign: str, right: _Written) -> _Written:
    first, second = _grouped(left, sign, first=True), _grouped(right, sign, first=False)
    return joined(left[0], sign, right[0]), f"{first}{sign}{second}", sign


def _grouped(operand: _Written, sign: str, *, first: bool) -> str:
    """In parentheses where it needs them beside a sign."""
    _, text, own = operand
    weaker = own in ("+", "-") and sign in "*/"
    behind = not first and ((sign == "-" and own in ("+", "-")) or (sign == "/" and own in ("*", "/")))
    return f"({text})" if weaker or behind else text


def _splits(numbers: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Into two parts, none empty, in both orders; equal ones once."""
    seen = set()
    for mask in range(1, 2 ** len(numbers) - 1):
        part = tuple(n for i, n in enumerate(numbers) if mask >> i & 1)
        if part not in seen:
            seen.add(part)
            left = Counter(numbers) - Counter(part)
            yield part, tuple(sorted(left.elements()))
