"""The replay buffer: scored trajectories by query, pushed by actors, sampled by the learner.

Every compound change is one Lua script, so no number of writers can tear it, and everything that a Redis restart
keeps is a valid buffer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgpack
from redis import Redis

from buffer.connection import Keys, load_script
from common.config import BufferSection
from common.reward import RewardWeights
from common.trajectory import MalformedTrajectory, Query, Trajectory

QUARANTINE_CAPACITY = 1_000


@dataclass(frozen=True)
class PushResult:
    """What became of a push."""

    added: int
    duplicates: int
    """Trajectories that were there already; theirs is now the newer behaviour."""
    evicted: int


@dataclass(frozen=True)
class BufferStats:
    """Counters since the buffer was made, and its present size."""

    size: int = 0
    pushed: int = 0
    added: int = 0
    duplicates: int = 0
    evicted: int = 0
    trained: int = 0
    """Trajectories that learner steps used, each use counted."""
    quarantined: int = 0


class ReplayBuffer:
    """Two levels: queries, and within a query its trajectories."""

    def __init__(self, client: Redis, keys: Keys, section: BufferSection, weights: RewardWeights) -> None:
        self._client, self._keys, self._section, self._weights = client, keys, section, weights
        self._push = load_script(client, "push")
        self._sample = load_script(client, "sample")
        self._discard = load_script(client, "discard")

    def put_queries(self, queries: Iterable[Query]) -> None:
        """Store queries, so that a trajectory in the buffer can always be read with its prompt."""
        mapping = {query.id: query.to_bytes() for query in queries}
        self._client.hset(self._keys.query_index, mapping=mapping)

    def queries(self, ids: Sequence[str] | None = None) -> dict[str, Query]:
        """Stored queries by id: those named, or all. Raises KeyError for one that is not stored."""
        if ids is None:
            stored = self._client.hgetall(self._keys.query_index)
            return {key.decode(): Query.from_bytes(value) for key, value in stored.items()}
        values = self._client.hmget(self._keys.query_index, list(ids))
        missing = [query_id for query_id, value in zip(ids, values, strict=True) if value is None]
        if missing:
            raise KeyError(f"queries {missing} are not in the buffer")
        return {query_id: Query.from_bytes(value) for query_id, value in zip(ids, values, strict=True)}

    def push(self, trajectories: Sequence[Trajectory]) -> PushResult:
        """Insert atomically; acknowledged once it returns."""
        if not trajectories:
            return PushResult(0, 0, 0)
        section = self._section
        arguments: list[str | bytes | int | float] = [
            self._keys.buffer_prefix,
            section.capacity_per_query,
            section.capacity,
            section.evict,
        ]
        for trajectory in trajectories:
            priority = float(trajectory.log_reward(self._weights)[-1])
            arguments += [trajectory.query_id, bytes.fromhex(trajectory.id), priority, trajectory.to_bytes()]
        return PushResult(*self._push(keys=[self._keys.buffer_queries, self._keys.buffer_stats], args=arguments))

    def sample(self, n_queries: int, per_query: int, *, seed: int) -> list[Trajectory]:
        """Up to `n_queries` × `per_query` trajectories, grouped by query; fewer where the buffer holds fewer.

        Of a query's share the newest `fresh` part comes first, rounded up; the rest is drawn without replacement by
        `buffer.replay_priority`. Malformed entries are quarantined and left out.
        """
        section = self._section
        n_fresh = math.ceil(section.fresh * per_query)
        answer = self._sample(
            keys=[self._keys.buffer_queries],
            args=[
                self._keys.buffer_prefix,
                seed % 2**31,
                n_queries,
                per_query,
                n_fresh,
                section.replay_priority,
                section.replay_temperature,
            ],
        )
        return [
            trajectory
            for query, item, payload in zip(answer[::3], answer[1::3], answer[2::3], strict=True)
            if (trajectory := self._decode(query, item, payload)) is not None
        ]

    def _decode(self, query: bytes, item: bytes, payload: bytes) -> Trajectory | None:
        try:
            trajectory = Trajectory.from_bytes(payload)
            if trajectory.query_id != query.decode() or trajectory.id != item.hex():
                raise MalformedTrajectory("stored under another query's or trajectory's key")
        except MalformedTrajectory as error:
            self.quarantine(payload, reason=str(error), origin=f"query {query.decode()}")
            self._drop(query, item)
            return None
        return trajectory

    def reject(self, trajectory: Trajectory, reason: str) -> None:
        """Take a stored trajectory that can't be used out of the buffer and into the quarantine."""
        origin = trajectory.actor_id or trajectory.source
        self.quarantine(trajectory.to_bytes(), reason=reason, origin=origin)
        self._drop(trajectory.query_id, bytes.fromhex(trajectory.id))

    def _drop(self, query: str | bytes, item: bytes) -> None:
        keys = [self._keys.buffer_queries, self._keys.buffer_stats]
        self._discard(keys=keys, args=[self._keys.buffer_prefix, query, item])

    def quarantine(self, payload: bytes, *, reason: str, origin: str) -> None:
        """Keep what is unusable for a look, with reason and origin; the list is capped."""
        entry = msgpack.packb([time.time(), reason, origin, payload])
        pipe = self._client.pipeline()
        pipe.lpush(self._keys.quarantine, entry)
        pipe.ltrim(self._keys.quarantine, 0, QUARANTINE_CAPACITY - 1)
        pipe.hincrby(self._keys.buffer_stats, "quarantined", 1)
        pipe.execute()

    def quarantined(self) -> list[tuple[float, str, str, bytes]]:
        """(seconds since the epoch, reason, origin, payload), newest first."""
        entries = self._client.lrange(self._keys.quarantine, 0, -1)
        return [tuple(msgpack.unpackb(entry)) for entry in entries]

    def count_trained(self, n: int) -> None:
        """Tell actors, who wait when they are too far ahead, that a step used `n` trajectories."""
        self._client.hincrby(self._keys.buffer_stats, "trained", n)

    def stats(self) -> BufferStats:
        """Size and counters, read at one instant."""
        raw = self._client.hgetall(self._keys.buffer_stats)
        return BufferStats(**{key.decode(): int(value) for key, value in raw.items()})
