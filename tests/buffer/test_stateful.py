"""Random histories of the buffer on a real Redis against a plain Python model of what it promises."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from buffer.connection import Keys
from buffer.replay import ITEM_OVERHEAD_BYTES, ReplayBuffer
from common.config import BufferSection
from common.reward import RewardWeights
from common.trajectory import Trajectory
from tests.conftest import make_query, make_trajectory

WEIGHTS = RewardWeights(prior=0, likelihood=0)
N_QUERIES = 4
BYTES_OF_ONE = len(make_trajectory(make_query(1, 0), [0, 0]).to_bytes()) + ITEM_OVERHEAD_BYTES
client: Redis | None = None


@dataclass
class Stored:
    """What the model keeps of a trajectory."""

    wire: bytes
    log_reward: float
    sequence: int
    version: int
    query: str


class Model:
    """The contract in a few lines, for one shard."""

    def __init__(self, section: BufferSection) -> None:
        self.section, self.items, self.sequence = section, dict[str, Stored](), 0
        self.added = self.duplicates = self.evicted = self.expired = self.refused = self.pushed = self.trained = 0

    def of(self, query: str) -> dict[str, Stored]:
        return {key: item for key, item in self.items.items() if item.query == query}

    @property
    def counts(self) -> dict[str, int]:
        queries = [item.query for item in self.items.values()]
        return {query: queries.count(query) for query in set(queries)}

    @property
    def bytes(self) -> int:
        return sum(len(item.wire) + ITEM_OVERHEAD_BYTES for item in self.items.values())

    def push(self, batch: list[Trajectory]) -> None:
        # What is newer when a query is first evicted from stays, until it has more.
        self.newer: dict[str, set[str]] = {}
        for query in dict.fromkeys(item.query_id for item in batch):
            for item in batch:
                if item.query_id == query:
                    self.insert(item)
            while self.counts.get(query, 0) > self.section.capacity_per_query:
                self.evict(query)
            while len(self.items) > self.section.capacity or self.bytes > self.section.max_bytes:
                self.evict(self.fullest())

    def insert(self, item: Trajectory) -> None:
        self.sequence += 1
        self.pushed += 1
        self.newer.pop(item.query_id, None)
        if len(item.to_bytes()) + ITEM_OVERHEAD_BYTES > self.section.max_bytes:
            self.refused += 1
            return
        if item.id in self.items:
            self.duplicates += 1
        else:
            self.added += 1
        version = item.behaviour.adapter_version if item.source == "policy" else 2**20
        if item.id in self.items:
            # What was given stays so.
            version = max(version, 2**20) if self.items[item.id].version >= 2**20 else version
        reward = float(item.log_reward(WEIGHTS)[-1])
        self.items[item.id] = Stored(item.to_bytes(), reward, self.sequence, version, item.query_id)

    def fullest(self) -> str:
        return max(self.counts, key=lambda query: (self.counts[query], query))

    def evict(self, query: str) -> None:
        stored = self.of(query)
        if self.newer.get(query, set()) >= set(stored):
            self.newer.pop(query, None)
        if query not in self.newer:
            n = min(self.section.capacity_per_query, len(stored)) // 2
            self.newer[query] = {key for key, _ in sorted(stored.items(), key=lambda pair: -pair[1].sequence)[:n]}
        kept = self.newer[query]

        def rank(entry: tuple[str, Stored]) -> Any:
            key, item = entry
            policy = self.section.evict
            return {
                "lowest_reward": (key in kept, item.log_reward, key),
                "oldest": (item.sequence,),
                "stalest": (item.version, item.sequence),
            }[policy]

        del self.items[min(stored.items(), key=rank)[0]]
        self.evicted += 1

    def expire(self, queries: list[str], oldest: int) -> None:
        for query in queries:
            for key, item in self.of(query).items():
                if item.version < oldest:
                    del self.items[key]
                    self.expired += 1


@st.composite
def sections(draw: st.DrawFn) -> BufferSection:
    return BufferSection.model_validate(
        {
            "capacity": draw(st.integers(1, 14)),
            "capacity_per_query": draw(st.integers(1, 8)),
            "max_bytes": max(1_024, draw(st.sampled_from([3, 6, 100])) * BYTES_OF_ONE),
            "evict": draw(st.sampled_from(["lowest_reward", "oldest", "stalest"])),
            "fresh": draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
            "replay_priority": draw(st.sampled_from(["reward", "loss", "uniform"])),
            "query_selection": draw(st.sampled_from(["uniform", "loss", "least_recently_trained"])),
            "max_staleness": draw(st.sampled_from([None, 0, 2])),
            "replacement": draw(st.booleans()),
        }
    )


class BufferMachine(RuleBasedStateMachine):
    """Drives buffer and model side by side."""

    @initialize(section=sections())
    def make(self, section: BufferSection) -> None:
        assert client is not None
        client.flushall()
        self.section, self.model, self.version = section, Model(section), 1
        self.buffer = ReplayBuffer(client, Keys("stateful"), section, WEIGHTS)
        self.buffer.open()
        self.last: list[Trajectory] = []

    @rule(
        drawn=st.lists(
            st.tuples(
                st.integers(0, N_QUERIES - 1),
                st.lists(st.integers(0, 3), min_size=0, max_size=3),
                st.integers(-3, 3),
                st.booleans(),
            ),
            min_size=1,
            max_size=6,
        )
    )
    def push(self, drawn: list[tuple[int, list[int], int, bool]]) -> None:
        batch = [
            make_trajectory(
                make_query(1, query), actions, float(reward), version=self.version, source="seed" if seed else "policy"
            )
            for query, actions, reward, seed in drawn
        ]
        before = (self.model.added, self.model.duplicates, self.model.evicted, self.model.refused)
        self.model.push(batch)
        result = self.buffer.push(batch)
        after = (self.model.added, self.model.duplicates, self.model.evicted, self.model.refused)
        found = (result.added, result.duplicates, result.evicted, result.refused)
        assert found == tuple(b - a for a, b in zip(before, after, strict=True))

    @rule()
    def push_one_that_is_too_large(self) -> None:
        actions = [1] * (self.section.max_bytes // 4 + 10) if self.section.max_bytes < 10_000 else [2]
        batch = [make_trajectory(make_query(1, 0), actions, 9.0, version=self.version)]
        self.model.push(batch)
        self.buffer.push(batch)

    @rule()
    def publish(self) -> None:
        self.version += 1

    @rule(n_queries=st.integers(1, N_QUERIES + 1), per_query=st.integers(1, 6), seed=st.integers(0, 9))
    def sample(self, n_queries: int, per_query: int, seed: int) -> None:
        again = self.section.max_staleness is None
        drawn = self.buffer.sample(n_queries, per_query, seed=seed, version=self.version)
        if again:
            repeated = self.buffer.sample(n_queries, per_query, seed=seed, version=self.version)
            assert [item.to_bytes() for item in repeated] == [item.to_bytes() for item in drawn]
        chosen = list(dict.fromkeys(item.query_id for item in drawn))
        if self.section.max_staleness is not None:
            # Which other queries were looked at is the buffer's choice: it is read off what has gone.
            oldest = max(0, self.version - self.section.max_staleness)
            left = set(self.buffer.counts())
            gone = [query for query in self.model.counts if query not in left]
            self.model.expire([*chosen, *gone], oldest)
            kept = {item.id for item in self.buffer}
            assert kept == set(self.model.items)
            assert all(self.model.items[item.id].version >= oldest for item in drawn)
        assert len(chosen) == min(n_queries, len(self.model.counts))
        for query in chosen:
            self.check_share([item for item in drawn if item.query_id == query], query, per_query)
        self.last = drawn

    def check_share(self, share: list[Trajectory], query: str, per_query: int) -> None:
        stored = self.model.of(query)
        n_fresh = min(math.ceil(self.section.fresh * per_query), len(stored))
        newest = sorted(stored, key=lambda key: -stored[key].sequence)[:n_fresh]
        ids = [item.id for item in share]
        assert ids[:n_fresh] == newest
        assert all(item.to_bytes() == stored[item.id].wire for item in share)
        if self.section.replacement:
            assert len(ids) == max(per_query, n_fresh)
        else:
            assert len(set(ids)) == len(ids) == min(per_query, len(stored))

    @precondition(lambda self: self.last)
    @rule(priorities=st.lists(st.floats(0, 50), min_size=40, max_size=40))
    def train(self, priorities: list[float]) -> None:
        self.buffer.update_priorities(self.last, priorities[: len(self.last)])
        self.model.trained += len(self.last)

    @precondition(lambda self: self.last)
    @rule()
    def reject(self) -> None:
        item = self.last.pop()
        self.buffer.reject(item, "a test")
        self.model.items.pop(item.id, None)

    @rule()
    def reopen_with_other_indexes(self) -> None:
        assert client is not None
        other = {"reward": "loss", "loss": "uniform", "uniform": "reward"}[self.section.replay_priority]
        self.section = self.section.model_copy(update={"replay_priority": other})
        self.model.section = self.section
        self.buffer = ReplayBuffer(client, Keys("stateful"), self.section, WEIGHTS)
        self.buffer.open()

    @rule()
    def clear(self) -> None:
        self.buffer.clear()
        self.buffer.open()
        self.model = Model(self.section)
        self.last = []

    @invariant()
    def what_is_stored_is_what_the_model_has(self) -> None:
        if not hasattr(self, "model"):
            return
        assert {item.id: item.to_bytes() for item in self.buffer} == {
            key: item.wire for key, item in self.model.items.items()
        }

    @invariant()
    def counters_and_bounds_hold(self) -> None:
        if not hasattr(self, "model"):
            return
        model, stats = self.model, self.buffer.stats()
        assert stats.size == len(model.items) <= self.section.capacity
        assert stats.bytes == model.bytes <= self.section.max_bytes
        assert self.buffer.counts() == model.counts
        assert max(model.counts.values(), default=0) <= self.section.capacity_per_query
        assert (stats.added, stats.duplicates, stats.evicted) == (model.added, model.duplicates, model.evicted)
        assert (stats.refused, stats.expired, stats.trained) == (model.refused, model.expired, model.trained)
        assert stats.pushed == model.pushed


@pytest.fixture
def _client(redis_client: Redis) -> Iterator[None]:
    global client
    client = redis_client
    yield
    client = None


@pytest.mark.usefixtures("_client")
def test_any_history_leaves_what_a_plain_model_of_the_buffer_has() -> None:
    run_state_machine_as_test(
        BufferMachine,
        settings=settings(
            max_examples=150, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
