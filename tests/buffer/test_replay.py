"""The replay buffer on a real Redis: push, duplicates, sampling, eviction, quarantine."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from redis import Redis

from buffer.connection import Keys, connect
from buffer.control import Control
from buffer.embedded import EmbeddedRedis
from buffer.replay import ITEM_OVERHEAD_BYTES, BufferFull, ReplayBuffer
from common.config import BufferSection, RedisSection
from common.errors import UserError
from common.reward import RewardWeights
from tests.conftest import make_query, make_trajectory

WEIGHTS = RewardWeights(prior=0, likelihood=0)


def make_buffer(client: Redis, keys: Keys, **settings: object) -> ReplayBuffer:
    return ReplayBuffer(client, keys, BufferSection.model_validate(settings), WEIGHTS)


def test_what_is_pushed_is_sampled_back_whole(redis_client: Redis, keys: Keys) -> None:
    buffer = make_buffer(redis_client, keys)
    pushed = [make_trajectory(make_query(1, i), [i, 3], -float(i)) for i in range(4)]
    assert buffer.push(pushed).added == 4
    drawn = buffer.sample(4, 3, seed=0)
    assert sorted(item.to_bytes() for item in drawn) == sorted(item.to_bytes() for item in pushed)


def test_a_duplicate_is_kept_once_with_the_newer_behaviour_and_becomes_the_newest(
    redis_client: Redis, keys: Keys
) -> None:
    buffer, query = make_buffer(redis_client, keys, fresh=1.0), make_query()
    buffer.push([make_trajectory(query, [i], version=1) for i in range(5)])
    result = buffer.push([make_trajectory(query, [0], version=2)])
    assert (result.added, result.duplicates) == (0, 1)
    assert buffer.stats().size == 5 and buffer.stats().pushed == 6 and buffer.stats().duplicates == 1
    newest = buffer.sample(1, 1, seed=0)[0]
    assert newest.action_ids.tolist() == [0] and newest.behaviour.adapter_version == 2


@pytest.mark.parametrize("shards", [1, 3])
def test_the_best_of_each_query_that_is_asked_for_come_the_best_first(
    redis_client: Redis, keys: Keys, shards: int
) -> None:
    buffer = make_buffer(redis_client, keys, shards=shards, replay_priority="loss")
    queries = [make_query(i) for i in range(5)]
    buffer.push([make_trajectory(query, [i, 3], -float((i * 3) % 7)) for query in queries for i in range(7)])
    unknown = make_query(9)
    found = buffer.best_of([queries[1].id, unknown.id, queries[4].id], 3)
    assert list(found) == [queries[1].id, queries[4].id]
    for query_id, group in found.items():
        assert {item.query_id for item in group} == {query_id}
        assert [float(item.log_constraint[-1]) for item in group] == [0.0, -1.0, -2.0]


@pytest.mark.parametrize(("policy", "kept"), [("lowest_reward", {0, 3, 4}), ("oldest", {0, 1, 2})])
def test_a_full_query_evicts_by_policy(redis_client: Redis, keys: Keys, policy: str, kept: set[int]) -> None:
    buffer = make_buffer(redis_client, keys, capacity_per_query=3, evict=policy)
    for i in (4, 3, 2, 1, 0):
        buffer.push([make_trajectory(make_query(), [i], float(i))])
    assert {item.action_ids.item() for item in buffer.sample(1, 9, seed=0)} == kept
    assert buffer.stats().evicted == 2


def test_the_global_bound_evicts_from_the_query_that_holds_most(redis_client: Redis, keys: Keys) -> None:
    buffer, small = make_buffer(redis_client, keys, capacity=6), make_query(9, 9)
    buffer.push([make_trajectory(small, [1])])
    buffer.push([make_trajectory(make_query(), [i], float(i)) for i in range(9)])
    drawn = Counter(item.query_id for item in buffer.sample(2, 99, seed=0))
    assert drawn == {small.id: 1, make_query().id: 5}
    assert buffer.stats().size == 6


def test_the_fresh_share_is_exactly_the_newest_and_the_rest_is_not_among_them(redis_client: Redis, keys: Keys) -> None:
    buffer = make_buffer(redis_client, keys, fresh=0.5)
    buffer.push([make_trajectory(make_query(), [i]) for i in range(40)])
    for seed in range(20):
        ids = [item.action_ids.item() for item in buffer.sample(1, 7, seed=seed)]
        assert ids[:4] == [39, 38, 37, 36], "half of 7, rounded up"
        assert len(set(ids)) == 7


def test_replay_by_reward_follows_the_softmax_of_log_reward(redis_client: Redis, keys: Keys) -> None:
    buffer = make_buffer(redis_client, keys, fresh=0.0, replay_temperature=2.0)
    rewards = np.array([0.0, -1.0, -2.0, -4.0])
    buffer.push([make_trajectory(make_query(), [i], reward) for i, reward in enumerate(rewards)])
    draws = 4_000
    counts = Counter(buffer.sample(1, 1, seed=seed)[0].action_ids.item() for seed in range(draws))
    expected = np.exp(rewards / 2) / np.exp(rewards / 2).sum() * draws
    found = np.array([counts[i] for i in range(4)])
    # The 99.9% point of chi-square with 3 degrees of freedom; seeds are fixed, so this can't flicker.
    assert ((found - expected) ** 2 / expected).sum() < 16.27


def test_uniform_replay_ignores_reward_and_queries_are_drawn_uniformly(redis_client: Redis, keys: Keys) -> None:
    buffer = make_buffer(redis_client, keys, fresh=0.0, replay_priority="uniform")
    for q in range(3):
        buffer.push([make_trajectory(make_query(1, q), [i], -9.0 * i) for i in range(2 + q)])
    draws = 3_000
    drawn = [buffer.sample(1, 1, seed=seed)[0] for seed in range(draws)]
    by_query = np.array(list(Counter(item.query_id for item in drawn).values()))
    assert len(by_query) == 3 and ((by_query - draws / 3) ** 2 / (draws / 3)).sum() < 13.82
    last = [item.action_ids.item() for item in drawn if item.query_id == make_query(1, 0).id]
    assert abs(np.mean(last) - 0.5) < 4 * 0.5 / np.sqrt(len(last))


def test_the_same_seed_gives_the_same_sample_and_another_another(redis_client: Redis, keys: Keys) -> None:
    buffer = make_buffer(redis_client, keys, fresh=0.0)
    for q in range(10):
        buffer.push([make_trajectory(make_query(1, q), [i]) for i in range(20)])

    def draw(seed: int) -> list[str]:
        return [item.id for item in buffer.sample(3, 5, seed=seed)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_concurrent_writers_never_break_the_bounds_or_lose_count(
    redis_client: Redis, redis_url: str, keys: Keys
) -> None:
    bounds = {"capacity": 50, "capacity_per_query": 20}

    def write(worker: int) -> None:
        own = connect(RedisSection(), redis_url)
        buffer = make_buffer(own, keys, **bounds)
        for i in range(40):
            buffer.push([make_trajectory(make_query(1, i % 7), [worker, i, j], float(j)) for j in range(4)])
        own.close()

    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(write, worker) for worker in range(8)]
        buffer = make_buffer(redis_client, keys, **bounds)
        while not all(future.done() for future in done):
            assert buffer.stats().size <= 50
            largest = redis_client.zrange(keys.shard(0).queries, -1, -1, withscores=True)
            assert all(count <= 20 for _, count in largest)
        for future in done:
            future.result()
    stats = buffer.stats()
    assert stats.pushed == 8 * 40 * 4 == stats.added + stats.duplicates
    assert stats.size == stats.added - stats.evicted == len(buffer.sample(99, 99, seed=0))


def test_a_corrupted_entry_is_quarantined_with_its_reason_and_the_rest_is_served(
    redis_client: Redis, keys: Keys
) -> None:
    buffer = make_buffer(redis_client, keys)
    good, bad = make_trajectory(make_query(), [1]), make_trajectory(make_query(), [2])
    buffer.push([good, bad])
    redis_client.hset(keys.shard(0).of_query(bad.query_id, "items"), bytes.fromhex(bad.id), bad.to_bytes()[:-1])
    assert [item.id for item in buffer.sample(1, 5, seed=0)] == [good.id]
    assert [item.id for item in buffer.sample(1, 5, seed=0)] == [good.id]
    (found,) = buffer.quarantine.newest()
    assert "bytes" in found.reason and bad.query_id in found.origin and found.payload == bad.to_bytes()[:-1]
    assert buffer.stats().quarantined == 1 and buffer.stats().size == 1


def test_a_rejected_trajectory_is_out_of_the_buffer_and_in_the_quarantine(redis_client: Redis, keys: Keys) -> None:
    buffer = make_buffer(redis_client, keys)
    good, bad = make_trajectory(make_query(), [1]), make_trajectory(make_query(9), [2])
    buffer.push([good, bad])
    buffer.reject(bad, "forbidden tokens [2]")
    assert [item.id for item in buffer.sample(5, 5, seed=0)] == [good.id]
    (found,) = buffer.quarantine.newest()
    assert (found.reason, found.origin) == ("forbidden tokens [2]", "actor-0")
    assert buffer.stats().size == 1


def test_queries_are_kept_beside_their_trajectories(redis_client: Redis, keys: Keys) -> None:
    buffer, query = make_buffer(redis_client, keys), make_query(5, 6)
    buffer.put_queries([query])
    assert buffer.queries()[query.id].prompt_ids.tolist() == [5, 6]
    with pytest.raises(KeyError, match="not in the buffer"):
        buffer.queries(["0" * 32])


def test_queries_with_large_rows_go_in_several_commands(
    redis_client: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buffer.replay._QUERY_BYTES", 50_000)
    buffer = make_buffer(redis_client, keys)
    redis_client.config_resetstat()
    queries = [make_query(i).model_copy(update={"row": {"text": "x" * 20_000}}) for i in range(1, 10)]
    buffer.put_queries(queries)
    assert {key: query.row for key, query in buffer.queries().items()} == {query.id: query.row for query in queries}
    assert redis_client.info("commandstats")["cmdstat_hset"]["calls"] == 3


def test_an_unreachable_server_is_one_line_without_the_password() -> None:
    section = RedisSection.model_validate({"url": "redis://me:hunter2@127.0.0.1:1/0", "timeout_s": 1, "retries": 0})
    with pytest.raises(UserError, match=r"redis\.url = 'redis://127\.0\.0\.1:1/0': no Redis server") as caught:
        connect(section)
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_full_redis_refuses_clearly_keeps_what_it_has_and_leaves_room_for_control(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pushes are not waited for: what they bring makes a writer look, not the clock.
    monkeypatch.setattr("buffer.replay._LOOK_AT_MEMORY_S", 3600.0)
    with EmbeddedRedis(tmp_path, options={"maxmemory": 6 * 2**20}) as server:
        client, keys = connect(RedisSection(), server.url), Keys("full")
        buffer = make_buffer(client, keys)
        pushed = 0
        refused = r"Redis uses 9[0-6]% of its memory limit, 20 trajectories were refused"
        with pytest.raises(BufferFull, match=refused):
            for i in range(2_000):
                buffer.push([make_trajectory(make_query(1, i), [i, j], 0.0) for j in range(20)])
                pushed += 20
        assert 1_000 < pushed == buffer.stats().size == buffer.stats().pushed
        Control(client, keys).heartbeat("actor-0", {"phase": "waiting"})
        assert len(buffer.sample(5, 5, seed=0)) == 25
        buffer.clear()
        assert buffer.push([make_trajectory(make_query(), [1])]).added == 1


def test_the_byte_bound_holds_evicts_and_refuses_only_what_can_never_fit(redis_client: Redis, keys: Keys) -> None:
    one = len(make_trajectory(make_query(), [1, 2]).to_bytes()) + ITEM_OVERHEAD_BYTES
    buffer = make_buffer(redis_client, keys, max_bytes=4 * one)
    for i in range(9):
        buffer.push([make_trajectory(make_query(1, i % 3), [i, 2], float(i))])
        assert buffer.stats().bytes <= 4 * one
    large = make_trajectory(make_query(), list(range(4 * one // 4)), 99.0)
    assert buffer.push([large]).refused == 1
    stats = buffer.stats()
    assert (stats.size, stats.bytes, stats.evicted, stats.refused) == (4, 4 * one, 5, 1)


def test_the_estimate_of_memory_covers_what_redis_uses(redis_client: Redis, keys: Keys) -> None:
    buffer = make_buffer(redis_client, keys, replay_priority="loss", evict="stalest", capacity_per_query=10_000)
    before = redis_client.info("memory")["used_memory_dataset"]
    for start in range(0, 8_000, 500):
        buffer.push([make_trajectory(make_query(), [i, *range(30)], float(i)) for i in range(start, start + 500)])
    used = redis_client.info("memory")["used_memory_dataset"] - before
    assert 0.6 < used / buffer.stats().bytes < 1.15, "with all indexes in use"


def test_what_lags_too_far_behind_is_taken_out_and_seeds_never(redis_client: Redis, keys: Keys) -> None:
    buffer = make_buffer(redis_client, keys, max_staleness=2)
    query = make_query()
    buffer.push([make_trajectory(query, [version], version=version) for version in range(1, 8)])
    buffer.push([make_trajectory(query, [99], version=0, source="seed")], from_actor=False)
    drawn = buffer.sample(1, 99, seed=0, version=7)
    assert sorted(item.action_ids.item() for item in drawn) == [5, 6, 7, 99]
    stats = buffer.stats()
    assert (stats.size, stats.expired, stats.pushed, stats.seeded) == (4, 4, 7, 1)


def test_a_seed_that_an_adapter_samples_too_stays_one(redis_client: Redis, keys: Keys) -> None:
    buffer, query = make_buffer(redis_client, keys, max_staleness=5), make_query()
    buffer.push([make_trajectory(query, [i], version=0, source="seed") for i in (3, 4)], from_actor=False)
    buffer.push([make_trajectory(query, [i], version=1) for i in (3, 5)])
    assert sorted(item.action_ids.item() for item in buffer.sample(1, 9, seed=0, version=100)) == [3, 4]


@pytest.mark.parametrize("order", [("seed", "policy"), ("policy", "seed"), ("policy", "seed", "policy")])
def test_what_is_both_a_seed_and_a_sample_of_one_push_stays_a_seed(
    redis_client: Redis, keys: Keys, order: tuple[str, ...]
) -> None:
    buffer, query = make_buffer(redis_client, keys, max_staleness=5), make_query()
    buffer.push([make_trajectory(query, [3], version=1, source=source) for source in order])
    buffer.push([make_trajectory(query, [i], version=1) for i in (3, 4)])
    assert [item.action_ids.item() for item in buffer.sample(1, 9, seed=0, version=100)] == [3]


def test_a_seed_that_was_sampled_too_stays_one_where_a_bound_of_staleness_comes_later(
    redis_client: Redis, keys: Keys
) -> None:
    buffer, query = make_buffer(redis_client, keys), make_query()
    buffer.open()
    buffer.push([make_trajectory(query, [i], version=0, source="seed") for i in (3, 4)], from_actor=False)
    buffer.push([make_trajectory(query, [i], version=1) for i in (3, 5)])
    bounded = make_buffer(redis_client, keys, max_staleness=5)
    bounded.open()
    assert sorted(item.action_ids.item() for item in bounded.sample(1, 9, seed=0, version=100)) == [3, 4]


def test_a_buffer_that_is_stale_through_and_through_gives_nothing(redis_client: Redis, keys: Keys) -> None:
    buffer = make_buffer(redis_client, keys, max_staleness=0, capacity_per_query=10_000)
    buffer.push([make_trajectory(make_query(1, i % 3), [i], version=1) for i in range(5_000)])
    assert buffer.sample(2, 8, seed=0, version=9) == []
    assert buffer.stats().size == 0 and buffer.stats().expired == 5_000


@pytest.mark.parametrize(("change", "field"), [({"shards": 4}, "buffer.shards"), ({}, "buffer")])
def test_a_buffer_of_another_format_or_layout_is_refused(
    redis_client: Redis, keys: Keys, change: dict[str, int], field: str
) -> None:
    make_buffer(redis_client, keys).open()
    if not change:
        redis_client.hset(keys.buffer_meta, "format", 99)
    with pytest.raises(UserError, match=rf"^{re.escape(field)}.*(format 99|has 1).*export") as caught:
        make_buffer(redis_client, keys, **change).open()
    assert caught.value.field == field


def test_priorities_that_are_no_sizes_are_refused(redis_client: Redis, keys: Keys) -> None:
    buffer, item = make_buffer(redis_client, keys), make_trajectory(make_query(), [1])
    for bad in ([float("nan")], [-1.0], [float("inf")], [1.0, 2.0]):
        with pytest.raises(ValueError, match="finite priorities"):
            buffer.update_priorities([item], bad)


def test_stored_rewards_are_those_of_the_weights_that_it_is_opened_with(redis_client: Redis, keys: Keys) -> None:
    section = BufferSection(capacity_per_query=2, fresh=0.0)
    items = [
        make_trajectory(make_query(), [i], log_constraint).model_copy(
            update={"log_prior": np.array([0.0, log_prior], np.float32)}
        )
        for i, (log_prior, log_constraint) in enumerate([(-10.0, 0.0), (-1.0, -5.0)])
    ]
    first = ReplayBuffer(redis_client, keys, section, RewardWeights())
    first.open()
    first.push(items)
    assert [item.action_ids.item() for item in first.top(2, "best")] == [1, 0]
    other = ReplayBuffer(redis_client, keys, section, RewardWeights(prior=0.0))
    other.open()
    assert [item.action_ids.item() for item in other.top(2, "best")] == [0, 1]
    assert {item.action_ids.item() for item in (other.sample(1, 1, seed=i)[0] for i in range(50))} == {0}


def test_an_index_that_a_new_configuration_needs_is_made_from_what_is_stored(redis_client: Redis, keys: Keys) -> None:
    buffer = make_buffer(redis_client, keys)
    buffer.open()
    buffer.push([make_trajectory(make_query(), [i], float(i), version=i) for i in range(6)])
    other = make_buffer(redis_client, keys, replay_priority="loss", max_staleness=2, fresh=0.0)
    other.open()
    assert {item.action_ids.item() for item in other.sample(1, 9, seed=0, version=5)} == {3, 4, 5}
