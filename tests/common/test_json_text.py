"""JSON as its standard has it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from common.json_text import NoJson, UnusableValue, dumps, loads, loads_strictly


def test_numbers_that_are_not_finite_are_written_as_null() -> None:
    value = {"a": float("nan"), "b": [1.5, float("inf"), {"c": -float("inf")}], "d": (np.float64("nan"), 2), "e": True}
    assert json.loads(dumps(value)) == {"a": None, "b": [1.5, None, {"c": None}], "d": [None, 2], "e": True}


def test_what_is_finite_is_written_as_ever() -> None:
    value = {"a": [1, 2.5, None, "NaN"], "ü": {"x": False}}
    assert dumps(value, indent=2) == json.dumps(value, indent=2)


@pytest.mark.parametrize(
    ("text", "reason", "line"), [("{broken", "no JSON", 1), ("[1,\n2,\n", "no JSON", 3), ("[" * 9_000, "too deep", 1)]
)
def test_what_is_no_json_says_why_and_in_which_line(text: str, reason: str, line: int) -> None:
    with pytest.raises(NoJson, match=reason) as found:
        loads(text)
    assert found.value.line == line


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"b": {"a": 1, "a": 2}}', "'a' stands twice"),
        ("[NaN]", "NaN is no number"),
        ('{"a": [-Infinity]}', "-Infinity is no number"),
        ("[%s]" % ("9" * 5000), "integer string conversion"),
        ("[1,\n2,\n", "line 3"),
    ],
)
def test_where_every_value_matters_none_is_let_stand_that_is_no_json(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        loads_strictly(text)
    assert loads_strictly('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}


def test_a_value_that_cannot_be_used_spoils_no_other() -> None:
    found = loads('[{"a": 1, "b": 2, "a": 3}, ' + '{"a": -%s}, {"a": 4}]' % ("9" * 5000))
    assert found[0] == {"a": UnusableValue("stands twice"), "b": 2}
    assert found[1] == {"a": UnusableValue("is an integer of 5000 digits")} and found[2] == {"a": 4}
