"""Draws of a sampler, and how they come from trajectories."""

from __future__ import annotations

import numpy as np
import pytest

from common.diagnostics.draws import Draws, draws_of
from common.reward import RewardWeights
from common.trajectory import Behaviour, Source, Trajectory


def trajectory(actions: list[int], *, temperature: float = 1.0, source: Source = "policy") -> Trajectory:
    k = len(actions)
    return Trajectory.without_tools(
        action_ids=np.array(actions, np.int32),
        query_id="0" * 32,
        task="rng",
        log_prior=np.arange(k + 1, dtype=np.float32) - 5,
        log_likelihood=np.full(k + 1, -2.0),
        log_constraint=np.full(k + 1, -1.0),
        behaviour=Behaviour(temperature=temperature, sampler_log_prob=np.full(k, -0.5), stop_log_prob=-0.25),
        source=source,
    )


def test_draws_hold_log_q_with_its_end_and_the_reward_of_the_whole_as_it_is_trained_for() -> None:
    draws = draws_of([trajectory([7, 8]), trajectory([])], RewardWeights(prior=2.0, likelihood=0.5), tau=4.0)
    assert draws.log_q == pytest.approx([-1.25, -0.25])
    assert draws.log_r == pytest.approx([(2 * -3 + 0.5 * -2 - 1) / 4, (2 * -5 + 0.5 * -2 - 1) / 4])
    assert draws.actions == ((7, 8), ()) and draws.n == 2
    assert draws.log_weights == pytest.approx(draws.log_r - draws.log_q)


@pytest.mark.parametrize(("temperature", "source"), [(1.5, "tempered"), (1.0, "seed"), (1.0, "dataset")])
def test_what_the_policy_did_not_draw_at_temperature_one_is_no_draw_of_it(temperature: float, source: Source) -> None:
    with pytest.raises(ValueError, match="no draw of the policy itself"):
        draws_of([trajectory([7], temperature=temperature, source=source)], RewardWeights(), tau=1.0)


def test_the_same_rationale_has_the_same_label() -> None:
    draws = Draws(np.zeros(4), np.arange(4.0), ((1,), (2,), (1,), ()))
    assert draws.labels().tolist() == [0, 1, 0, 2]
    assert draws.distinct().actions == ((1,), (2,), ()) and draws.distinct().log_r.tolist() == [0, 1, 3]
    assert draws.joined(draws).n == 8


@pytest.mark.parametrize("log_r", [[0.0], [0.0, np.inf]])
def test_draws_without_a_finite_reward_each_are_refused(log_r: list[float]) -> None:
    with pytest.raises(ValueError, match="log R"):
        Draws(np.zeros(2), np.array(log_r), ((1,), (2,)))
