"""Importance sampling: what draws of a proposal q, weighted by w = R/q, say of the distribution ∝ R.

Weights come and go as logarithms, in nats and unnormalised. Source: Owen, *Monte Carlo theory, methods and examples*,
chapter 9; for resampling Rubin 1987 (sampling-importance-resampling).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def log_mean_weight(log_weights: Floats) -> float:
    """log of the mean weight, which estimates log Z = log Σ R; `log_weights` of shape (n,)."""
    return float(np.logaddexp.reduce(_checked(log_weights)) - np.log(len(log_weights)))


def normalized_weights(log_weights: Floats) -> Floats:
    """The weights as shares that sum to 1, shape (n,)."""
    found = np.exp(_checked(log_weights) - np.max(log_weights))
    return found / found.sum()


def effective_sample_size(log_weights: Floats) -> float:
    """(Σ w)² / Σ w² (Kish): of how many draws of the target these are worth, from 1 to n."""
    return float(1.0 / np.square(normalized_weights(log_weights)).sum())


def self_normalized_mean(values: NDArray[Any], log_weights: Floats) -> float:
    """Σ w f / Σ w: the mean of f, shape (n,), under the distribution ∝ R."""
    return float(normalized_weights(log_weights) @ np.asarray(values, np.float64))


def resample(log_weights: Floats, n: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Indices of `n` draws with replacement, each ∝ its weight: approximately draws from the distribution ∝ R, the
    better the more candidates there are for each."""
    return generator.choice(len(log_weights), size=n, p=normalized_weights(log_weights))


def _checked(log_weights: Floats) -> Floats:
    if len(log_weights) == 0 or not np.isfinite(log_weights).all():
        raise ValueError("weights of importance need at least one draw, and a finite log R and log q of each")
    return log_weights
