"""Log lines: JSON with the process' context, and what a failing call adds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.log import add_log_context, get_logger, set_up_logging


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    yield
    set_up_logging(None, terminal=False)


def test_a_line_says_when_who_and_under_which_adapter(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "actor-3.log"
    set_up_logging(path, terminal=False, run="mine", process="actor-3")
    get_logger("actor").info("serving %d", 7)
    add_log_context(adapter_version=7)
    try:
        raise ValueError("no\nway")
    except ValueError:
        get_logger("actor").exception("failed")
    first, second = map(json.loads, path.read_text().splitlines())
    assert (
        first.items()
        >= {
            "level": "INFO",
            "run": "mine",
            "process": "actor-3",
            "logger": "amortis.actor",
            "message": "serving 7",
        }.items()
    )
    assert first["time"].endswith("+00:00") and "adapter_version" not in first
    assert second["adapter_version"] == 7 and "ValueError: no\nway" in second["exception"]


def test_another_set_up_forgets_the_context_of_the_one_before(tmp_path: Path) -> None:
    set_up_logging(tmp_path / "a.log", terminal=False, run="mine", process="launcher")
    set_up_logging(tmp_path / "b.log", terminal=False, run="other")
    get_logger("x").info("hello")
    assert (tmp_path / "a.log").read_text() == ""
    line = json.loads((tmp_path / "b.log").read_text())
    assert line["run"] == "other" and "process" not in line
