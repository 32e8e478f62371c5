"""How an actor evaluates beside its sampling, as far as that needs no engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from actors.held_out import HeldOutSampler
from buffer.adapters import AdapterError
from buffer.connection import Keys
from buffer.evaluations import Evaluations, Wanted
from common.config import RunConfig
from common.errors import EngineFault
from common.held_out import Part
from common.metrics import ActorMetrics, new_registry
from common.trajectory import Query, Trajectory
from tests.conftest import make_query, make_trajectory

QUERIES = [make_query(1), make_query(2), make_query(3)]
SHA256 = "c" * 64


class Follower:
    """Holds what is in the registry."""

    def __init__(self, current: object = object()) -> None:
        self.current, self.held, self.gone = current, list[int](), set[int]()
        self.fault: Exception | None = None

    def hold(self, version: int) -> Any:
        if self.fault is not None:
            raise self.fault
        if version in self.gone:
            raise AdapterError(f"adapter version {version} is not in the registry")
        self.held.append(version)
        return SimpleNamespace(version=version, sha256=SHA256)

    def release(self) -> None:
        self.held.pop()


class Sampler:
    """Keeps what is submitted until it is told to finish it."""

    def __init__(self) -> None:
        self.task = SimpleNamespace(sample_requests=list)
        self.actor_id, self.metrics = "actor-0", ActorMetrics(new_registry())
        self.submitted, self.open = list[Query](), list[tuple[Query, int, Any]]()
        self.in_flight = 0
        self.policy = SimpleNamespace(takes_turns=False, serves_alone=lambda adapter: False)

    @property
    def aside_in_flight(self) -> int:
        return len(self.open)

    def submit(self, query: Query, n: int, temperature: float, adapter: Any, source: str, **more: Any) -> None:
        assert (n, temperature, source) == (1, 1.0, "policy") and more["aside"] and not more["every_state"]
        self.submitted.append(query)
        self.open.append((query, adapter.version, more["tell"]))

    def finish(self, rejected: str | None = None) -> None:
        # The last first: what ends first need not be what was asked for first.
        for query, version, tell in self.open[::-1]:
            made = make_trajectory(query, [3], version=version) if rejected is None else None
            tell(SimpleNamespace(trajectory=made, rejected=rejected))
        self.open.clear()


@pytest.fixture
def evaluations(redis_client: Redis, keys: Keys) -> Evaluations:
    found = Evaluations(redis_client, keys)
    found.put_queries([(query, Part.EVALUATION) for query in QUERIES])
    return found


def make(
    evaluations: Evaluations, follower: Follower, diagnose: int = 0, **section: Any
) -> tuple[HeldOutSampler, Sampler]:
    """`diagnose` samples of a query in a diagnosis."""
    sections: dict[str, Any] = {"evaluation": {"every": 10, "samples": 2, "share": 1.0, **section}}
    if diagnose:
        sections["diagnose"] = {"every": 20, "samples": diagnose}
    config = RunConfig.model_validate({"task": {"name": "rng"}, **sections})
    sampler = Sampler()
    return HeldOutSampler(config, evaluations, follower, sampler), sampler  # type: ignore[arg-type]


def work(held_out: HeldOutSampler, sampler: Sampler, rounds: int = 20) -> None:
    for _ in range(rounds):
        held_out.housekeep()
        held_out.feed()
        sampler.finish()


def test_every_held_out_query_is_sampled_from_under_the_version_that_is_wanted(evaluations: Evaluations) -> None:
    follower = Follower()
    held_out, sampler = make(evaluations, follower)
    wanted = Wanted(7, 70)
    evaluations.want(wanted)
    held_out.housekeep()
    assert held_out.version == 7 and follower.held == [7]
    work(held_out, sampler)
    drawn = evaluations.next_drawn()
    assert drawn is not None and (drawn.wanted, drawn.sha256, drawn.actor) == (wanted, SHA256, "actor-0")
    items = [Trajectory.from_bytes(item) for item in drawn.trajectories]
    assert sorted(item.query_id for item in items) == sorted(query.id for query in QUERIES for _ in range(2))
    assert [item.query_id for item in items] == [query.id for query in sampler.submitted]
    assert {item.behaviour.adapter_version for item in items} == {7}
    assert follower.held == [] and held_out.version is None


def test_a_look_for_evaluation_and_diagnosis_samples_each_query_for_what_it_serves(
    redis_client: Redis, keys: Keys
) -> None:
    evaluations, both = Evaluations(redis_client, keys), Part.EVALUATION | Part.DIAGNOSIS
    evaluations.put_queries(list(zip(QUERIES, (both, Part.EVALUATION, Part.DIAGNOSIS), strict=True)))
    held_out, sampler = make(evaluations, Follower(), diagnose=25)
    evaluations.want(Wanted(7, 70, parts=both))
    work(held_out, sampler)
    drawn = evaluations.next_drawn()
    assert drawn is not None and drawn.wanted == Wanted(7, 70, parts=both)

    def queries_of(packed: Sequence[bytes]) -> Counter[str]:
        return Counter(Trajectory.from_bytes(item).query_id for item in packed)

    assert queries_of(drawn.trajectories) == {QUERIES[0].id: 2, QUERIES[1].id: 2}
    assert queries_of(drawn.diagnosis) == {QUERIES[0].id: 25, QUERIES[2].id: 25}
    # The first two samples of the first query serve both.
    assert len(sampler.submitted) == 25 + 2 + 25 and (drawn.missing, drawn.diagnosis_missing) == (0, 0)
    # The next one is wanted for a diagnosis alone.
    evaluations.want(Wanted(8, 80, parts=Part.DIAGNOSIS))
    work(held_out, sampler)
    drawn = evaluations.next_drawn()
    assert drawn is not None and drawn.trajectories == () and drawn.missing == 0
    assert queries_of(drawn.diagnosis) == {QUERIES[0].id: 25, QUERIES[2].id: 25}


def test_a_sample_that_fails_is_missing_in_all_that_it_would_have_served(redis_client: Redis, keys: Keys) -> None:
    evaluations, both = Evaluations(redis_client, keys), Part.EVALUATION | Part.DIAGNOSIS
    evaluations.put_queries([(QUERIES[0], both)])
    held_out, sampler = make(evaluations, Follower(), diagnose=25)
    evaluations.want(Wanted(7, 70, parts=both))
    held_out.housekeep()
    held_out.feed()
    sampler.open, first = sampler.open[1:], sampler.open[:1]
    sampler.finish()
    sampler.open = first
    sampler.finish(rejected="task.reward raised")
    work(held_out, sampler)
    drawn = evaluations.next_drawn()
    assert drawn is not None and (drawn.missing, drawn.diagnosis_missing) == (1, 1)
    assert (len(drawn.trajectories), len(drawn.diagnosis)) == (1, 24) and drawn.reason == "task.reward raised"


def test_samples_that_make_no_trajectory_are_left_out_and_waited_for_by_nobody(evaluations: Evaluations) -> None:
    held_out, sampler = make(evaluations, Follower(), samples=2)
    evaluations.want(Wanted(1, 10))
    held_out.housekeep()
    held_out.feed()
    first = sampler.open.pop()
    sampler.finish(rejected="task.reward raised")
    sampler.open.append(first)
    work(held_out, sampler)
    drawn = evaluations.next_drawn()
    assert drawn is not None and len(drawn.trajectories) == 1
    assert (drawn.missing, drawn.reason) == (5, "task.reward raised")


def test_a_version_none_of_whose_samples_has_a_value_is_handed_over_with_the_reason(evaluations: Evaluations) -> None:
    held_out, sampler = make(evaluations, Follower(), samples=2)
    evaluations.want(Wanted(1, 10))
    held_out.housekeep()
    held_out.feed()
    sampler.finish(rejected="task.reward raised: \x1b")
    held_out.housekeep()
    drawn = evaluations.next_drawn()
    assert drawn is not None and (drawn.trajectories, drawn.missing) == ((), 6)
    assert drawn.reason == "task.reward raised: \\x1b" and evaluations.skipped() == 1


@pytest.mark.parametrize(
    ("takes_turns", "share", "most"),
    [(False, 0.05, 3), (False, 0.01, 1), (True, 0.05, 64)],
    ids=["the share of them", "one at least", "all where it takes turns with sampling"],
)
def test_no_more_requests_are_in_flight_than_leave_sampling_its_part(
    evaluations: Evaluations, takes_turns: bool, share: float, most: int
) -> None:
    held_out, sampler = make(evaluations, Follower(), share=share, samples=40)
    sampler.policy.takes_turns = takes_turns
    evaluations.want(Wanted(1, 10))
    held_out.housekeep()
    held_out.feed()
    # Of 64 at once.
    assert len(sampler.open) == most
    held_out.feed()
    assert len(sampler.open) == most


def test_the_last_evaluation_is_not_bounded_as_nothing_else_is_wanted(evaluations: Evaluations) -> None:
    held_out, sampler = make(evaluations, Follower(), share=0.05, samples=4)
    evaluations.want(Wanted(1, 10))
    held_out.housekeep()
    evaluations.want(Wanted(1, 10, last=True))
    held_out.housekeep()
    held_out.feed()
    assert len(sampler.open) == 12


def test_training_is_over_from_the_last_evaluation_on_for_every_actor_until_another_is_wanted(
    evaluations: Evaluations,
) -> None:
    (at_it, sampler), (beside, _) = make(evaluations, Follower(), samples=2), make(evaluations, Follower(), samples=2)
    evaluations.want(Wanted(1, 10))
    for held_out in (at_it, beside):
        held_out.housekeep()
        assert not held_out.training_is_over
    evaluations.want(Wanted(2, 20, last=True))
    for held_out in (at_it, beside):
        held_out.housekeep()
        assert held_out.training_is_over
    work(at_it, sampler)
    assert evaluations.wanted() is None and at_it.training_is_over
    # A learner that was resumed with more steps.
    evaluations.want(Wanted(3, 30))
    at_it.housekeep()
    assert not at_it.training_is_over


def test_nothing_is_taken_before_the_actor_has_an_adapter_for_training(evaluations: Evaluations) -> None:
    held_out, _ = make(evaluations, Follower(current=None))
    evaluations.want(Wanted(1, 10))
    held_out.housekeep()
    held_out.feed()
    assert held_out.version is None and evaluations.take("another") == Wanted(1, 10)


def test_a_version_that_is_gone_is_left_out_and_the_next_one_is_taken(evaluations: Evaluations) -> None:
    follower = Follower()
    follower.gone = {1}
    held_out, sampler = make(evaluations, follower)
    evaluations.want(Wanted(1, 10))
    work(held_out, sampler)
    assert held_out.version is None and evaluations.skipped() == 1
    # Whoever waits for it is told.
    nothing = evaluations.next_drawn()
    assert nothing is not None and nothing.reason == "adapter version 1 is not in the registry"
    assert (nothing.wanted, nothing.trajectories) == (Wanted(1, 10), ())
    evaluations.want(Wanted(2, 20))
    work(held_out, sampler)
    drawn = evaluations.next_drawn()
    assert drawn is not None and drawn.wanted.version == 2


def test_a_version_that_the_engine_can_not_serve_is_left_out_and_the_actor_goes_on(evaluations: Evaluations) -> None:
    follower = Follower()
    follower.fault = ValueError("LoRA rank 128 is greater than max_lora_rank 64")
    held_out, sampler = make(evaluations, follower)
    evaluations.want(Wanted(1, 10))
    work(held_out, sampler)
    nothing = evaluations.next_drawn()
    assert nothing is not None and nothing.reason == str(follower.fault) and evaluations.wanted() is None
    follower.fault = None
    evaluations.want(Wanted(2, 20))
    work(held_out, sampler)
    drawn = evaluations.next_drawn()
    assert drawn is not None and (drawn.wanted.version, len(drawn.trajectories)) == (2, 6)


@pytest.mark.parametrize("fault", [EngineFault("the engine died"), RedisConnectionError("it restarts")])
def test_what_says_nothing_of_the_version_leaves_it_wanted(evaluations: Evaluations, fault: Exception) -> None:
    follower = Follower()
    follower.fault = fault
    held_out, _ = make(evaluations, follower)
    evaluations.want(Wanted(1, 10))
    with pytest.raises(type(fault)):
        held_out.housekeep()
    assert evaluations.next_drawn() is None and evaluations.wanted() == Wanted(1, 10)


def test_an_actor_that_was_taken_for_dead_gives_up_and_hands_over_nothing(
    evaluations: Evaluations, redis_client: Redis, keys: Keys
) -> None:
    follower = Follower()
    held_out, sampler = make(evaluations, follower, share=0.05)
    evaluations.want(Wanted(1, 10))
    held_out.housekeep()
    held_out.feed()
    redis_client.delete(keys.evaluation_lease)
    assert evaluations.take("another") == Wanted(1, 10)
    held_out.housekeep()
    # What is in flight needs its adapter to the end.
    assert follower.held == [1]
    work(held_out, sampler)
    assert follower.held == [] and len(sampler.submitted) == 3 and evaluations.next_drawn() is None
    assert evaluations.renew("another"), "the other one goes on undisturbed"


def test_an_actor_that_is_held_up_keeps_its_evaluation(
    evaluations: Evaluations, redis_client: Redis, keys: Keys
) -> None:
    held_out, sampler = make(evaluations, Follower(), share=0.05)
    # Nothing to keep yet.
    held_out.renew()
    evaluations.want(Wanted(1, 10))
    held_out.housekeep()
    redis_client.expire(keys.evaluation_lease, 1)
    held_out.renew()
    assert redis_client.ttl(keys.evaluation_lease) > 1
    redis_client.delete(keys.evaluation_lease)
    evaluations.take("another")
    held_out.renew()
    work(held_out, sampler)
    assert sampler.submitted == [] and evaluations.next_drawn() is None


def test_an_actor_that_is_retired_leaves_its_evaluation_to_another_at_once(evaluations: Evaluations) -> None:
    held_out, _ = make(evaluations, Follower())
    evaluations.want(Wanted(1, 10))
    held_out.housekeep()
    held_out.give_back()
    assert evaluations.take("another") == Wanted(1, 10)


@pytest.mark.parametrize(
    ("takes_turns", "alone", "seconds"),
    [(False, False, 0.5), (True, True, 2.0), (True, False, 0.0)],
    ids=["adapters share a batch", "its adapter's turn", "another's turn"],
)
def test_a_step_s_time_is_the_evaluation_s_by_its_part_of_the_requests_in_the_engine(
    evaluations: Evaluations, monkeypatch: pytest.MonkeyPatch, takes_turns: bool, alone: bool, seconds: float
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    held_out, sampler = make(evaluations, Follower())
    evaluations.want(Wanted(1, 10))
    held_out.housekeep()
    held_out.feed()
    sampler.in_flight = 4 * sampler.aside_in_flight
    sampler.policy.takes_turns, sampler.policy.serves_alone = takes_turns, lambda adapter: alone
    with held_out.timed():
        now[0] += 2.0
    sampler.finish()
    with held_out.timed():
        now[0] += 8.0
    held_out.housekeep()
    drawn = evaluations.next_drawn()
    assert drawn is not None and drawn.share == pytest.approx(seconds / 10)
    (sample,) = (s for f in sampler.metrics.evaluation.collect() for s in f.samples if s.name.endswith("_total"))
    assert sample.value == pytest.approx(seconds)
