"""What chance alone makes of a statistic: limits that a right sampler stays within, simulated and not guessed.

A statistic of random draws has limits of its own, which depend on the distribution, on how many draws there are and on
how heavy the weights' tails are. Here the draws are made again and again from the exact distribution, and the limits
are the least and the greatest of the statistics. The one that is observed is another of the same kind if the sampler
is right, so that it lies beyond one of the limits with probability 1 / (SIMULATIONS + 1) at most (a Monte Carlo test:
Besag and Clifford 1989).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIMULATIONS = 20_000
"""Of which a limit is the greatest: a false alarm in 20,001 on each side."""
Floats = NDArray[np.float64]


class Limits(NamedTuple):
    """What a statistic lies between; both sides together fail a right sampler once in 10,000 times."""

    low: float
    high: float

    @classmethod
    def of(cls, simulated: Floats) -> Limits:
        """Of simulated statistics, shape (SIMULATIONS,)."""
        assert simulated.shape == (SIMULATIONS,)
        return cls(float(simulated.min()), float(simulated.max()))

    def hold(self, observed: float) -> bool:
        """Whether a right sampler may have given this."""
        return self.low <= observed <= self.high


def draws(distribution: Floats, n: int) -> Floats:
    """How often each outcome comes among `n` independent draws, shape (SIMULATIONS, outcomes)."""
    return np.random.default_rng(0).multinomial(n, distribution / distribution.sum(), SIMULATIONS).astype(np.float64)


def resampled_draws(distribution: Floats, weights: Floats, candidates: int, n: int, times: int) -> Floats:
    """The same of sampling-importance-resampling: `times` times `n` are drawn ∝ `weights` of `candidates` of their own,
    so that draws of one time hang together. Shape (SIMULATIONS, outcomes)."""
    generator, pool = np.random.default_rng(0), 2 * SIMULATIONS
    cumulative = np.cumsum(distribution / distribution.sum())
    drawn = np.searchsorted(cumulative, generator.random((pool, candidates)), side="right").clip(max=len(weights) - 1)
    shares = np.cumsum(weights[drawn], axis=1)
    at = (generator.random((pool, n, 1)) * shares[:, None, -1:] > shares[:, None, :]).sum(-1)
    chosen = np.take_along_axis(drawn, at, axis=1)
    # Each simulation is made of `times` of so many that hardly any comes twice.
    picked = chosen[generator.integers(pool, size=(SIMULATIONS, times))].reshape(SIMULATIONS, times * n)
    outcomes = len(weights)
    flat = picked + outcomes * np.arange(SIMULATIONS)[:, None]
    return np.bincount(flat.ravel(), minlength=SIMULATIONS * outcomes).reshape(SIMULATIONS, outcomes).astype(np.float64)


def chi_square(counts: Floats, expected: Floats) -> Floats:
    """Of counts, shape (…, outcomes), against probabilities; outcomes that are hardly expected are pooled."""
    wanted = expected / expected.sum() * counts.sum(-1, keepdims=True)
    likely = expected / expected.sum() * float(counts.sum(-1).flat[0]) >= 5
    gaps = np.square(counts - wanted)[..., likely] / wanted[..., likely]
    rare = wanted[..., ~likely].sum(-1)
    pooled = np.square(counts[..., ~likely].sum(-1) - rare) / np.maximum(rare, 1e-9)
    return np.asarray(gaps.sum(-1) + pooled)


def effective_sample_size(counts: Floats, weights: Floats) -> Floats:
    """(Σ w)² / Σ w² of draws that came so often, shape (…, outcomes)."""
    return np.asarray(np.square(counts @ weights) / (counts @ np.square(weights)))


def weighted(counts: Floats, weights: Floats) -> Floats:
    """The distribution that weighted draws stand for, shape (…, outcomes)."""
    found = counts * weights
    return np.asarray(found / found.sum(-1, keepdims=True))


def total_variation(p: Floats, q: Floats) -> Floats:
    """Of distributions, shape (…, outcomes)."""
    return np.asarray(0.5 * np.abs(p - q).sum(-1))


def follow(counts: Floats, expected: Floats, otherwise: Floats | None = None) -> bool:
    """Whether independent draws that came so often, shape (outcomes,), may be of this distribution.

    Where they could be of another one, `otherwise`, it is made sure that the test would tell.
    """
    n = int(counts.sum())
    limit = Limits.of(chi_square(draws(expected, n), expected)).high
    if otherwise is not None:
        assert chi_square(draws(otherwise, n), expected).min() > limit, "the test could not tell the two apart"
    return float(chi_square(counts, expected)) <= limit
