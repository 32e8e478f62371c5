"""Rejection sampling: of draws of g those that are kept are exact draws of the distribution ∝ R.

Source: Owen, *Monte Carlo theory, methods and examples*, chapter 4.7.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TOKEN_ERROR = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Standard deviation of a token's log-probability by rounding, in nats, where two passes compute it; measured of vLLM
against transformers with SmolLM2, float32 with room for TF32, and float16 by its three bits more than bfloat16."""
STANDARD_DEVIATIONS = 6
"""Of a sequence's rounding that a weight may be above its bound by: nothing that thousands of draws bring about."""
LEAST_ROUNDING = 0.1
"""Nats."""


class AboveBound(ValueError):
    """A weight above what was said to be its bound: what was kept is from another distribution."""

    def __init__(self, log_weight: float, log_bound: float) -> None:
        super().__init__(f"log R − log g = {log_weight:.3f} nats is above its bound {log_bound:.3f}")
        self.log_weight, self.log_bound = log_weight, log_bound


@dataclass(frozen=True)
class Excess:
    """Weights that rounding put above their bound. They are kept for sure, which is less often than they should be."""

    proposals: int = 0
    above: int = 0
    """Of the proposals."""
    lost: float = 0.0
    """Σ (w/M − 1) over those above."""
    total: float = 0.0
    """Σ w/M over all."""

    @classmethod
    def of(cls, log_weights: Floats, log_bound: float) -> Excess:
        """That of some draws, of log R − log g as in `accepted`."""
        shares = np.exp(log_weights - log_bound)
        lost = float(np.maximum(shares - 1, 0).sum())
        return cls(len(shares), int((shares > 1).sum()), lost, float(shares.sum()))

    def __add__(self, other: Excess) -> Excess:
        """Both together."""
        return Excess(
            self.proposals + other.proposals, self.above + other.above, self.lost + other.lost, self.total + other.total
        )

    @property
    def share(self) -> float:
        """Of the proposals that are above."""
        return self.above / max(1, self.proposals)

    @property
    def bias(self) -> float:
        """An estimate of what the total variation between what is kept and ∝ R is at most: the share of Σ R that lies
        above the bound."""
        return self.lost / self.total if self.total > 0 else 0.0


def rounding_of(n_tokens: NDArray[np.int64], token_error: float) -> Floats:
    """What rounding may put the weights of sequences of so many tokens above their bound by, in nats."""
    return np.maximum(LEAST_ROUNDING, STANDARD_DEVIATIONS * token_error * np.sqrt(n_tokens))


def accepted(
    log_weights: Floats,
    log_bound: float,
    generator: np.random.Generator,
    rounding: float | Floats = LEAST_ROUNDING,
) -> NDArray[np.bool_]:
    """Which of independent draws of g are kept, each with probability R/(M g).

    `log_weights` are log R − log g, shape (n,), in nats; -inf is never kept. `log_bound` is log M, which none of them
    may exceed but by `rounding`, in nats: raises AboveBound.
    """
    over = np.flatnonzero(log_weights > log_bound + rounding)
    if len(over):
        raise AboveBound(float(np.max(log_weights[over])), log_bound)
    return log_weights - log_bound > -generator.exponential(size=len(log_weights))
