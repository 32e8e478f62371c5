"""Reward arithmetic: from stored components to the tempered log R at every decision state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

FloatArray = NDArray[np.float32]
ValueT = TypeVar("ValueT", float, NDArray[np.float64])


class RewardWeights(BaseModel):
    """beta_prior and beta_lik of log R = (beta_prior log p(Z⊤|X) + beta_lik log p(Y|XZ⊤) + log C) / tau."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prior: float = 1.0
    likelihood: float = 1.0


class TemperatureSchedule(BaseModel):
    """Reward temperature tau over learner steps: linear from `start` to `end`, then constant."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    start: float = Field(1.0, gt=0, description="tau at step 0; above 1 flattens the target, easier to explore")
    end: float = Field(1.0, gt=0, description="tau from step `steps` on: the target that is learned")
    steps: int = Field(0, ge=0, description="learner steps from start to end; 0 uses `end` throughout")

    @model_validator(mode="after")
    def _starts_for_some_steps(self) -> Self:
        if not self.steps and self.start not in (type(self).model_fields["start"].default, self.end):
            raise ValueError(f"start {self.start:g} is of no step, as steps is 0: give steps, or leave start out")
        return self

    def at(self, step: int) -> float:
        """Tau at a learner step."""
        if step >= self.steps:
            return self.end
        return self.start + (self.end - self.start) * step / self.steps


def log_reward(
    components: Mapping[str, FloatArray], weights: RewardWeights, temperature: float = 1.0
) -> NDArray[np.float64]:
    """Log R at every decision state, shape (K+1,), in nats.

    `components` holds `log_prior`, `log_likelihood` and `log_constraint`, each of shape (K+1,), untempered.
    A component whose weight is 0 is left out altogether, so a non-finite value in it does no harm.
    """
    names = ("log_prior", "log_likelihood", "log_constraint")
    prior, likelihood, constraint = (np.asarray(components[name], dtype=np.float64) for name in names)
    return weighted_sum(prior, likelihood, constraint, weights) / temperature


def weighted_sum(prior: ValueT, likelihood: ValueT, constraint: ValueT, weights: RewardWeights) -> ValueT:
    """Untempered log R of components at one state, or at many."""
    total = constraint
    if weights.prior:
        total = total + weights.prior * prior
    if weights.likelihood:
        total = total + weights.likelihood * likelihood
    return total
