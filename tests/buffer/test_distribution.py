"""A million draws of each mix against the intended distribution, by chi-square."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import cache
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray
from redis import Redis

from buffer.connection import Keys
from buffer.replay import ReplayBuffer
from buffer.scripts import script_source
from common.config import BufferSection
from common.reward import RewardWeights
from common.trajectory import Trajectory
from tests.conftest import make_query, make_trajectory

WEIGHTS = RewardWeights(prior=0, likelihood=0)
DRAWS = 1_000_000
ALPHA = 1e-4
"""Chance that a right sampler fails one test; the seeds are fixed, so it doesn't flicker."""


def make_buffer(client: Redis, keys: Keys, **settings: object) -> ReplayBuffer:
    section = BufferSection.model_validate({"capacity_per_query": 10_000, "fresh": 0.0, **settings})
    return ReplayBuffer(client, keys, section, WEIGHTS)


def chi_square_quantile(p: float, freedom: int) -> float:
    """The Wilson-Hilferty approximation, good to a hundredth from 3 degrees of freedom on."""
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + NormalDist().inv_cdf(p) * spread**0.5) ** 3)


def assert_follows(counts: NDArray[np.int64], probabilities: NDArray[np.float64]) -> None:
    """Chi-square test, rare outcomes taken together; the statistic must be neither too large nor too small."""
    expected = probabilities / probabilities.sum() * counts.sum()
    order = np.argsort(expected)
    rare = order[: int(np.searchsorted(np.cumsum(expected[order]), 20.0)) + 1]
    common = np.setdiff1d(order, rare)
    found = np.append(counts[common], counts[rare].sum())
    wanted = np.append(expected[common], expected[rare].sum())
    statistic, freedom = float(((found - wanted) ** 2 / wanted).sum()), len(found) - 1
    assert freedom >= 3
    low, high = chi_square_quantile(ALPHA, freedom), chi_square_quantile(1 - ALPHA, freedom)
    assert low < statistic < high, f"{statistic:.1f} outside of {low:.1f} to {high:.1f}, {freedom} degrees of freedom"


