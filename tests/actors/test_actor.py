"""How an actor's loop ends, and what it does while it is held up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

import actors.actor
from actors.actor import Actor
from actors.scoring import Scored, TokenScores
from buffer.replay import BufferFull
from common.config import RunConfig
from common.errors import EngineFault, RunFault
from common.metrics import ActorMetrics, new_registry
from common.tasks import SampleRequest


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


class HeldUp:
    """An actor's parts that are slow or full for some rounds, and how often its evaluation was renewed by then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HOUSEKEEPING_S", "FULL_S"):
            monkeypatch.setattr(actors.actor, name, 0.0)
        monkeypatch.setattr(Actor, "_beat", lambda self, phase: None)
        self.rounds, self.renewed = 3, 0
        self.actor = Actor.__new__(Actor)
        own = SimpleNamespace(step=list, check_own_reward=lambda: None)
        self.actor.sampler, self.actor._ready = own, []  # type: ignore[assignment]
        self.actor._held_out = SimpleNamespace(renew=self.renew, timed=self.timed)  # type: ignore[assignment]
        self.actor.control, self.actor.id, self.actor._pushed = Words(), "actor-0", 0  # type: ignore[assignment]
        self.actor.metrics, self.actor._next_word = ActorMetrics(new_registry()), 0.0

    def renew(self) -> None:
        self.renewed += 1

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        yield

    @property
    def can_load(self) -> bool:
        self.rounds -= 1
        return self.rounds < 0

    def push(self, trajectories: Any, from_actor: bool) -> Any:
        self.rounds -= 1
        if self.rounds >= 0:
            raise BufferFull("no memory left")
        return SimpleNamespace(refused=0)


def test_an_evaluation_is_kept_while_samples_of_an_older_adapter_are_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    held_up = HeldUp(monkeypatch)
    held_up.actor.engine = held_up  # type: ignore[assignment]
    held_up.actor.adapters = SimpleNamespace(update=lambda version: None, current=None)  # type: ignore[assignment]
    held_up.actor._load(2)
    assert held_up.renewed == 3


def test_an_evaluation_is_kept_while_a_probe_waits_for_its_adapter_s_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    held_up = HeldUp(monkeypatch)
    scores = TokenScores(np.zeros(1), np.zeros(1))
    steps: list[list[Scored]] = [[], [], [], [Scored("probe-without", scores)], [], [Scored("probe-with", scores)]]
    checked: list[list[Scored]] = []
    held_up.actor.engine = SimpleNamespace(  # type: ignore[assignment]
        can_load=True, submit_score=lambda *_: None, step=lambda: steps.pop(0)
    )
    held_up.actor.adapters = SimpleNamespace(  # type: ignore[assignment]
        update=lambda version: None,
        current=SimpleNamespace(version=2),
        probe_texts=lambda: [("probe-without", None, None), ("probe-with", None, None)],
        check_probe=checked.append,
    )
    held_up.actor._load(2)
    assert held_up.renewed == 6
    assert [result.request_id for result in checked[0]] == ["probe-without", "probe-with"]


def test_an_evaluation_is_kept_while_redis_has_no_memory_left(monkeypatch: pytest.MonkeyPatch) -> None:
    held_up = HeldUp(monkeypatch)
    held_up.actor.buffer = held_up  # type: ignore[assignment]
    assert held_up.actor._push_or_wait([])
    assert held_up.renewed == 3


@pytest.mark.parametrize("is_over", [False, True])
def test_nothing_is_sampled_for_training_while_the_last_adapter_is_evaluated(is_over: bool) -> None:
    actor = Actor.__new__(Actor)
    actor.config = RunConfig.model_validate({"task": {"name": "rng"}})
    actor.adapters, actor._blocked_since = SimpleNamespace(current=object()), None  # type: ignore[assignment]
    actor._held_out = SimpleNamespace(training_is_over=is_over)  # type: ignore[assignment]
    assert actor._may_sample() == (not is_over)
    assert actor._phase() == ("evaluating the last adapter" if is_over else "sampling")


@pytest.mark.parametrize("has_redis", [True, False])
def test_an_evaluation_says_how_far_it_is_and_needs_no_redis(has_redis: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, object]] = []

    def beat(actor: Actor, phase: str) -> None:
        if not has_redis:
            raise RedisConnectionError("it is gone")
        said.append((phase, actor._drawn))

    def collect(queries: Any, request: Any, adapter: Any, limit: int, told: Any) -> dict[str, list[Any]]:
        told(1, 2)
        told(2, 2)
        return {"q": []}

    monkeypatch.setattr(actors.actor, "HOUSEKEEPING_S", 0.0)
    monkeypatch.setattr(Actor, "_beat", beat)
    actor = Actor.__new__(Actor)
    actor._evaluation_threads, actor._next_word, actor._drawn = 0, 0.0, None
    actor.section = RunConfig.model_validate({"task": {"name": "rng"}}).actor
    actor.sampler = SimpleNamespace(in_flight=0, collect=collect)  # type: ignore[assignment]
    actor.adapters = SimpleNamespace(is_behind=lambda: None, current=None)  # type: ignore[assignment]
    actor.task = SimpleNamespace(queries=lambda split: [])  # type: ignore[assignment]
    assert actor.evaluate([SampleRequest("trained", adapter=True, temperature=1.0, n=2)]) == {"trained": {"q": []}}
    expected = [("evaluating", (1, 2)), ("evaluating", (2, 2)), ("stopped", None)]
    assert said == (expected if has_redis else [])


def test_the_share_that_an_actor_waited_is_of_its_loop_and_not_of_the_evaluation_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    actor = Actor.__new__(Actor)
    actor._blocked_s, actor._first_adapter_at, actor._over_at = 5.0, 100.0, None
    monkeypatch.setattr(actors.actor.time, "monotonic", lambda: 120.0)
    assert actor._wait_share() == 0.25
    actor._over_at = 110.0
    assert actor._wait_share() == 0.5
