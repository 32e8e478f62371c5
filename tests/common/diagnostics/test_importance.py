"""Importance sampling against a distribution that is known."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from common.diagnostics.importance import (
    effective_sample_size,
    log_mean_weight,
    log_shares_of_distinct,
    normalized_weights,
    pareto_smoothed,
    resample,
    self_normalized_mean,
)

Q = np.array([0.5, 0.3, 0.15, 0.05])
R = np.array([0.1, 2.0, 0.5, 1.4])


def draws(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n draws of Q and the logarithms of their weights R/Q."""
    found = np.random.default_rng(seed).choice(4, size=n, p=Q)
    return found, np.log(R / Q)[found]


def test_the_mean_weight_estimates_z_and_the_weighted_mean_the_target_s() -> None:
    values = np.array([3.0, -1.0, 2.0, 5.0])
    found, log_weights = draws(200_000, seed=1)
    assert log_mean_weight(log_weights) == pytest.approx(np.log(R.sum()), abs=0.02)
    assert self_normalized_mean(values[found], log_weights) == pytest.approx((R @ values) / R.sum(), abs=0.05)


def test_shares_of_distinct_draws_give_the_mean_without_bias_and_with_less_variance_over_all_outcomes() -> None:
    values, n = np.array([3.0, -1.0, 2.0, 5.0]), 3
    chances, sums, means, plain = [], [], [], []
    for outcome in itertools.product(range(4), repeat=n):
        distinct = sorted(set(outcome))
        shares = np.exp(log_shares_of_distinct(np.log(Q[distinct]), n))
        chances.append(Q[list(outcome)].prod())
        sums.append(shares @ values[distinct])
        means.append(sums[-1] / shares.sum())
        plain.append(values[list(outcome)].mean())
    mean = Q @ values
    assert np.dot(chances, sums) == pytest.approx(mean)
    assert np.dot(chances, np.square(np.subtract(means, mean))) < 0.9 * np.dot(
        chances, np.square(np.subtract(plain, mean))
    )


@pytest.mark.parametrize(("log_q", "share"), [(0.0, 1.0), (1e-9, 1.0), (-800.0, 1 / 8), (math.log(1e-12), 1 / 8)])
def test_what_is_certain_counts_once_and_what_never_comes_twice_as_in_the_plain_mean(
    log_q: float, share: float
) -> None:
    assert np.exp(log_shares_of_distinct(np.array([log_q]), 8)) == pytest.approx([share])


def test_resampled_draws_have_the_target_s_frequencies() -> None:
    found, log_weights = draws(100_000, seed=2)
    again = found[resample(log_weights, 50_000, np.random.default_rng(3))]
    assert np.bincount(again, minlength=4) / 50_000 == pytest.approx(R / R.sum(), abs=0.02)


