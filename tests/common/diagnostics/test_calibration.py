"""Simulation-based calibration on a problem of 12 rationales and two labels."""

from __future__ import annotations

import numpy as np
import pytest

from common.diagnostics.calibration import calibration, rank_of

PRIOR = np.random.default_rng(1).dirichlet(np.ones(12))
OF_LABEL = np.random.default_rng(2).uniform(0.05, 0.95, 12)
"""p(Y=1|Z)."""
DRAWS, REPEATS = 19, 200


def posterior(label: int) -> np.ndarray:
    joint = PRIOR * (OF_LABEL if label else 1 - OF_LABEL)
    return joint / joint.sum()


def ranks(*, flipped: bool, seed: int) -> list[int]:
    """Z* from the prior, Y from Z*, draws of the posterior given Y, or given the other label; log p(Y|Z) is ranked, to
    one digit, so that there are ties."""
    generator, found = np.random.default_rng(seed), []
    for _ in range(REPEATS):
        true = generator.choice(12, p=PRIOR)
        label = int(generator.random() < OF_LABEL[true])
        drawn = generator.choice(12, DRAWS, p=posterior(1 - label if flipped else label))
        value = np.round(np.log(OF_LABEL if label else 1 - OF_LABEL), 1)
        found.append(rank_of(value[true], value[drawn], generator))
    return found


def test_exact_draws_pass_and_a_sampler_with_its_label_flipped_fails() -> None:
    assert calibration(ranks(flipped=False, seed=3), DRAWS).passed
    flipped = calibration(ranks(flipped=True, seed=3), DRAWS)
    assert not flipped.passed and flipped.p_value < 0.001


def test_uniform_ranks_stay_within_the_bands_at_the_nominal_rate() -> None:
    generator = np.random.default_rng(4)
    found = [calibration(generator.integers(20, size=50).tolist(), DRAWS) for _ in range(200)]
    passed = sum(item.passed for item in found)
    assert 178 <= passed <= 198
    # Outside the bands is what the p-value calls unlikely.
    assert all((item.p_value > 0.052) <= item.passed <= (item.p_value > 0.048) for item in found)


def test_the_picture_s_figures_fit_together() -> None:
    found = calibration([0, 0, 3, 1, 2], 3)
    assert found.positions == [0.25, 0.5, 0.75] and found.ecdf == [0.4, 0.6, 0.8]
    assert all(low <= at <= high for low, at, high in zip(found.lower, found.positions, found.upper))


def test_ties_fall_to_either_side_at_random() -> None:
    generator = np.random.default_rng(5)
    found = np.array([rank_of(1.0, [0.0, 1.0, 1.0, 2.0], generator) for _ in range(6_000)])
    assert np.bincount(found, minlength=5) / 6_000 == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0], abs=0.025)


def test_the_right_sampler_s_ranks_are_uniform_over_all_places() -> None:
    found = np.concatenate([ranks(flipped=False, seed=seed) for seed in range(10, 20)])
    expected = len(found) / (DRAWS + 1)
    chi_square = ((np.bincount(found, minlength=DRAWS + 1) - expected) ** 2 / expected).sum()
    assert chi_square < 43.8  # 99.9% of χ² with 19 degrees of freedom


@pytest.mark.parametrize("wrong", [[], [0, 20], [-1]])
def test_ranks_that_are_none_are_an_error(wrong: list[int]) -> None:
    with pytest.raises(ValueError, match="ranks from 0 to 19"):
        calibration(wrong, DRAWS)
