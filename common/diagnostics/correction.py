"""Draws of a sampler made good by their weights: estimates under the distribution that R stands for, and whether they
mean anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.diagnostics.importance import Floats, effective_sample_size, pareto_smoothed, self_normalized_mean
from common.diagnostics.verdict import estimate_refused
from common.reward import RewardWeights, weighted_sum
from common.trajectory import Trajectory


@dataclass(frozen=True)
class Correction:
    """Weights R/q of one query's draws, and how far they can be relied on."""

    log_weights: Floats
    """As they are, shape (n,), in nats and unnormalised."""
    smoothed: Floats
    """With the tail smoothed (PSIS), shape (n,): what means are taken with."""
    effective_sample_size: float
    """Of how many draws of the distribution ∝ R those of log_weights are worth, from 1 to n."""
    pareto_k: float | None
    """k̂ of their tail; None where it can't be told, as of few draws."""
    refused: tuple[str, str] | None
    """Why an estimate from them means nothing, and the remedy; None if it means something."""

    @classmethod
    def of(cls, log_weights: Floats, drawn: Sequence[Trajectory]) -> Correction:
        """Of the weights of these trajectories, shape (n,), all of one query."""
        seen: dict[str, int] = {}
        labels = np.array([seen.setdefault(item.id, len(seen)) for item in drawn], np.int64)
        found, n = pareto_smoothed(log_weights, labels), len(drawn)
        worth = effective_sample_size(log_weights)
        refused = estimate_refused(found.pareto_k, n, worth / n)
        return cls(log_weights, found.log_weights, worth, found.pareto_k, refused)

    def mean(self, values: NDArray[Any]) -> float:
        """Σ w f / Σ w of f, shape (n,), with smoothed weights."""
        return self_normalized_mean(values, self.smoothed)

    def log_mean(self, log_values: Floats) -> float:
        """log of the same of f = exp(log_values), which may be too small for a float."""
        return float(np.logaddexp.reduce(self.smoothed + log_values) - np.logaddexp.reduce(self.smoothed))


def parts_without_target(item: Trajectory, misleading_penalty: float) -> tuple[float, float, float]:
    """log_prior, log_likelihood and log_constraint of the whole rationale as they are for the prompt alone, in nats:
    without the likelihood of a target that is asked about and not given, and without the penalty for making another
    one likelier."""
    prior, constraint = float(item.log_prior[-1]), float(item.log_constraint[-1])
    if (item.log_alternatives > item.log_likelihood[-1]).any():
        constraint += misleading_penalty
    return prior, 0.0, constraint


def of_targets(
    drawn: Sequence[Trajectory], weights: RewardWeights, tau: float, misleading_penalty: float
) -> tuple[Correction, Floats]:
    """For p(Y|X) = Σ_Z R(Z) p(Y|XZ⊤) / Σ_Z R(Z), with R of the prompt alone: the weights of one query's draws, and
    log p(Y|XZ⊤) of its target and then of each alternative, shape (targets, n)."""
    log_r = [weighted_sum(*parts_without_target(item, misleading_penalty), weights) / tau for item in drawn]
    log_q = [item.behaviour.log_prob for item in drawn]
    log_p = np.array([item.log_targets for item in drawn])
    return Correction.of(np.array(log_r, np.float64) - np.array(log_q, np.float64), drawn), log_p.T
