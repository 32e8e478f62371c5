"""The replay buffer: scored trajectories by query, pushed by actors, sampled by the learner.

Every compound change is one Lua script on one shard, so no number of writers can tear it, and everything that a Redis
restart keeps is a valid buffer. A query lives on one shard whole; a shard is one slot of a Redis Cluster.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Literal, Self

import msgpack
import numpy as np
from redis.exceptions import ResponseError

from buffer.adapters import AdapterRegistry
from buffer.connection import Client, Keys, ShardKeys, delete_matching, is_out_of_memory, memory_of, retry
from buffer.near_duplicates import Known, Mirror, as_letters, screen
from buffer.quarantine import Quarantine
from buffer.scripts import ReplicatedScript, load_script
from buffer.stats import BufferStats, PushResult
from buffer.submodular import choose
from common.config import BufferSection, RedisSection, RunConfig
from common.errors import UserError
from common.reward import RewardWeights, weighted_sum
from common.trajectory import SAMPLED, MalformedTrajectory, Query, Trajectory

FORMAT = 3
"""Of what stands in Redis; another one is refused, never misread."""
ITEM_OVERHEAD_BYTES = 450
"""What Redis keeps for a trajectory besides its bytes: names and indexes, measured with all indexes in use."""
_VERSION_STEP = 2**32
"""Between versions in the index by version; what lies between two is the order of arrival, still exact in a double."""
_NEVER_STALE = 2**20
"""The version of what no adapter of this run sampled (seeds, data sets, another run's trajectories): it is as
off-policy today as it was."""
_EXPIRE_AT_ONCE = 2_000
_SCAN = 500
_QUERY_BYTES = 16 * 2**20
"""Of queries in one command, as Redis refuses one that is far too large."""
_ID_BYTES = 16
_REPLAY_INDEX = {"reward": "priority", "loss": "loss", "uniform": "order"}
_CONFLICT_RETRIES = 20
CANDIDATES = 4
"""For each trajectory that is replayed, of which a submodular choice takes one."""
MEMORY_HEADROOM = 0.1
"""Share of Redis' memory limit that pushes leave free, for adapters and control keys: a run can then still end well."""
_LOOK_AT_MEMORY_S = 1.0
_LOOK_AT_MEMORY_SHARE = 0.05
"""Of Redis' memory limit: whoever has pushed so much looks again, however little time has passed."""


class BufferFull(Exception):
    """Redis is at its memory limit; nothing of the push, or of its refused part, was stored."""


class ReplayBuffer:
    """Two levels: queries, and within a query its trajectories."""

    def __init__(
        self,
        client: Client,
        keys: Keys,
        section: BufferSection,
        weights: RewardWeights,
        *,
        near_duplicate_tolerance: float = 0.0,
        redis: RedisSection | None = None,
    ) -> None:
        """`redis` says how many replicas must confirm a push (none without it)."""
        self._client, self._keys, self._section, self._weights = client, keys, section, weights
        self._shards = [keys.shard(index) for index in range(section.shards)]
        redis = redis or RedisSection()
        self._push = ReplicatedScript(client, "push", redis.min_replicas, redis.timeout_s, retry(redis))
        self._choose, self._draw = load_script(client, "choose"), load_script(client, "draw")
        self._sample = load_script(client, "sample")
        self._trained, self._discard = load_script(client, "trained"), load_script(client, "discard")
        self._tolerance = near_duplicate_tolerance
        self._mirror, self._adapters = Mirror(client), AdapterRegistry(client, keys)
        self._next_look, self._fullest = 0.0, 0.0
        self._unseen_bytes, self._look_after_bytes = 0.0, 0.0
        self.quarantine = Quarantine(client, keys)

    @classmethod
    def of(cls, config: RunConfig, client: Client, keys: Keys) -> Self:
        """The buffer of a run."""
        tolerance = config.near_duplicate_tolerance
        weights, redis = config.reward_weights, config.redis
        return cls(client, keys, config.buffer, weights, near_duplicate_tolerance=tolerance, redis=redis)

    @property
    def _by_version(self) -> bool:
        return self._section.evict == "stalest" or self._section.max_staleness is not None

    @property
    def _by_loss(self) -> bool:
        return self._section.replay_priority == "loss"

    def open(self) -> None:
        """Check what is stored, or mark a new buffer; index what the configuration needs and an earlier one did not,
        and anew by log R where its weights are others.

        One process of a run calls it before the others use the buffer. Raises UserError as `check`.
        """
        meta = self.check()
        self._client.hset(self._keys.buffer_meta, mapping={"format": FORMAT, "shards": len(self._shards)})
        missing = [
            index
            for index, needed in (("version", self._by_version), ("loss", self._by_loss))
            if needed and not meta.get(index)
        ]
        weights = self._weights.model_dump_json().encode()
        if self._client.get(self._keys.buffer_weights) not in (weights, None):
            missing.append("priority")
        if missing and self.stats().size:
            self._build_indexes(missing)
        self._client.set(self._keys.buffer_weights, weights)
        present = {"version": int(self._by_version), "loss": int(self._by_loss)}
        # An index that isn't kept up any more is built anew when it is wanted again.
        self._client.hset(self._keys.buffer_meta, mapping=present)

    def check(self) -> dict[str, int]:
        """What is known of the stored buffer; raises UserError if it has another format or number of shards."""
        meta = {key.decode(): int(value) for key, value in self._client.hgetall(self._keys.buffer_meta).items()}
        remedy = "export it with the amortis that wrote it (`amortis buffer export`), clear it, and import it again"
        if not meta and self._client.exists(f"{self._keys.base}buffer:stats"):
            meta["format"] = 1
        if meta and meta.get("format") != FORMAT:
            raise UserError("buffer", None, f"is stored in format {meta.get('format')}, not {FORMAT}", remedy)
        if meta and meta["shards"] != len(self._shards):
            raise UserError("buffer.shards", len(self._shards), f"the stored buffer has {meta['shards']}", remedy)
        return meta

    def put_queries(self, queries: Iterable[Query]) -> None:
        """Store queries, so that a trajectory in the buffer can always be read with its prompt."""
        mapping: dict[str, bytes] = {}
        size = 0
        for query in queries:
            data = query.to_bytes()
            mapping[query.id], size = data, size + len(data)
            if size > _QUERY_BYTES:
                self._client.hset(self._keys.query_index, mapping=mapping)
                mapping, size = {}, 0
        if mapping:
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

    def push(self, trajectories: Sequence[Trajectory], *, from_actor: bool = True) -> PushResult:
        """Insert; acknowledged once it returns. What belongs to one query or shard goes in at once or not at all.

        `from_actor` says whether rate control counts them: seeds and imports it does not. Of these, what no adapter of
        this run sampled never goes stale. Raises BufferFull when Redis has no memory left: nothing of the refused part
        is stored, and pushing it again later is safe.
        """
        self._check_memory(len(trajectories))
        total = PushResult()
        if self._tolerance > 0:
            by_query: defaultdict[str, list[Trajectory]] = defaultdict(list)
            for item in trajectories:
                by_query[item.query_id].append(item)
            for query_id, group in by_query.items():
                total += self._push_screened(query_id, group, from_actor)
            return total
        by_shard: defaultdict[int, list[Trajectory]] = defaultdict(list)
        for item in trajectories:
            by_shard[self._shard_of(item.query_id)].append(item)
        for shard, group in by_shard.items():
            result = self._push_to(shard, group, from_actor)
            assert result is not None
            total += result
        return total

    def _push_to(
        self,
        shard: int,
        trajectories: Sequence[Trajectory],
        from_actor: bool,
        newest: int | str = "",
        replaced: Sequence[bytes] = (),
    ) -> PushResult | None:
        """Insert into a shard; None if `newest`, the query's sequence number, isn't that any more."""
        section, share = self._section, len(self._shards)
        settings = [
            section.capacity_per_query,
            max(1, section.capacity // share),
            max(1, section.max_bytes // share),
            ITEM_OVERHEAD_BYTES,
            section.evict,
            int(from_actor),
            int(self._by_version),
            int(self._by_loss),
            _VERSION_STEP,
            _VERSION_STEP * _NEVER_STALE,
        ]
        groups: dict[str, list[Any]] = {}
        versions = () if from_actor else (item.behaviour.adapter_version for item in trajectories)
        published = self._adapters.published(versions)
        for item in trajectories:
            group = groups.setdefault(item.query_id, [])
            own = from_actor or published.get(item.behaviour.adapter_version) == item.behaviour.adapter_sha256
            payload = item.to_bytes()
            group += (bytes.fromhex(item.id), self._log_reward(item), _version_score(item, own=own), payload)
            self._unseen_bytes += len(payload) + ITEM_OVERHEAD_BYTES
        packed = [part for entry in groups.items() for part in entry]
        keys = self._shards[shard]
        try:
            answer = self._push(
                keys=[keys.stats], args=[keys.prefix, _pack(settings), _pack(packed), newest, _pack(list(replaced))]
            )
        except ResponseError as error:
            if is_out_of_memory(error):
                raise BufferFull(_full(len(trajectories), "all")) from error
            raise
        return None if answer[0] < 0 else PushResult(*answer)

    def _check_memory(self, n: int) -> None:
        """Refuse before Redis must: it refuses everything then."""
        now = time.monotonic()
        if now >= self._next_look or self._unseen_bytes >= self._look_after_bytes:
            memory = memory_of(self._client)
            self._fullest, self._unseen_bytes = memory.fullest, 0.0
            self._look_after_bytes = _LOOK_AT_MEMORY_SHARE * memory.limit if memory.limit else math.inf
            # Looked at more often near the limit, so that the headroom stays.
            self._next_look = now + (_LOOK_AT_MEMORY_S if self._fullest < 0.5 else 0.0)
        if self._fullest > 1 - MEMORY_HEADROOM:
            raise BufferFull(_full(n, f"{self._fullest:.0%}"))

    def _log_reward(self, item: Trajectory) -> float:
        prior, likelihood = float(item.log_prior[-1]), float(item.log_likelihood[-1])
        return weighted_sum(prior, likelihood, float(item.log_constraint[-1]), self._weights)

    def _push_screened(self, query_id: str, group: Sequence[Trajectory], from_actor: bool) -> PushResult:
        """Insert what is no near-duplicate; again from the start when another writer was quicker."""
        shard = self._shard_of(query_id)
        new = [(bytes.fromhex(item.id), Known(as_letters(item.action_ids), self._log_reward(item))) for item in group]
        for _ in range(_CONFLICT_RETRIES):
            newest, stored = self._mirror.look(self._shards[shard], query_id)
            screened = screen(stored, new, self._tolerance)
            dropped = len(group) - len(screened.kept)
            kept = [group[i] for i in screened.kept]
            result: PushResult | None = PushResult()
            if kept:
                result = self._push_to(shard, kept, from_actor, newest, screened.replaced)
            if result is not None:
                counts = {"near_duplicates": dropped, "pushed" if from_actor else "seeded": dropped}
                if dropped:
                    pipe = self._client.pipeline(transaction=False)
                    for name, count in counts.items():
                        pipe.hincrby(self._shards[shard].stats, name, count)
                    pipe.execute()
                return result + PushResult(near_duplicates=dropped)
        # Under so many writers of one query, a near-duplicate too many is better than a wait.
        result = self._push_to(shard, group, from_actor)
        assert result is not None
        return result

    def sample(self, n_queries: int, per_query: int, *, seed: int, version: int | None = None) -> list[Trajectory]:
        """Up to `n_queries` × `per_query` trajectories, grouped by query; fewer where the buffer holds fewer.

        Queries are chosen by `buffer.query_selection`, each at most once. Of a query's share the newest `fresh` part
        comes first, rounded up; the rest is drawn by `buffer.replay_priority`, and with `buffer.replay_choice:
        submodular` chosen from several times as many that are drawn so. With `buffer.max_staleness`, `version`
        is the newest adapter version, and what lags further behind is taken out. Malformed entries are quarantined and
        left out. The same buffer and seed give the same answer.
        """
        newest, found = self._newest(per_query), list[Trajectory]()
        chooses = self._section.replay_choice == "submodular"
        wanted = newest + CANDIDATES * (per_query - newest) if chooses else per_query
        for query, ids, payloads in self._drawn(n_queries, wanted, newest, seed, version, payloads=True):
            decoded = (self._decode(query, *pair) for pair in zip(ids, payloads, strict=True))
            group = [trajectory for trajectory in decoded if trajectory is not None]
            if chooses:
                rewards = [self._log_reward(item) for item in group]
                group = [group[i] for i in choose(group, rewards, newest, per_query)]
            found += group
        return found

    def sample_ids(
        self, n_queries: int, per_query: int, *, seed: int, version: int | None = None
    ) -> list[tuple[str, list[str]]]:
        """Query id and trajectory ids of what `sample` would give where replay is as it is drawn."""
        drawn = self._drawn(n_queries, per_query, self._newest(per_query), seed, version, payloads=False)
        return [(query.decode(), [item.hex() for item in ids]) for query, ids, _ in drawn]

    def _newest(self, per_query: int) -> int:
        """How many of a query's share are its newest."""
        return math.ceil(self._section.fresh * per_query)

    def _drawn(
        self, n_queries: int, per_query: int, newest: int, seed: int, version: int | None, *, payloads: bool
    ) -> Iterator[tuple[bytes, list[bytes], list[bytes]]]:
        """Query, ids and payloads of each query's share, the `newest` of it first."""
        section, oldest = self._section, -1
        if section.max_staleness is not None and version is not None:
            oldest = max(0, version - section.max_staleness) * _VERSION_STEP
        chosen_by = [n_queries, section.query_selection, repr(1 / section.query_temperature), oldest]
        chosen_by += [_EXPIRE_AT_ONCE, ITEM_OVERHEAD_BYTES]
        beta = 0.0 if section.replay_priority == "uniform" else 1 / section.replay_temperature
        index = f":{_REPLAY_INDEX[section.replay_priority]}"
        drawn_by = [per_query, newest, index, repr(beta)]
        drawn_by += [int(section.replacement), int(payloads)]
        if len(self._shards) == 1:
            keys = self._shards[0]
            answer = _until_answered(self._sample, keys, [_scramble(seed, 0, "sample"), *chosen_by, *drawn_by])
            yield from _by_query(answer)
            return
        for shard, queries in self._chosen(n_queries, seed, chosen_by).items():
            keys = self._shards[shard]
            arguments = [keys.prefix, _scramble(seed, shard, "draw"), _pack(queries), *drawn_by]
            yield from _by_query(self._draw(keys=[keys.stats], args=arguments))

    def _chosen(self, n_queries: int, seed: int, chosen_by: list[Any]) -> dict[int, list[bytes]]:
        """Queries by shard: every shard names its best, and the best of all are taken."""
        candidates: list[tuple[float, int, bytes]] = []
        for shard, keys in enumerate(self._shards):
            found = _until_answered(self._choose, keys, [_scramble(seed, shard, "choose"), *chosen_by])
            candidates += [(float(key), shard, query) for query, key in zip(found[::2], found[1::2], strict=True)]
        chosen: dict[int, list[bytes]] = {}
        for _, shard, query in sorted(candidates)[:n_queries]:
            chosen.setdefault(shard, []).append(query)
        return chosen

    def update_priorities(self, trajectories: Sequence[Trajectory], priorities: Sequence[float]) -> None:
        """Tell the buffer what a learner step used, and how far from balance each was.

        A priority is the size of the trajectory's balance residual in nats, finite and not negative (the role of the
        TD error in prioritized experience replay). A query's is the mean of its trajectories'. Raises ValueError for
        others.
        """
        values = np.asarray(priorities, np.float64)
        if len(values) != len(trajectories) or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"{len(trajectories)} finite priorities of 0 or more expected, found {priorities}")
        groups: defaultdict[str, list[Any]] = defaultdict(list)
        for item, value in zip(trajectories, values.tolist(), strict=True):
            groups[item.query_id] += [value, bytes.fromhex(item.id)]
        by_shard: defaultdict[int, list[Any]] = defaultdict(list)
        for query_id, group in groups.items():
            used = len(group) // 2
            pairs = group if self._by_loss else []
            by_shard[self._shard_of(query_id)] += [query_id, used, sum(group[::2]) / used, pairs]
        for shard, packed in by_shard.items():
            keys = self._shards[shard]
            self._trained(keys=[keys.stats], args=[keys.prefix, repr(time.time()), int(self._by_loss), _pack(packed)])

    def _decode(self, query: bytes, item: bytes, payload: bytes) -> Trajectory | None:
        try:
            return Trajectory.from_bytes(payload, expected_id=item)
        except MalformedTrajectory as error:
            self.quarantine.add(payload, reason=str(error), origin=f"query {query.decode()}")
            self._drop(query.decode(), item)
            return None

    def reject(self, trajectory: Trajectory, reason: str) -> None:
        """Take a stored trajectory that can't be used out of the buffer and into the quarantine."""
        origin = trajectory.actor_id or trajectory.source
        self.quarantine.add(trajectory.to_bytes(), reason=reason, origin=origin)
        self._drop(trajectory.query_id, bytes.fromhex(trajectory.id))

    def _drop(self, query_id: str, item: bytes) -> None:
        keys = self._shards[self._shard_of(query_id)]
        self._discard(keys=[keys.stats], args=[keys.prefix, query_id, item, ITEM_OVERHEAD_BYTES])

    def stats(self) -> BufferStats:
        """Size and counters, each shard's read at one instant."""
        names = {item.name for item in fields(BufferStats)}
        totals: defaultdict[str, int] = defaultdict(int)
        for keys in self._shards:
            for key, value in self._client.hgetall(keys.stats).items():
                if key.decode() in names:
                    totals[key.decode()] += int(value)
        totals["quarantined"] = self.quarantine.count
        return BufferStats(**totals)

    def counts(self) -> dict[str, int]:
        """Trajectories stored, by query id."""
        found: dict[str, int] = {}
        for keys in self._shards:
            for query, count in self._client.zrange(keys.queries, 0, -1, withscores=True):
                found[query.decode()] = int(count)
        return found

    def __iter__(self) -> Iterator[Trajectory]:
        """All stored trajectories, oldest first within a query; malformed ones are quarantined and passed over."""
        for query_id in sorted(self.counts()):
            for item, payload in self._stored(query_id):
                trajectory = self._decode(query_id.encode(), item, payload)
                if trajectory is not None:
                    yield trajectory

    def top(self, n: int, order: Literal["newest", "best"]) -> list[Trajectory]:
        """The `n` that came last, or those of the highest log R, the first of them first; malformed ones are left out.

        Every query is asked for its own, so that it is a look for people and no part of a step.
        """
        index, found = {"newest": "order", "best": "priority"}[order], list[tuple[float, Trajectory]]()
        for keys in self._shards:
            ranked: list[tuple[float, bytes, bytes]] = []
            for query, entries in self._highest(keys, index, n):
                ranked += [(score, query, item) for item, score in entries]
                ranked = sorted(ranked, reverse=True)[:n]
            for score, query, item in ranked:
                payload = self._client.hget(keys.of_query(query.decode(), "items"), item)
                trajectory = None if payload is None else self._decode(query, item, payload)
                if trajectory is not None:
                    found.append((score, trajectory))
        if order == "newest" and len(self._shards) > 1:
            # Each shard counts what came for itself.
            found = [(trajectory.created_at, trajectory) for _, trajectory in found]
        return [trajectory for _, trajectory in sorted(found, key=lambda pair: -pair[0])[:n]]

    def best_of(self, query_ids: Sequence[str], n: int) -> dict[str, list[Trajectory]]:
        """The `n` of the highest log R of each query that has any, the best first; malformed ones are left out."""
        found: dict[str, list[Trajectory]] = {}
        for query_id in query_ids:
            keys = self._shards[self._shard_of(query_id)]
            items = self._client.zrevrange(keys.of_query(query_id, "priority"), 0, n - 1)
            payloads = self._client.hmget(keys.of_query(query_id, "items"), items) if items else []
            pairs = [(item, payload) for item, payload in zip(items, payloads, strict=True) if payload is not None]
            decoded = [self._decode(query_id.encode(), *pair) for pair in pairs]
            group = [trajectory for trajectory in decoded if trajectory is not None]
            if group:
                found[query_id] = group
        return found

    def _highest(self, keys: ShardKeys, index: str, n: int) -> Iterator[tuple[bytes, list[tuple[bytes, float]]]]:
        """Each query of a shard with its highest by an index."""
        queries = self._client.zrange(keys.queries, 0, -1)
        for start in range(0, len(queries), _SCAN):
            part, pipe = queries[start : start + _SCAN], self._client.pipeline(transaction=False)
            for query in part:
                pipe.zrevrange(keys.of_query(query.decode(), index), 0, n - 1, withscores=True)
            yield from zip(part, pipe.execute(), strict=True)

    def _stored(self, query_id: str) -> Iterator[tuple[bytes, bytes]]:
        keys = self._shards[self._shard_of(query_id)]
        ids = self._client.zrange(keys.of_query(query_id, "order"), 0, -1)
        for start in range(0, len(ids), _SCAN):
            part = ids[start : start + _SCAN]
            payloads = self._client.hmget(keys.of_query(query_id, "items"), part)
            yield from ((key, payload) for key, payload in zip(part, payloads, strict=True) if payload is not None)

    def _build_indexes(self, names: Sequence[str]) -> None:
        published = self._adapters.published()
        for query_id in self.counts():
            keys = self._shards[self._shard_of(query_id)]
            given = self._client.smembers(keys.of_query(query_id, "given"))
            for key, payload in self._stored(query_id):
                item = self._decode(query_id.encode(), key, payload)
                if item is None:
                    continue
                # Of versions before the first that is known, an older amortis kept no record.
                sha256 = item.behaviour.adapter_sha256
                own = key not in given and published.get(item.behaviour.adapter_version, sha256) == sha256
                version = float(_version_score(item, own=own))
                scores = {"version": version, "loss": 0.0, "priority": self._log_reward(item)}
                for name in names:
                    self._client.zadd(keys.of_query(query_id, name), {key: scores[name]}, nx=name != "priority")

    def clear(self) -> None:
        """Delete all trajectories, counters and the quarantine; queries, adapters and control keys stay."""
        for shard in self._shards:
            delete_matching(self._client, f"{shard.prefix}*")
        for key in (self._keys.quarantine, self._keys.quarantine_count):
            self._client.unlink(key)
        self._mirror = Mirror(self._client)

    def _shard_of(self, query_id: str) -> int:
        return int(query_id[:8], 16) % len(self._shards)


def _full(n: int, share: str) -> str:
    return (
        f"Redis uses {share} of its memory limit, {n} trajectories were refused: raise its maxmemory or lower "
        "buffer.max_bytes"
    )


def _until_answered(script: Any, keys: ShardKeys, arguments: list[Any]) -> list[Any]:
    """Call a script that takes out what is stale a part at a time, until it is done."""
    while True:
        answer: list[Any] = script(keys=[keys.stats], args=[keys.prefix, *arguments])
        if answer:
            return answer[1:]


def _by_query(answer: list[Any]) -> Iterator[tuple[bytes, list[bytes], list[bytes]]]:
    for query, ids, payloads in zip(answer[::3], answer[1::3], answer[2::3], strict=True):
        yield query, [ids[i : i + _ID_BYTES] for i in range(0, len(ids), _ID_BYTES)], payloads


def _version_score(item: Trajectory, *, own: bool) -> int:
    return _VERSION_STEP * (item.behaviour.adapter_version if own and item.source in SAMPLED else _NEVER_STALE)


def _pack(value: Any) -> bytes:
    # Redis' cmsgpack knows the older string type only.
    return bytes(msgpack.packb(value, use_bin_type=False))


def _scramble(seed: int, shard: int, purpose: str) -> int:
    """31 bits for Redis' generator, whose first numbers are nearly the same for neighbouring seeds."""
    digest = hashlib.blake2b(f"{seed}:{shard}:{purpose}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1
