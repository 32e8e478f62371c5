"""How many rationales, how they begin, how long they are."""

from __future__ import annotations

import numpy as np
import pytest

from common.diagnostics.draws import Draws
from common.diagnostics.shape import distinct_prefixes, shape_of
from tests.common.diagnostics.enumerable import RATIONALES, mediocre, posterior, sampler

LENGTHS = np.array([len(item) for item in RATIONALES], float)
FIRST = np.array([item[0] if item else 0 for item in RATIONALES])


def entropy(shares: np.ndarray) -> float:
    summed = np.bincount(FIRST, weights=shares)
    return float(-(summed * np.log(summed)).sum())


def test_distinct_prefixes_part_where_a_rationale_ends() -> None:
    assert distinct_prefixes(((1,), (1, 2), (1, 2, 3), (4, 5), (4, 5))) == [2, 3, 4, 4]
    assert distinct_prefixes(((), ())) == [1]


def test_the_figures_are_those_of_the_sampler_and_of_the_posterior() -> None:
    problem = mediocre()
    found = shape_of(problem.draw(40_000, np.random.default_rng(1)))
    assert found.mean_length == pytest.approx(problem.q @ LENGTHS, abs=0.02)
    assert found.mean_length_weighted == pytest.approx(problem.p @ LENGTHS, abs=0.03)
    assert found.first_token_entropy == pytest.approx(entropy(problem.q), abs=0.02)
    assert found.first_token_entropy_weighted == pytest.approx(entropy(problem.p), abs=0.03)
    assert (found.distinct, found.unique_mass) == (40, pytest.approx(1.0))
    assert found.distinct_prefixes == [4, 13, 40, 40]


def test_the_error_of_length_bias_and_of_prefix_collapse_is_that_of_repeats() -> None:
    problem, generator = mediocre(), np.random.default_rng(2)
    found = [shape_of(problem.draw(1_000, generator)) for _ in range(300)]
    for name in ("length_bias", "prefix_collapse"):
        values = [getattr(item, name).value for item in found]
        told = np.mean([getattr(item, name).se for item in found])
        # The standard deviation of 300 values is known to a twentieth.
        assert told == pytest.approx(np.std(values), rel=0.2), name


@pytest.mark.parametrize(("per_token", "sign"), [(0.8, 1), (-0.8, -1)])
def test_a_sampler_that_writes_too_long_or_too_short_has_a_bias_of_that_sign(per_token: float, sign: int) -> None:
    bias = shape_of(sampler(posterior(), per_token * LENGTHS).draw(512, np.random.default_rng(3))).length_bias
    assert sign * bias.value > 4 * bias.se > 0


def test_a_sampler_with_one_beginning_has_fewer_than_the_posterior_however_many_that_has() -> None:
    collapsed = sampler(posterior(), 3.0 * (FIRST == 1)).draw(1_024, np.random.default_rng(4))
    found = shape_of(collapsed)
    assert found.prefix_collapse.interval()[0] > 0.3
    # A posterior that itself has one beginning is no collapse.
    narrow = posterior() + 6.0 * (FIRST == 1)
    exact = shape_of(sampler(narrow, 0.0).draw(1_024, np.random.default_rng(5)))
    assert exact.first_token_entropy < 0.3 and abs(exact.prefix_collapse.value) < 1e-9


def test_unique_mass_is_what_the_draws_have_seen_of_the_sampler() -> None:
    draws = Draws(np.log([0.5, 0.25, 0.5]), np.zeros(3), ((1,), (2,), (1,)))
    assert shape_of(draws).unique_mass == pytest.approx(0.75) and shape_of(draws).distinct == 2
