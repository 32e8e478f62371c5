"""Importance sampling against a distribution that is known."""

from __future__ import annotations

import numpy as np
import pytest

from common.diagnostics.importance import (
    effective_sample_size,
    log_mean_weight,
    normalized_weights,
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
