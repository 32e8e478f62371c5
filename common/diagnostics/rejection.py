"""Rejection sampling: of draws of g those that are kept are exact draws of the distribution ∝ R.

Source: Owen, *Monte Carlo theory, methods and examples*, chapter 4.7.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ROUNDING = 0.5
"""Nats by which rounding, of bfloat16 above all, may put a weight above its bound: it is kept for sure then."""


class AboveBound(ValueError):
    """A weight above what was said to be its bound: what was kept is from another distribution."""

    def __init__(self, log_weight: float, log_bound: float) -> None:
        super().__init__(f"log R − log g = {log_weight:.3f} nats is above its bound {log_bound:.3f}")
        self.log_weight, self.log_bound = log_weight, log_bound


def accepted(log_weights: Floats, log_bound: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Which of independent draws of g are kept, each with probability R/(M g).

    `log_weights` are log R − log g, shape (n,), in nats; -inf is never kept. `log_bound` is log M, which none of them
    may exceed but by rounding: raises AboveBound.
    """
    highest = float(np.max(log_weights, initial=-np.inf))
    if highest > log_bound + ROUNDING:
        raise AboveBound(highest, log_bound)
    return log_weights - log_bound > -generator.exponential(size=len(log_weights))