def test_a_resampling_is_repeated_by_its_seed() -> None:
    _, log_weights = draws(100, seed=4)
    first, same, other = (resample(log_weights, 30, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert (first == same).all() and (first != other).any()


@pytest.mark.parametrize(
    ("log_weights", "expected"),
    [([0.0] * 8, 8.0), ([-3.0] * 5, 5.0), ([0.0, -200.0, -200.0], 1.0), ([0.0, np.log(3.0)], 16 / 10)],
)
def test_the_effective_sample_size_is_that_of_equal_weights_at_most(log_weights: list[float], expected: float) -> None:
    assert effective_sample_size(np.array(log_weights)) == pytest.approx(expected)


@pytest.mark.parametrize("shift", [-5_000.0, 0.0, 5_000.0])
def test_weights_are_the_same_whatever_all_are_multiplied_by(shift: float) -> None:
    weights = normalized_weights(np.log(np.array([1.0, 2.0, 5.0])) + shift)
    assert weights == pytest.approx([0.125, 0.25, 0.625])
    assert log_mean_weight(np.zeros(3) + shift) == pytest.approx(shift)


@pytest.mark.parametrize("log_weights", [[], [0.0, np.nan], [0.0, -np.inf]])
def test_what_has_no_weight_is_an_error_and_no_estimate(log_weights: list[float]) -> None:
    with pytest.raises(ValueError, match="finite log R and log q"):
        normalized_weights(np.array(log_weights))


def normal_log_weights(n: int, scale: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=n) * scale


def test_heavy_tails_have_a_high_pareto_k_and_light_ones_a_low() -> None:
    # Weights u^-k of uniform u have the tail shape k.
    uniform = np.random.default_rng(6).random(20_000)
    for k in (0.2, 0.5, 0.9):
        found = pareto_smoothed(-k * np.log(uniform)).pareto_k
        assert found == pytest.approx(k, abs=0.12)
    assert pareto_smoothed(np.log(uniform)).pareto_k < 0


def test_smoothing_touches_the_tail_alone_and_keeps_the_scale() -> None:
    log_weights = normal_log_weights(1_000, 1.0, seed=7) - 500.0
    found = pareto_smoothed(log_weights)
    changed = found.log_weights != log_weights
    assert 0 < changed.sum() <= 3 * 1_000**0.5
    assert set(np.flatnonzero(changed)) <= set(log_weights.argsort()[-95:])
    assert log_mean_weight(found.log_weights) == pytest.approx(log_mean_weight(log_weights), abs=0.1)


def test_smoothed_weights_estimate_with_less_error_where_the_tail_is_heavy() -> None:
    plain, smoothed = [], []
    for seed in range(200):
        log_weights = -0.6 * np.log(np.random.default_rng(seed).random(256))
        plain.append(log_mean_weight(log_weights) - np.log(1 / 0.4))
        smoothed.append(log_mean_weight(pareto_smoothed(log_weights).log_weights) - np.log(1 / 0.4))
    assert np.mean(np.square(smoothed)) < 0.8 * np.mean(np.square(plain))


def test_equal_weights_few_weights_and_weights_beyond_floats_have_a_defined_pareto_k() -> None:
    assert pareto_smoothed(np.full(300, -12.5)).pareto_k == 0.0
    assert pareto_smoothed(np.arange(24.0)).pareto_k is None
    assert pareto_smoothed(np.arange(25.0)).pareto_k is not None
    beyond = np.append(np.arange(-5_255.0, -5_000.0), 0.0)
    assert pareto_smoothed(beyond).pareto_k is None
    for log_weights in (np.full(300, -12.5), np.arange(24.0), beyond):
        assert (pareto_smoothed(log_weights).log_weights == log_weights).all()


STEPS = np.log(np.array([1.0, 1.1, 1.3, 0.8, 3.0]))


def steps(seed: int) -> np.ndarray:
    """Which of five rationales each of 256 draws is; each is drawn several times."""
    return np.random.default_rng(seed).choice(5, 256, p=[0.4, 0.1, 0.05, 0.4, 0.05])


@pytest.mark.parametrize("seed", range(20))
def test_a_tail_of_repeated_rationales_is_no_heavy_tail_and_stays_as_it_is(seed: int) -> None:
    log_weights = STEPS[steps(seed)]
    found = pareto_smoothed(log_weights)
    assert found.pareto_k == 0.0 and (found.log_weights == log_weights).all()


@pytest.mark.parametrize("heavy", [2, 30, 48, 49, 200])
def test_a_reward_of_two_levels_has_a_bounded_tail_however_many_draws_have_the_higher(heavy: int) -> None:
    log_weights = np.append(np.zeros(256 - heavy), np.full(heavy, np.log(5.0)))
    assert pareto_smoothed(log_weights, np.arange(256)).pareto_k == 0.0


def test_a_single_heavy_draw_above_ties_is_a_heavy_tail() -> None:
    log_weights = np.append(np.zeros(255), np.log(20.0))
    found = pareto_smoothed(log_weights)
    assert found.pareto_k is not None and found.pareto_k > 0.6
    assert (found.log_weights == log_weights).all()


def test_draws_of_one_label_count_as_ties_whatever_rounding_makes_of_them() -> None:
    labels, generator = steps(1), np.random.default_rng(8)
    rounded = STEPS[labels] + generator.normal(size=256) * 1e-6
    assert pareto_smoothed(rounded, labels).pareto_k == 0.0
    assert pareto_smoothed(rounded).pareto_k != 0.0
    mixed = np.append(rounded[:-1], np.log(40.0))
    once = np.append(labels[:-1], 9)
    exact = np.append(STEPS[labels][:-1], np.log(40.0))
    assert pareto_smoothed(mixed, once).pareto_k == pytest.approx(pareto_smoothed(exact, once).pareto_k, abs=1e-3)


def test_importing_the_statistics_imports_no_scipy() -> None:
    code = "import sys, common.diagnostics.verdict, common.diagnostics.calibration; print('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_resampling_brings_a_sampler_as_near_to_the_target_as_theory_says() -> None:
    """One draw out of n candidates is off by p(z)(p(z)/q(z) − Σ p²/q)/n to first order (the bias of a self-normalised
    mean: Owen, chapter 9.2): total variation falls as 1/n, from that of the sampler at n = 1."""
    p, repeats = R / R.sum(), 15_000
    ratio = p / Q
    slope = 0.5 * np.abs(p * (ratio - p @ ratio)).sum()
    generator, found = np.random.default_rng(9), {}
    for n in (1, 8, 32):
        candidates = generator.choice(4, (repeats, n), p=Q)
        chosen = [row[resample(np.log(R / Q)[row], 1, generator)[0]] for row in candidates]
        found[n] = 0.5 * np.abs(np.bincount(chosen, minlength=4) / repeats - p).sum()
    noise = 4 * (0.25 / repeats) ** 0.5
    assert found[1] == pytest.approx(0.5 * np.abs(Q - p).sum(), abs=noise)
    # To first order: the next is of order 1/n².
    assert found[8] == pytest.approx(slope / 8, abs=noise + 2 * (slope / 8) ** 2)
    assert found[32] == pytest.approx(slope / 32, abs=noise)
    assert found[1] > 3 * found[8] > 6 * found[32]
