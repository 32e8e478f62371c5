"""The calculator's arithmetic and limits; a user's tool that raises, hangs, says too much or dies."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.calculator import MAX_DIGITS, Calculator
from common.errors import UserError
from common.tools import ToolBox, ToolError, ToolSection

TOOLS = """
import os
import time


def shout(text):
    print("noise on standard output")
    return text[-1] * 3


def nothing(text):
    return None


def fail(text):
    raise RuntimeError("broken")


def hang(text):
    if "hang" in text:
        time.sleep(60)
    return " ok"


def flood(text):
    return "x" * 10_000_000


def die(text):
    os._exit(3)
"""


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("Question: 6 - 0 - 4 = ? Answer: 6 - 0 =", " 6"),
        ("a, -6 - 4 =", " -10"),
        ("3 * 4=", " 12"),
        ("3 × 4 − 1 =", " 3"),
        ("2 + 3 - -4 =", " 7"),
        # The window holds two operands: what stands before them is not seen.
        ("5 + 3 + 2 =", " 5"),
        ("abc =", None),
        ("7 =", None),
        ("- =", None),
        ("=", None),
        ("1 / 2 =", None),
        ("__import__('os') + 1 =", None),
        (f"{'9' * MAX_DIGITS} * 9 =", None),
        (f"1{'0' * MAX_DIGITS} + 1 =", None),
    ],
)
def test_the_calculator_works_out_the_last_operands(text: str, result: str | None) -> None:
    assert Calculator()(text) == result


def test_a_wider_window_multiplies_first() -> None:
    assert Calculator(operands=3)("9 + 2 + 3 * 4 =") == " 14"
    assert Calculator(operands=4)("9 - 2 + 3 * 4 =") == " 19"


@given(st.integers(-999, 999), st.sampled_from("+-*"), st.integers(0, 999))
def test_the_calculator_agrees_with_python(a: int, sign: str, b: int) -> None:
    expected = {"+": a + b, "-": a - b, "*": a * b}[sign]
    assert Calculator()(f"so {a} {sign} {b} =") == f" {expected}"


def test_a_long_text_takes_the_calculator_no_longer() -> None:
    start = time.perf_counter()
    assert Calculator()("1 + " * 250_000 + "1 =") == " 2"
    assert time.perf_counter() - start < 1.0


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_tools_for_test.py").write_text(TOOLS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_tools_for_test"


def box(name: str, **settings: object) -> ToolBox:
    return ToolBox(ToolSection.model_validate({"name": name, "timeout_s": 1.0, **settings}))


def test_a_users_tool_gets_the_text_and_its_answer_is_inserted(module: str) -> None:
    tool = box(f"{module}:shout")
    assert tool("ab") == "bbb" and tool("é") == "ééé"
    assert box(f"{module}:nothing")("ab") is None


@pytest.mark.parametrize(("name", "kind"), [("fail", "raised"), ("flood", "too_long"), ("die", "raised")])
def test_a_tool_that_goes_wrong_says_how_and_can_be_called_again(module: str, name: str, kind: str) -> None:
    tool = box(f"{module}:{name}")
    for _ in range(2):
        with pytest.raises(ToolError) as found:
            tool("x")
        assert found.value.kind == kind


def test_a_hanging_tool_is_ended_at_its_limit_and_replaced(module: str) -> None:
    tool = box(f"{module}:hang")
    assert tool("fine") == " ok"
    start = time.monotonic()
    with pytest.raises(ToolError) as found:
        tool("hang")
    assert found.value.kind == "timed_out" and time.monotonic() - start < 10
    assert tool("fine") == " ok"


def test_an_insertion_over_the_limit_is_dropped(module: str) -> None:
    with pytest.raises(ToolError) as found:
        box(f"{module}:shout", max_characters=2)("x")
    assert found.value.kind == "too_long"


@pytest.mark.parametrize("name", ["abacus", "no_such_module:f", "common.calculator:nope", "common.calculator:re"])
def test_a_tool_that_is_none_is_named(name: str) -> None:
    with pytest.raises(UserError, match=r"task\.tool\.name"):
        box(name)
