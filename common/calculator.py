"""The calculator of the arithmetic task: a parser over integers, + − ×, with bounded operands. Nothing is executed."""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_DIGITS = 12
"""Of an operand and of the result; longer ones are not computed."""
_MAX_CHARACTERS = 256
"""Of the text before the trigger that is looked at: operands of MAX_DIGITS and their window are shorter."""
_TOKEN = re.compile(r"\s*(\d+|[-+*×−])")
_SIGN = {"+": "+", "-": "-", "−": "-", "*": "*", "×": "*"}


@dataclass(frozen=True)
class Calculator:
    """What follows "14 - 3 =": " 11". The expression is the last `operands` operands before the "="."""

    operands: int = 2

    def __call__(self, text: str) -> str | None:
        """The result with a space before it, or None where no expression ends the text."""
        expression = text[-_MAX_CHARACTERS:].rstrip().removesuffix("=")
        tokens = _last_expression(expression)
        window = None if tokens is None else _window(tokens, self.operands)
        result = None if window is None else _evaluate(window)
        return None if result is None or len(str(abs(result))) > MAX_DIGITS else f" {result}"


def _last_expression(text: str) -> list[str] | None:
    """Numbers and signs of the longest suffix of the text that consists of nothing else."""
    start = max((match.end() for match in re.finditer(r"[^\d\s+*×−-]", text)), default=0)
    tokens: list[str] = []
    position = start
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if match is None:
            return None
        tokens.append(_SIGN.get(match[1], match[1]))
        position = match.end()
    return tokens


def _window(tokens: list[str], operands: int) -> list[int | str] | None:
    """The last operands with the signs between them, alternating; None for anything but two operands or more."""
    found: list[int | str] = []
    i = len(tokens) - 1
    while i >= 0:
        if not tokens[i].isdigit() or len(tokens[i]) > MAX_DIGITS:
            return None
        number = int(tokens[i])
        i -= 1
        # A minus at the start or after another sign belongs to the number.
        if i >= 0 and tokens[i] == "-" and (i == 0 or not tokens[i - 1].isdigit()):
            number, i = -number, i - 1
        found.insert(0, number)
        if len(found) == 2 * operands - 1 or i < 0:
            break
        if tokens[i].isdigit():
            return None
        found.insert(0, tokens[i])
        i -= 1
    return found if len(found) >= 3 and isinstance(found[0], int) else None


def _evaluate(window: list[int | str]) -> int:
    """Products first, then from left to right."""
    terms: list[int] = [_int(window[0])]
    for sign, value in zip(window[1::2], window[2::2], strict=True):
        number = _int(value)
        if sign == "*":
            terms[-1] *= number
        else:
            terms.append(-number if sign == "-" else number)
    return sum(terms)


def _int(value: int | str) -> int:
    assert isinstance(value, int)
    return value
