"""Draws made good by their weights, against distributions that are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from common.diagnostics.correction import Correction, of_targets
from common.diagnostics.importance import resample, self_normalized_mean
from common.diagnostics.verdict import PARETO_K_LIMIT
from common.reward import RewardWeights
from common.trajectory import Behaviour, Trajectory


def drawn(z: int, log_q: float, log_prior: float, log_likelihood: float, *log_alternatives: float) -> Trajectory:
    """Rationale z of one query, whose reward takes a penalty of 2 off where it misleads."""
    penalty = 2.0 if any(other > log_likelihood for other in log_alternatives) else 0.0
    return Trajectory.without_tools(
        query_id="0" * 32,
        task="mine",
        action_ids=[z],
        log_prior=[0.0, log_prior],
        log_likelihood=[0.0, log_likelihood],
        log_constraint=[0.0, -penalty],
        log_alternatives=log_alternatives,
        behaviour=Behaviour(sampler_log_prob=[log_q], stop_log_prob=0.0),
    )


def of_tail(k: float, n: int, seed: int) -> tuple[Correction, NDArray[np.float64]]:
    """Of n distinct draws whose weights have a Pareto tail of shape k, and these weights' logarithms."""
    log_weights = -k * np.log(np.random.default_rng(seed).random(n))
    trajectories = [drawn(z, 0.0, 0.0, 0.0) for z in range(n)]
    return Correction.of(log_weights, trajectories), log_weights


def test_the_probability_of_a_target_is_that_under_the_prompt_s_own_reward() -> None:
    q, prior = np.array([0.25, 0.5, 0.25]), np.array([0.6, 0.1, 0.3])
    p_y = np.array([[0.8, 0.1], [0.3, 0.6], [0.5, 0.4]])
    # Each rationale as often as q has it.
    trajectories = [drawn(z, *np.log([q[z], prior[z], *p_y[z]])) for z in (0, 1, 1, 2)]
    for weight, tau in ((1.0, 1.0), (0.5, 2.0)):
        found, log_p = of_targets(trajectories, RewardWeights(prior=weight, likelihood=3.0), tau, 2.0)
        r = prior ** (weight / tau)
        exact = r @ p_y / r.sum()
        # Without the likelihood of a target that is asked about, and without its penalty where Z misleads.
        assert [found.mean(np.exp(column)) for column in log_p] == pytest.approx(exact, abs=1e-5)
        assert [found.log_mean(column) for column in log_p] == pytest.approx(np.log(exact), abs=1e-5)


def test_means_of_what_is_too_small_for_a_float_have_a_logarithm() -> None:
    found = Correction.of(np.log([1.0, 3.0]), [drawn(z, 0.0, 0.0, 0.0) for z in range(2)])
    assert found.log_mean(np.array([-5000.0, -5001.0])) == pytest.approx(-5000 + np.log(0.25 + 0.75 / np.e))


def test_means_are_taken_with_the_tail_smoothed_and_the_weights_stay_as_they_are() -> None:
    found, log_weights = of_tail(0.6, 1000, seed=0)
    values = np.exp(log_weights)
    assert (found.log_weights == log_weights).all() and found.log_weights is not found.smoothed
    assert found.mean(values) == pytest.approx(self_normalized_mean(values, found.smoothed))
    assert found.mean(values) != pytest.approx(self_normalized_mean(values, log_weights), rel=0.001)


def test_estimates_are_refused_where_the_tail_says_so_and_where_too_few_draws_count() -> None:
    light, _ = of_tail(0.2, 2000, seed=1)
    assert light.refused is None and light.pareto_k is not None and light.pareto_k < 0.5
    heavy, _ = of_tail(0.9, 2000, seed=2)
    assert heavy.pareto_k is not None and heavy.pareto_k > PARETO_K_LIMIT and heavy.effective_sample_size > 10
    assert heavy.refused is not None
    problem, remedy = heavy.refused
    assert f"k̂ of the weights is {heavy.pareto_k:.2f}, above {PARETO_K_LIMIT:.2f} for 2000 draws" in problem
    assert "train longer" in remedy
    few, _ = of_tail(0.2, 8, seed=1)
    assert few.pareto_k is None and few.refused is not None and "draw more samples" in few.refused[1]


def test_resampling_lowers_a_mediocre_sampler_s_total_variation_as_theory_says() -> None:
    """Of m candidates one that is drawn ∝ w = p/q has the distribution p (1 + (E_q w² − w)/m) + O(1/m²)."""
    p = np.array([0.40, 0.25, 0.15, 0.10, 0.06, 0.04])
    q = np.array([0.10, 0.20, 0.25, 0.15, 0.15, 0.15])
    w, times, generator = p / q, 8_000, np.random.default_rng(0)
    distances = [0.5 * np.abs(p - q).sum()]
    for m in (16, 64):
        candidates = generator.choice(6, (times, m), p=q)
        chosen = [np.bincount(z[resample(np.log(w[z]), 16, generator)], minlength=6) / 16 for z in candidates]
        found, error = np.mean(chosen, axis=0), np.std(chosen, axis=0) / times**0.5
        expected = p * (1 + (q @ w**2 - w) / m)
        assert (np.abs(found - expected) < 5 * error + 2 / m**2).all()
        assert abs(found[0] - p[0]) > 5 * error[0], "so many draws could not tell what is left of the bias"
        distances.append(0.5 * np.abs(found - p).sum())
    assert distances[1] < distances[0] / 5 and distances[2] < distances[1] / 2
