"""Expressions of the game of 24: read without being executed, compared up to order, enumerated whole."""

from __future__ import annotations

import ast
import itertools
import operator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.countdown import NoExpression, read, solutions

_OF = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def by_python(text: str) -> Fraction:
    """What Python's own grammar makes of an expression."""

    def value(node: Any) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        return _OF[type(node.op)](value(node.left), value(node.right))

    return value(ast.parse(text, mode="eval").body)


EXPRESSIONS = st.recursive(
    st.integers(1, 13).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).flatmap(
        lambda parts: st.sampled_from(["".join(parts), f"({''.join(parts)})"])
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_the_value_is_that_of_pythons_grammar(text: str) -> None:
    try:
        expected = by_python(text)
    except ZeroDivisionError:
        with pytest.raises(NoExpression, match="division by zero"):
            read(text)
        return
    assert read(text).value == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it ends"),
        ("3 +", "it ends"),
        ("3 4", "'4' where it should end"),
        ("(3+4", "stays open"),
        ("3+4)", "'\\)' where it should end"),
        ("-3+4", "'-' where a number"),
        ("3**4", "'\\*' where a number"),
        ("__import__('os')", "is no number and no sign"),
        ("4/(2-2)", "division by zero"),
        ("(" * 30 + "1" + ")" * 30, "where a number"),
        ("1+" * 200 + "1", "401 characters"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(NoExpression, match=reason):
        read(text)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1+2+3", "(3+2)+1", True),
        ("4*6/2", "6*(4/2)", True),
        ("8-(3-1)", "8-3+1", True),
        ("8/(4/2)", "8*2/4", True),
        ("8-3-1", "8-3+1", False),
        ("2*(3+4)", "2*3+4", False),
        ("3*8", "4*6", False),
    ],
)
def test_order_and_needless_parentheses_make_no_other_solution(one: str, other: str, same: bool) -> None:
    assert (read(one).form == read(other).form) is same


def every_expression(numbers: tuple[int, ...]) -> set[str]:
    """All texts with every subexpression in parentheses, by brute force."""
    if len(numbers) == 1:
        return {str(numbers[0])}
    return {
        f"({left}{sign}{right})"
        for i in range(1, len(numbers))
        for left in every_expression(numbers[:i])
        for right in every_expression(numbers[i:])
        for sign in "+-*/"
    }


@pytest.mark.parametrize(("numbers", "target"), [((1, 5, 5, 5), 24), ((3, 3, 8, 8), 24), ((2, 3, 4), 24), ((6, 6), 36)])
def test_every_solution_is_found_once_and_reads_as_itself(numbers: tuple[int, ...], target: int) -> None:
    forms = set()
    for order in set(itertools.permutations(numbers)):
        for text in every_expression(order):
            try:
                found = read(text)
            except NoExpression:
                continue
            if found.value == target:
                forms.add(found.form)
    known = solutions(numbers, target)
    assert set(known) == forms and forms
    for form, text in known.items():
        again = read(text)
        assert (again.form, again.value, sorted(again.numbers)) == (form, target, sorted(numbers))


def test_what_has_no_solution_has_none() -> None:
    assert solutions((1, 1, 1, 1), 24) == {}
