"""Reward arithmetic: from stored components to the tempered log R at every decision state."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

FloatArray = NDArray[np.float32]


class RewardWeights(BaseModel):
    """beta_prior and beta_lik of log R = (beta_prior log p(Z⊤|X) + beta_lik log p(Y|XZ⊤) + log C) / tau."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prior: float = 1.0
    likelihood: float = 1.0


class TemperatureSchedule(BaseModel):
    """Reward temperature tau over learner steps: linear from `start` to `end`, then constant."""

    model_config = ConfigDict(extra="forbid")

    start: float = Field(1.0, gt=0, description="tau at step 0; above 1 flattens the target, easier to explore")
    end: float = Field(1.0, gt=0, description="tau from step `steps` on: the target that is learned")
    steps: int = Field(0, ge=0, description="learner steps from start to end; 0 uses `end` throughout")

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
    total = np.asarray(components["log_constraint"], dtype=np.float64).copy()
    if weights.prior:
        total += weights.prior * components["log_prior"].astype(np.float64)
    if weights.likelihood:
        total += weights.likelihood * components["log_likelihood"].astype(np.float64)
    return total / temperature