def softmax(log_weights: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(log_weights - log_weights.max())
    return np.asarray(weights / weights.sum())


@cache
def trajectories(n: int, spread: float) -> tuple[list[Trajectory], NDArray[np.float64]]:
    """`n` of one query, with log R that spans many nats in no order."""
    rewards = np.random.default_rng(n).gumbel(size=n) * spread
    rewards = rewards.astype(np.float32).astype(np.float64)
    made = [make_trajectory(make_query(), [i], float(reward)) for i, reward in enumerate(rewards)]
    return made, rewards


@pytest.mark.parametrize(
    ("priority", "temperature", "spread"),
    [("reward", 1.0, 3.0), ("reward", 4.0, 3.0), ("loss", 1.0, 1.5), ("loss", 0.3, 1.5), ("uniform", 1.0, 3.0)],
)
def test_replay_with_replacement_follows_the_softmax(
    redis_client: Redis, keys: Keys, priority: str, temperature: float, spread: float
) -> None:
    n = 1_500
    items, rewards = trajectories(n, spread)
    buffer = make_buffer(redis_client, keys, replay_priority=priority, replay_temperature=temperature, replacement=True)
    buffer.push(items)
    scores = {"reward": rewards, "loss": np.abs(rewards[::-1]), "uniform": np.zeros(n)}[priority]
    if priority == "loss":
        buffer.update_priorities(items, scores.tolist())
    place = {item.id: i for i, item in enumerate(items)}
    per_call = 20_000
    counts: Counter[str] = Counter()
    for seed in range(DRAWS // per_call):
        ((_, ids),) = buffer.sample_ids(1, per_call, seed=seed)
        counts.update(ids)
    found = np.zeros(n, np.int64)
    for key, count in counts.items():
        found[place[key]] = count
    assert found.sum() == DRAWS
    assert_follows(found, softmax(scores / temperature))


def marginals(probabilities: NDArray[np.float64], places: int) -> NDArray[np.float64]:
    """P(item at place) of successive draws without replacement, shape (places, n), by enumeration."""
    n = len(probabilities)
    found = np.zeros((places, n))
    found[0] = probabilities
    for place in range(1, places):
        for taken in itertools.permutations(range(n), place):
            mass, left = 1.0, 1.0
            for item in taken:
                mass *= probabilities[item] / left
                left -= probabilities[item]
            rest = probabilities / left
            rest = np.where(np.isin(np.arange(n), taken), 0, rest)
            found[place] += mass * rest
    return found


@pytest.mark.parametrize(("priority", "temperature"), [("reward", 1.0), ("loss", 0.7), ("uniform", 1.0)])
def test_replay_without_replacement_draws_one_after_the_other(
    redis_client: Redis, keys: Keys, priority: str, temperature: float
) -> None:
    n, n_queries, places = 26, 400, 3
    rewards = np.random.default_rng(3).gumbel(size=n).astype(np.float32).astype(np.float64) * 1.5
    rewards = rewards.astype(np.float32).astype(np.float64)
    buffer = make_buffer(redis_client, keys, replay_priority=priority, replay_temperature=temperature)
    place: dict[str, int] = {}
    scores = {"reward": rewards, "loss": np.abs(rewards), "uniform": np.zeros(n)}[priority]
    for q in range(n_queries):
        group = [make_trajectory(make_query(1, q), [i], float(reward)) for i, reward in enumerate(rewards)]
        place |= {item.id: i for i, item in enumerate(group)}
        buffer.push(group)
        if priority == "loss":
            buffer.update_priorities(group, scores.tolist())
    calls = -(-DRAWS // (n_queries * places))
    drawn: list[str] = []
    for seed in range(calls):
        for _, ids in buffer.sample_ids(n_queries, places, seed=seed):
            assert len(set(ids)) == places
            drawn += ids
    at = np.array([place[key] for key in drawn]).reshape(-1, places)
    assert at.size >= DRAWS
    for position, expected in enumerate(marginals(softmax(scores / temperature), places)):
        assert_follows(np.bincount(at[:, position], minlength=n), expected)


def test_a_dominant_trajectory_does_not_slow_draws_down_or_hide_the_others(redis_client: Redis, keys: Keys) -> None:
    buffer = make_buffer(redis_client, keys)
    items = [make_trajectory(make_query(), [i], 0.0 if i else 60.0) for i in range(3_000)]
    buffer.push(items)
    counts: Counter[str] = Counter()
    for seed in range(300):
        ((_, ids),) = buffer.sample_ids(1, 10, seed=seed)
        assert ids[0] == items[0].id and len(set(ids)) == 10
        counts.update(ids[1:])
    assert len(counts) > 1_500, "the others are drawn uniformly"


@pytest.mark.parametrize(("temperature", "best"), [(1.0, 60.0), (0.1, 80.0), (1.0, 800.0)])
def test_however_far_the_best_is_above_the_others_keep_their_weights(
    redis_client: Redis, keys: Keys, temperature: float, best: float
) -> None:
    n, places = 200, 4
    scores = np.append(best, np.linspace(0, 3 * temperature, n))
    buffer = make_buffer(redis_client, keys, replay_temperature=temperature)
    place: dict[str, int] = {}
    for q in range(400):
        group = [make_trajectory(make_query(1, q), [i], float(score)) for i, score in enumerate(scores)]
        place |= {item.id: i for i, item in enumerate(group)}
        buffer.push(group)
    drawn = [ids for seed in range(20) for _, ids in buffer.sample_ids(400, places, seed=seed)]
    at = np.array([[place[key] for key in ids] for ids in drawn])
    assert (at[:, 0] == 0).all()
    # The stored weights are of single precision.
    of_others = softmax(scores[1:].astype(np.float32).astype(np.float64) / temperature)
    for position, expected in enumerate(marginals(of_others, places - 1)):
        assert_follows(np.bincount(at[:, position + 1] - 1, minlength=n), expected)


@pytest.mark.parametrize("worst", [-1e17, -1e30])
@pytest.mark.parametrize("others", [3, 200])
def test_among_equals_of_a_weight_that_leaves_nothing_else_of_a_number_chance_decides(
    redis_client: Redis, keys: Keys, worst: float, others: int
) -> None:
    buffer = make_buffer(redis_client, keys)
    items = [make_trajectory(make_query(), [i], worst if i else 0.0) for i in range(others + 1)]
    buffer.push(items)
    second: Counter[str] = Counter()
    for seed in range(100 * others):
        ((_, ids),) = buffer.sample_ids(1, 3, seed=seed)
        assert ids[0] == items[0].id and len(set(ids)) == 3
        second[ids[1]] += 1
    assert len(second) == others and min(second.values()) > 60


@pytest.mark.parametrize(("selection", "temperature"), [("uniform", 1.0), ("loss", 1.0), ("loss", 3.0)])
@pytest.mark.parametrize("shards", [1, 3])
def test_queries_are_chosen_one_after_the_other_by_their_weights(
    redis_client: Redis, keys: Keys, selection: str, temperature: float, shards: int
) -> None:
    n, calls = 40, 4_000
    buffer = make_buffer(
        redis_client, keys, query_selection=selection, query_temperature=temperature, shards=shards, fresh=1.0
    )
    losses = np.abs(np.random.default_rng(5).normal(size=n)) * 2
    items = [make_trajectory(make_query(1, q), [1]) for q in range(n)]
    buffer.push(items)
    buffer.update_priorities(items, losses.tolist())
    place = {item.query_id: q for q, item in enumerate(items)}
    counts = np.zeros(n, np.int64)
    for seed in range(calls):
        ((query, _),) = buffer.sample_ids(1, 1, seed=seed)
        counts[place[query]] += 1
    scores = np.zeros(n) if selection == "uniform" else losses / temperature
    assert_follows(counts, softmax(scores))


LOOP = """
local places, races, beta = 3, tonumber(ARGV[2]), tonumber(ARGV[3])
math.randomseed(tonumber(ARGV[1]))
local found = {}
for i = 1, races do
  local members = race(KEYS[1], places, beta, {}, 0)
  for j = 1, places do found[#found + 1] = members[j] end
end
return table.concat(found)
"""


@pytest.mark.parametrize(("index", "beta"), [("queries:loss", 1.0), ("queries:loss", 0.4), ("queries", 0.0)])
def test_a_million_queries_are_chosen_one_after_the_other(
    redis_client: Redis, keys: Keys, index: str, beta: float
) -> None:
    n, places, races = 30, 3, 10_000
    losses = np.random.default_rng(6).gumbel(size=n).clip(0) * 2
    items = [make_trajectory(make_query(1, q), [1]) for q in range(n)]
    buffer = make_buffer(redis_client, keys)
    buffer.push(items)
    buffer.update_priorities(items, losses.tolist())
    # The same function that chooses queries, many times in one script.
    script = redis_client.register_script(f"{script_source('race')}\n{LOOP}")
    place = {item.query_id: q for q, item in enumerate(items)}
    counts = np.zeros((places, n), np.int64)
    for seed in range(-(-DRAWS // (places * races))):
        chosen = script(keys=[f"{keys.shard(0).prefix}{index}"], args=[seed * 7919 + 1, races, beta]).decode()
        drawn = np.array([place[chosen[i : i + 32]] for i in range(0, len(chosen), 32)]).reshape(-1, places)
        for position in range(places):
            counts[position] += np.bincount(drawn[:, position], minlength=n)
    assert counts.sum() >= DRAWS
    for found, expected in zip(counts, marginals(softmax(losses * beta), places), strict=True):
        assert_follows(found, expected)


def test_the_least_recently_trained_queries_come_first(redis_client: Redis, keys: Keys) -> None:
    for shards in (1, 3):
        redis_client.flushall()
        buffer = make_buffer(redis_client, keys, query_selection="least_recently_trained", shards=shards, fresh=1.0)
        items = {make_query(1, q).id: make_trajectory(make_query(1, q), [1]) for q in range(12)}
        buffer.push(list(items.values()))
        seen: list[str] = []
        for seed in range(3):
            chosen = [query for query, _ in buffer.sample_ids(4, 1, seed=seed)]
            buffer.update_priorities([items[query] for query in chosen], [1.0] * 4)
            seen += chosen
        assert sorted(seen) == sorted(items), "each once before any twice"
        assert {query for query, _ in buffer.sample_ids(4, 1, seed=9)} == set(seen[:4])


@pytest.mark.parametrize("priority", ["reward", "loss", "uniform"])
@pytest.mark.parametrize(("fresh", "per_query", "n_fresh"), [(0.5, 7, 4), (0.25, 8, 2), (0.0, 5, 0), (1.0, 5, 5)])
def test_the_fresh_share_is_exact(
    redis_client: Redis, keys: Keys, priority: str, fresh: float, per_query: int, n_fresh: int
) -> None:
    buffer = make_buffer(redis_client, keys, replay_priority=priority, fresh=fresh)
    items = [make_trajectory(make_query(), [i], float(i % 7)) for i in range(100)]
    for item in items:
        buffer.push([item])
    newest = [item.id for item in reversed(items)][:n_fresh]
    for seed in range(100):
        ((_, ids),) = buffer.sample_ids(1, per_query, seed=seed)
        assert ids[:n_fresh] == newest and len(set(ids)) == per_query
