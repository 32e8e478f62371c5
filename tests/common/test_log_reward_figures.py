"""Figures of samples: the best of each query with its error, and log R at equal length."""

from __future__ import annotations

import numpy as np
import pytest

from common.reward import RewardWeights
from common.tasks.figures import against_known, by_length, summarise
from common.trajectory import Behaviour, Trajectory

WEIGHTS = RewardWeights(prior=1.0, likelihood=0.0)


def sample(length: int, log_prior: float) -> Trajectory:
    zeros = np.zeros(length + 1)
    return Trajectory.without_tools(
        query_id="0" * 32,
        task="t",
        action_ids=np.arange(length),
        log_prior=zeros + log_prior,
        log_likelihood=zeros,
        log_constraint=zeros,
        behaviour=Behaviour(sampler_log_prob=zeros[1:], stop_log_prob=0.0),
    )


def test_samples_of_one_bin_of_lengths_are_compared_with_each_other_alone() -> None:
    groups = [[sample(0, -1.0), sample(1, -2.0), sample(5, -6.0)], [sample(6, -7.0), sample(11, -9.0)]]
    found = by_length(groups, WEIGHTS)
    rewards = {"log_reward_of_1_to_5": -3.0, "log_reward_of_6_to_10": -7.0, "log_reward_of_11_to_15": -9.0}
    shares = {"share_of_1_to_5": 0.6, "share_of_6_to_10": 0.2, "share_of_11_to_15": 0.2}
    assert found == rewards | shares


def test_log_reward_of_a_length_has_its_error_over_queries_not_over_their_samples() -> None:
    several = [[sample(2, reward)] * 50 for reward in (-4.0, -6.0, -11.0)]
    once = [group[:1] for group in several]
    error = np.std([-4.0, -6.0, -11.0], ddof=1) / np.sqrt(3)
    for groups in (several, once):
        assert by_length(groups, WEIGHTS)["log_reward_of_1_to_5_se"] == pytest.approx(error)


def test_the_best_of_each_query_has_its_error_over_queries() -> None:
    groups = [[sample(3, best), sample(3, best - 5.0)] for best in (-4.0, -6.0, -11.0)]
    found = summarise(groups, WEIGHTS)
    assert found["max_log_reward"] == -7.0
    assert found["max_log_reward_se"] == pytest.approx(np.std([-4.0, -6.0, -11.0], ddof=1) / np.sqrt(3))
    assert "max_log_reward_se" not in summarise(groups[:1], WEIGHTS)


def test_draws_stand_below_beside_or_above_what_is_known_of_their_query() -> None:
    known = {key: [sample(3, -5.0), sample(2, -9.0)] for key in ("lacks", "finds", "prefers", "prefers besides")}
    groups = {
        "lacks": [sample(4, -6.0), sample(2, -9.0)],
        "finds": [sample(4, -6.0), sample(3, -5.0)],
        "prefers": [sample(4, -4.0)],
        "prefers besides": [sample(3, -5.0), sample(4, -4.0)],
        "of which nothing is known": [sample(4, -1.0)],
    }
    found = against_known(groups, known, WEIGHTS)
    assert found == {"known_log_reward": -5.0, "known_above": 0.25, "known_below": 0.5}
    assert against_known({"unknown": groups["lacks"]}, known, WEIGHTS) == {}
