"""How an actor's loop ends, and what it does while it is held up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

import actors.actor
from actors.actor import Actor
from actors.scoring import Scored, TokenScores
from buffer.connection import Keys
from buffer.control import Control
from buffer.replay import BufferFull
from buffer.seed_queue import SeedQueue
from common.config import RunConfig
from common.errors import EngineFault, RunFault
from common.metrics import ActorMetrics, new_registry
from common.seeds import SeedJob
from common.tasks import SampleRequest
from common.trajectory import Query, Trajectory
from tests.conftest import make_query, make_trajectory


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
    nothing: dict[str, Any] = dict.fromkeys(("is_behind", "try_again", "check_newest"), lambda: None)
    actor.adapters = SimpleNamespace(current=None, **nothing)  # type: ignore[assignment]
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


class Scoring:
    """A sampler with so many trajectories of training in flight, and a second of it for each step."""

    def __init__(self, in_flight: list[Trajectory]) -> None:
        self.flying = in_flight

    @property
    def in_flight(self) -> int:
        return len(self.flying)

    def submit_seed(self, query: Query, job: SeedJob, *, every_state: bool) -> None:
        self.flying.append(make_trajectory(query, list(job.action_ids or ()), source="seed"))

    def accept(self, results: list[object]) -> list[Trajectory]:
        return []

    def step(self) -> list[Trajectory]:
        return [self.flying.pop(0)]

    def check_own_reward(self) -> None:
        """Nothing is wrong with it."""


def test_seeds_of_an_actor_that_is_gone_are_scored_by_one_that_samples_already(
    redis_client: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, control, queue = make_query(), Control(redis_client, keys), SeedQueue(redis_client, keys)
    queue.put([SeedJob(query.id, action_ids=(token,)) for token in (3, 4)])
    assert len(queue.take("actor-1", 2)) == 2
    actor, pushed = Actor.__new__(Actor), list[tuple[str, bool]]()
    actor.id, actor.control, actor.queries, actor._seeds = "actor-0", control, [query], queue
    actor.config = RunConfig.model_validate({"task": {"name": "rng"}})
    sampler = Scoring([make_trajectory(query, [7]), make_trajectory(query, [8])])
    actor.sampler, actor._held_out, actor._ready = sampler, None, []  # type: ignore[assignment]
    actor.metrics, actor._pushed = ActorMetrics(new_registry()), 0

    def push(items: list[Trajectory], *, from_actor: bool) -> Any:
        pushed.extend((item.source, from_actor) for item in items)
        return SimpleNamespace(refused=0)

    rounds: list[bool] = []

    def play(actor: Actor) -> None:
        """The other actor goes after the first round, and the run ends soon."""
        rounds.append(queue.all_done)
        if len(rounds) == 1:
            control.forget_actor("actor-1")
        if queue.all_done or len(rounds) == 5:
            control.request_stop("over")

    actor.buffer = SimpleNamespace(push=push)  # type: ignore[assignment]
    monkeypatch.setattr(Actor, "_round", play)
    monkeypatch.setattr(Actor, "_beat", lambda self, phase: None)
    monkeypatch.setattr(Actor, "_count_tokens", lambda self: None)
    actor.run()
    assert rounds == [False, True]
    assert sorted(pushed) == [("policy", True)] * 2 + [("seed", False)] * 2


@pytest.mark.parametrize("letting_go", [True, False])
def test_no_other_version_is_held_while_requests_keep_the_last_one_in_its_place(
    letting_go: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, looked = Actor.__new__(Actor), list[str]()
    actor.engine = SimpleNamespace(is_letting_go=letting_go)  # type: ignore[assignment]
    actor.adapters = SimpleNamespace(is_behind=lambda: None)  # type: ignore[assignment]
    actor._held_out = SimpleNamespace(  # type: ignore[assignment]
        housekeep=lambda: looked.append("housekeep"), training_is_over=False
    )
    actor._blocked_since = None
    for name in ("_push_if_due", "_follow_back_pressure", "_count_tokens"):
        monkeypatch.setattr(Actor, name, lambda self: None)
    monkeypatch.setattr(Actor, "_beat", lambda self, phase: None)
    actor._housekeep()
    assert looked == ([] if letting_go else ["housekeep"])


def test_scored_trajectories_wait_for_their_batch_as_long_as_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    actor, pushed, now = Actor.__new__(Actor), list[float](), 0.0
    actor.section = RunConfig.model_validate({"task": {"name": "rng"}, "actor": {"push_every_s": 30}}).actor
    actor.engine = SimpleNamespace()  # type: ignore[assignment]
    actor.adapters = SimpleNamespace(is_behind=lambda: None)  # type: ignore[assignment]
    actor._held_out, actor._blocked_since, actor._last_push = None, None, 0.0
    monkeypatch.setattr(actors.actor.time, "monotonic", lambda: now)
    monkeypatch.setattr(Actor, "_push_or_wait", lambda self, trajectories: pushed.append(now) or True)
    for name in ("_follow_back_pressure", "_count_tokens"):
        monkeypatch.setattr(Actor, name, lambda self: None)
    monkeypatch.setattr(Actor, "_beat", lambda self, phase: None)
    for now in (0.25, 0.5, 29.0, 30.0, 45.0, 61.0):  # noqa: B007 (the clock's)
        actor._ready = [make_trajectory(make_query(), [1])]
        actor._housekeep()
    assert pushed == [30.0, 61.0]
