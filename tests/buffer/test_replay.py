"""The replay buffer on a real Redis: push, duplicates, sampling, eviction, quarantine."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from redis import Redis

from buffer.connection import Keys, connect
from buffer.replay import ReplayBuffer
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


@pytest.mark.parametrize(("policy", "kept"), [("lowest_reward", {2, 3, 4}), ("oldest", {0, 1, 2})])
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


def test_an_unreachable_server_is_one_line_without_the_password() -> None:
    section = RedisSection.model_validate({"url": "redis://me:hunter2@127.0.0.1:1/0", "timeout_s": 1, "retries": 0})
    with pytest.raises(UserError, match=r"redis\.url = 'redis://127\.0\.0\.1:1/0': no Redis server") as caught:
        connect(section)
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)
