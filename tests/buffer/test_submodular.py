"""A choice of what is replayed: near the best there is, and a wider one than reward alone would make."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis import Redis

from buffer.connection import Keys
from buffer.replay import ReplayBuffer
from buffer.submodular import _quality, choose, similarity, worth
from common.config import BufferSection
from common.reward import RewardWeights
from common.trajectory import Trajectory
from tests.conftest import make_query, make_trajectory

QUERY = make_query(1, 2)
WEIGHTS = RewardWeights(prior=0, likelihood=0)


def made(actions: list[int], log_reward: float = 0.0) -> Trajectory:
    plain = make_trajectory(QUERY, actions)
    return plain.model_copy(update={"log_constraint": np.full(len(actions) + 1, log_reward, np.float32)})


TEXTS = st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=4), min_size=2, max_size=7)


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.integers(1, 4), st.integers(0, 1))
def test_the_choice_adds_at_least_63_percent_of_what_the_best_one_does(
    texts: list[list[int]], n: int, kept: int
) -> None:
    items = [made(text) for text in texts]
    rewards = [float(value) for value in np.random.default_rng(len(texts)).normal(size=len(items))]
    quality, alike, lengths = _quality(rewards), similarity(items), np.array([len(text) for text in texts])
    chosen = choose(items, rewards, kept, n)
    assert chosen[:kept] == list(range(kept)) and len(set(chosen)) == len(chosen) == max(kept, min(n, len(items)))

    def added(subset: tuple[int, ...]) -> float:
        first = list(range(kept))
        return worth([*first, *subset], quality, alike, lengths) - worth(first, quality, alike, lengths)

    others, more = range(kept, len(items)), max(0, min(n, len(items)) - kept)
    best = max(added(subset) for subset in itertools.combinations(others, more))
    assert added(tuple(chosen[kept:])) >= (1 - 1 / math.e) * best - 1e-9


@settings(deadline=None, max_examples=60)
@given(TEXTS, st.data())
def test_worth_grows_with_each_and_the_less_the_more_there_are(texts: list[list[int]], data: st.DataObject) -> None:
    items = [made(text) for text in texts]
    quality = _quality([float(len(text)) for text in texts])
    alike, lengths = similarity(items), np.array([len(text) for text in texts])
    order = data.draw(st.permutations(range(len(items))))
    new, *rest = order
    small = data.draw(st.integers(0, len(rest)))
    few, many = rest[:small], rest
    gains = [
        worth([*some, new], quality, alike, lengths) - worth(some, quality, alike, lengths) for some in (few, many)
    ]
    assert gains[0] >= gains[1] - 1e-9 and gains[1] >= -1e-9


def test_of_equal_rewards_the_unlike_and_those_of_other_lengths_come_first() -> None:
    items = [made([3, 3, 3, 3]), made([3, 3, 3, 4]), made([3, 3, 4, 3]), made([9, 8, 7]), made([5])]
    assert set(choose(items, [0.0] * 5, 0, 3)) >= {3, 4}


def test_a_higher_reward_decides_between_the_equally_different() -> None:
    items = [made([3, 3]), made([4, 4]), made([5, 5])]
    assert choose(items, [-5.0, -1.0, -3.0], 0, 1) == [1]


def test_the_buffer_gives_the_newest_and_chooses_the_rest_among_more(redis_client: Redis, keys: Keys) -> None:
    def buffer_of(choice: str) -> ReplayBuffer:
        given = {"replay_choice": choice, "fresh": 0.25, "replay_priority": "reward"}
        return ReplayBuffer(redis_client, keys, BufferSection.model_validate(given), WEIGHTS)

    buffer = buffer_of("submodular")
    buffer.open()
    buffer.put_queries([QUERY])
    # Most reward, and all alike; then some that differ.
    same = [made([3, 3, 3, 3, 3, 3, token], 0.0) for token in range(4, 24)]
    other = [made([token, token + 1, token + 2][: 1 + token % 3], -2.0) for token in range(30, 42)]
    newest = made([50, 51], -9.0)
    buffer.push([*same, *other, newest])

    def beginnings(of: ReplayBuffer) -> float:
        drawn = [of.sample(1, 8, seed=seed) for seed in range(20)]
        assert all(len(batch) == 8 and len({item.id for item in batch}) == 8 for batch in drawn)
        assert all(newest.id in {item.id for item in batch[:2]} for batch in drawn)
        return float(np.mean([len({int(item.action_ids[0]) for item in batch}) for batch in drawn]))

    plain = beginnings(buffer_of("drawn"))
    assert beginnings(buffer) > 1.5 * plain


@pytest.mark.parametrize("size", [1, 3])
def test_a_buffer_that_holds_fewer_gives_all(redis_client: Redis, keys: Keys, size: int) -> None:
    buffer = ReplayBuffer(redis_client, keys, BufferSection.model_validate({"replay_choice": "submodular"}), WEIGHTS)
    buffer.open()
    buffer.put_queries([QUERY])
    buffer.push([made([token]) for token in range(3, 3 + size)])
    assert len(buffer.sample(1, 8, seed=0)) == size
