"""How an actor's loop ends."""

from __future__ import annotations

from typing import Any

import pytest

from actors.actor import Actor
from common.errors import EngineFault, RunFault


class Words:
    """What an actor says to the others."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def stop_reason(self, process: str) -> None:
        return None

    def report_fault(self, process: str, fault: str) -> None:
        self.faults.append(fault)


def faults_of_a_loop_that_ends_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    actor, words = Actor.__new__(Actor), Words()
    actor.id, actor.queries, actor.control = "actor-0", [], words  # type: ignore[assignment]

    def fail(*_: Any) -> bool:
        raise error

    monkeypatch.setattr(Actor, "_score_seeds", lambda self: False)
    monkeypatch.setattr(Actor, "_round", fail)
    with pytest.raises(type(error)):
        actor.run()
    return words.faults


def test_an_engine_that_failed_ends_its_actor_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults_of_a_loop_that_ends_with(EngineFault("vLLM failed in a step: X"), monkeypatch) == []


def test_a_fault_of_the_run_is_reported_and_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults_of_a_loop_that_ends_with(RunFault("an adapter changes nothing"), monkeypatch) == [
        "an adapter changes nothing"
    ]
