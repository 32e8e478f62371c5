"""Who waits for whom, on a grid of counters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buffer.rate_limiter import RateLimiter
from common.config import RunConfig

LIMITER = RateLimiter(min_size=10, samples_per_insert=3.0, band=1.0, slack=50)


def test_sampling_waits_for_the_minimum_size_whether_pushed_or_seeded() -> None:
    assert not LIMITER.may_sample(size=0, inserted=0, seeded=0, sampled=0)
    assert not LIMITER.may_sample(size=9, inserted=9, seeded=0, sampled=0)
    assert LIMITER.may_sample(size=10, inserted=10, seeded=0, sampled=0)
    assert LIMITER.may_sample(size=10, inserted=0, seeded=10, sampled=0)
    assert LIMITER.may_sample(size=3, inserted=10, seeded=0, sampled=0), "ten pushes of three different trajectories"


def test_the_learner_waits_above_the_band_and_actors_below_it() -> None:
    assert LIMITER.may_sample(size=100, inserted=100, seeded=0, sampled=400)
    assert not LIMITER.may_sample(size=100, inserted=100, seeded=0, sampled=401)
    assert LIMITER.may_insert(size=100, inserted=100, sampled=150)
    assert not LIMITER.may_insert(size=100, inserted=100, sampled=149)


def test_a_band_as_wide_as_the_ratio_never_makes_actors_wait() -> None:
    assert RateLimiter(1, 2.0, 2.0, slack=1).may_insert(size=1, inserted=10**9, sampled=0)


@given(
    st.integers(1, 100),
    st.floats(0, 8),
    st.floats(0, 8),
    st.integers(0, 500),
    st.integers(0, 500),
    st.integers(0, 10_000),
    st.integers(0, 1_000),
)
def test_learner_and_actors_never_wait_for_each_other(
    min_size: int, ratio: float, band: float, inserted: int, seeded: int, sampled: int, gone: int
) -> None:
    if ratio + band < 1:
        with pytest.raises(ValueError, match="stop each other"):
            RateLimiter(min_size, ratio, band, slack=min_size * 10)
        return
    # The free inserts reach the minimum size, however many samples one insert stands for.
    slack = min_size * max(1.0, ratio)
    limiter = RateLimiter(min_size, ratio, band, slack)
    # What is gone went stale, or was put out by others.
    size = max(0, inserted + seeded - gone)
    may_sample = limiter.may_sample(size=size, inserted=inserted, seeded=seeded, sampled=sampled)
    assert may_sample or limiter.may_insert(size=size, inserted=inserted, sampled=sampled)


@pytest.mark.parametrize(
    ("in_flight", "per_step", "sync_every", "max_staleness"), [(64, 32, 5, 0), (64, 16, 1, 2), (1_024, 32, 5, 4)]
)
def test_a_learner_whose_actors_are_faster_gets_to_its_last_step_where_trajectories_go_stale(
    in_flight: int, per_step: int, sync_every: int, max_staleness: int
) -> None:
    """What is in flight when actors begin to wait comes on top, and goes stale before it was trained on."""
    config = RunConfig.model_validate(
        {
            "task": {"name": "rng"},
            "learner": {"queries_per_step": per_step // 8, "trajectories_per_query": 8, "sync_every": sync_every},
            "buffer": {"samples_per_insert": 2.5, "samples_per_insert_band": 1.5, "max_staleness": max_staleness},
        }
    )
    limiter = RateLimiter.of(config)
    assert limiter.lowest == 1 and config.trajectories_per_step == per_step
    stored, flying = list[int](), list[int]()
    inserted = sampled = steps = 0
    for _ in range(2_000):
        version = steps // sync_every
        # While the learner does a step, actors sample what it takes ten steps to use.
        stored += flying
        inserted += len(flying)
        may_go_on = limiter.may_insert(size=len(stored), inserted=inserted, sampled=sampled)
        flying = [version] * max(in_flight, 10 * per_step) if may_go_on else []
        if limiter.may_sample(size=len(stored), inserted=inserted, seeded=0, sampled=sampled):
            stored = [own for own in stored if own >= version - max_staleness]
            sampled += min(len(stored), per_step)
            steps += bool(stored)
    assert steps > 1_000
    assert sampled <= limiter.highest * inserted


def test_a_slack_below_the_minimum_size_is_refused() -> None:
    with pytest.raises(ValueError, match="slack 5 is below min_size 10"):
        RateLimiter(10, 1.0, 0.0, slack=5)


def test_the_configured_limiter_reaches_the_minimum_size_at_any_ratio() -> None:
    config = RunConfig.model_validate(
        {"task": {"name": "rng"}, "buffer": {"samples_per_insert": 8, "samples_per_insert_band": 0, "min_size": 100}}
    )
    limiter = RateLimiter.of(config)
    assert limiter.may_insert(size=100, inserted=100, sampled=0)
    assert limiter.highest == limiter.lowest == 8


def test_a_buffer_to_which_no_more_will_come_is_enough_unless_it_is_empty() -> None:
    assert LIMITER.may_sample(size=6, inserted=0, seeded=6, sampled=0, complete=True)
    assert not LIMITER.may_sample(size=0, inserted=0, seeded=0, sampled=0, complete=True)
