"""Near-duplicates by edit distance: the pure rule, and the buffer that applies it under concurrent writers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein
from redis import Redis

from buffer.connection import Keys, connect
from buffer.near_duplicates import Known, as_letters, screen
from buffer.replay import ReplayBuffer
from common.config import BufferSection, RedisSection
from common.reward import RewardWeights
from tests.conftest import make_query, make_trajectory

WEIGHTS = RewardWeights(prior=0, likelihood=0)


def known(*actions: int, reward: float) -> Known:
    return Known(as_letters(np.array(actions, np.int32)), reward)


def test_the_better_of_two_near_duplicates_stays_and_others_are_left_alone() -> None:
    stored = {b"a": known(1, 2, 3, 4, 5, reward=0.0), b"z": known(9, 9, 9, 9, 9, reward=-9.0)}
    better = screen(stored, [(b"b", known(1, 2, 3, 4, 6, reward=1.0))], 0.25)
    assert (better.kept, better.replaced) == ([0], [b"a"])
    worse = screen(stored, [(b"b", known(1, 2, 3, 4, 6, reward=-1.0))], 0.25)
    assert (worse.kept, worse.replaced) == ([], [])
    far = screen(stored, [(b"b", known(5, 4, 3, 2, 1, reward=-1.0))], 0.25)
    assert (far.kept, far.replaced) == ([0], [])


def test_the_distance_must_be_below_the_share_of_both_lengths() -> None:
    stored = {b"a": known(1, 2, 3, 4, reward=0.0)}
    new = [(b"b", known(1, 2, 5, 6, reward=1.0))]
    assert screen(stored, new, 0.25).replaced == [], "a distance of 2 is not below 0.25 × 8"
    assert screen(stored, new, 0.26).replaced == [b"a"]


def test_a_trajectory_that_is_stored_already_is_no_near_duplicate_of_itself() -> None:
    stored = {b"a": known(1, 2, 3, reward=0.0)}
    assert screen(stored, [(b"a", known(1, 2, 3, reward=0.0))], 0.4).kept == [0]


sequences = st.lists(st.integers(0, 3), max_size=8)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(sequences, st.integers(-5, 5)), max_size=4),
    st.lists(st.tuples(sequences, st.integers(-5, 5)), max_size=6),
    st.floats(0, 0.49),
)
def test_screening_follows_the_rule_one_trajectory_at_a_time(
    old: list[tuple[list[int], int]], new: list[tuple[list[int], int]], tolerance: float
) -> None:
    store = {bytes([i]): known(*actions, reward=reward) for i, (actions, reward) in enumerate(old)}
    fresh = [(bytes([100 + i]), known(*actions, reward=reward)) for i, (actions, reward) in enumerate(new)]
    alive = dict(store)
    for key, item in fresh:
        near = [
            other
            for other, there in alive.items()
            if Levenshtein.distance(item.letters, there.letters) < tolerance * (len(item.letters) + len(there.letters))
        ]
        if any(alive[other].log_reward >= item.log_reward for other in near):
            continue
        for other in near:
            del alive[other]
        alive[key] = item
    found = screen(store, fresh, tolerance)
    assert {fresh[i][0] for i in found.kept} | (store.keys() - set(found.replaced)) == alive.keys()


def make_buffer(client: Redis, keys: Keys, **settings_: object) -> ReplayBuffer:
    section = BufferSection.model_validate(settings_)
    return ReplayBuffer(client, keys, section, WEIGHTS, near_duplicate_tolerance=0.25)


def test_the_buffer_keeps_the_better_near_duplicate_and_counts_the_other(redis_client: Redis, keys: Keys) -> None:
    buffer, query = make_buffer(redis_client, keys), make_query()
    buffer.push([make_trajectory(query, [1, 2, 3, 4], -1.0), make_trajectory(query, [9, 9, 9, 9], -5.0)])
    assert buffer.push([make_trajectory(query, [1, 2, 3, 5], -2.0)]).near_duplicates == 1
    result = buffer.push([make_trajectory(query, [1, 2, 3, 6], 0.0)])
    assert (result.added, result.evicted) == (1, 1)
    kept = {tuple(item.action_ids.tolist()) for item in buffer}
    assert kept == {(1, 2, 3, 6), (9, 9, 9, 9)}
    stats = buffer.stats()
    assert (stats.size, stats.near_duplicates, stats.pushed, stats.evicted) == (2, 1, 4, 1)


def test_near_duplicates_of_another_query_stay(redis_client: Redis, keys: Keys) -> None:
    buffer = make_buffer(redis_client, keys)
    buffer.push([make_trajectory(make_query(q), [1, 2, 3, 4], 0.0) for q in range(5)])
    assert buffer.stats().size == 5


def test_concurrent_writers_leave_no_two_near_duplicates(redis_client: Redis, redis_url: str, keys: Keys) -> None:
    def write(worker: int) -> None:
        client = connect(RedisSection(), redis_url)
        buffer = make_buffer(client, keys)
        rng = np.random.default_rng(worker)
        for _ in range(20):
            actions = [int(x) for x in rng.integers(0, 3, 6)]
            buffer.push([make_trajectory(make_query(), actions, float(rng.normal()))])
        client.close()

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(write, worker) for worker in range(4)]:
            future.result()
    buffer = make_buffer(redis_client, keys)
    kept = [as_letters(item.action_ids) for item in buffer]
    near = [
        (a, b) for i, a in enumerate(kept) for b in kept[:i] if Levenshtein.distance(a, b) < 0.25 * (len(a) + len(b))
    ]
    assert len(kept) > 3 and near == []
    stats = buffer.stats()
    assert stats.pushed == 80 and stats.size == len(kept)
