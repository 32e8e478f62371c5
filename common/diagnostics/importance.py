"""Importance sampling: what draws of a proposal q, weighted by w = R/q, say of the distribution ∝ R.

Weights come and go as logarithms, in nats and unnormalised. Source: Owen, *Monte Carlo theory, methods and examples*,
chapter 9; for resampling Rubin 1987 (sampling-importance-resampling); for Pareto smoothing Vehtari, Simpson, Gelman,
Yao and Gabry 2024 (arXiv 1507.02646), as arviz-stats has it; for draws that repeat Horvitz and Thompson 1952.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_PARETO_DRAWS = 25
"""Below it the tail, a fifth of the draws, has fewer than the 5 that a fit needs."""


@dataclass(frozen=True)
class Smoothed:
    """Weights with the sampling noise of their tail taken out, and how heavy that tail is."""

    log_weights: Floats
    """Unnormalised, shape (n,); their mean estimates Z as that of the plain ones does."""
    pareto_k: float | None
    """k̂, the shape of a generalised Pareto distribution fitted to the largest weights: of the weights' moments those
    below order 1/k̂ are finite, as far as the draws show. Negative for bounded weights, 0 where all are equal or the
    tail is one of repeated rationales. None where nothing can be fitted: for fewer than `MIN_PARETO_DRAWS`, or a tail
    whose weights differ by more than floating point holds (some 700 nats), which the effective sample size tells of."""


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


def log_shares_of_distinct(log_q: Floats, draws: int) -> Floats:
    """What each distinct value among `draws` independent ones of a distribution q over a discrete space stands for in a
    mean under q: q/(1 − (1−q)ⁿ), its probability over that of being among them, as logarithms; `log_q` and the result
    of shape (k,), of the k distinct values.

    Horvitz and Thompson 1952 (their sum of w f has the mean's expectation; over their sum, as Hájek 1971 has it, little
    bias and less variance). Values too rare to come twice weigh alike, as in the plain mean; those that came by chance
    more often than q says don't weigh more for it.
    """
    q = np.exp(np.minimum(log_q, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        share = q / -np.expm1(draws * np.log1p(-q))
    return np.log(np.where(q > 0, share, 1 / draws))


def pareto_smoothed(log_weights: Floats, labels: NDArray[np.int64] | None = None) -> Smoothed:
    """Pareto-smoothed weights and k̂ (PSIS) of weights of shape (n,); draws of one label (shape (n,)) are the same
    rationale and have one weight.

    The fit takes weights for draws of a continuous distribution, and a discrete space repeats them. Where most of the
    tail's weight beyond its cut-off lies on weights drawn twice or more, the tail is a list that is known and no
    sample of something longer (Good and Turing's estimate of what hasn't been seen): k̂ is 0 and the weights stay as
    they are. Else ties are drawn apart by up to a tenth for the fit, as it needs different values, and weights are
    smoothed if none of the tail is repeated. Fewer than `MIN_PARETO_DRAWS` weights stay as they are.
    """
    found = np.array(_checked(log_weights), np.float64)
    n = len(found)
    if n < MIN_PARETO_DRAWS:
        return Smoothed(found, None)
    values, which, counts = _distinct_weights(found, labels)
    order = np.argsort(values[which], kind="stable")
    tail = order[-tail_draws(n) :]
    weights = np.exp(values[which] - values[-1])
    excess = weights[tail] - weights[order[-len(tail) - 1]]
    if excess[counts[which[tail]] == 1].sum() <= 0.5 * excess.sum():
        return Smoothed(found, 0.0)
    from arviz_stats.base import array_stats  # SciPy's import takes a second

    apart = _apart(values, which, counts)
    with np.errstate(all="ignore"):
        smoothed, pareto_k = array_stats.psislw(-apart)
    smoothed = np.asarray(smoothed, np.float64)
    if not (np.isfinite(pareto_k) and np.isfinite(smoothed).all()):
        return Smoothed(found, None)
    if (counts[which[tail]] > 1).any():
        return Smoothed(found, float(pareto_k))
    # It comes back normalised; the lowest weight is in no tail, so the shift shows there.
    lowest = int(apart.argmin())
    result = found.copy()
    result[tail] = smoothed[tail] - (smoothed[lowest] - apart[lowest])
    return Smoothed(result, float(pareto_k))


def tail_draws(n: int) -> int:
    """How many of `n` draws are the tail that k̂ is fitted to, as psislw has it."""
    return int(3 * n**0.5) if n > 225 else n // 5


def _distinct_weights(log_weights: Floats, labels: NDArray[np.int64] | None) -> tuple[Floats, Any, Any]:
    """Distinct log-weights, rising, which of them each draw has, and how many draws each; all of a label have the
    weight of its first, whatever rounding makes of the others."""
    if labels is not None:
        _, first, which = np.unique(labels, return_index=True, return_inverse=True)
        log_weights = log_weights[first][which]
    return np.unique(log_weights, return_inverse=True, return_counts=True)


def _apart(values: Floats, which: Any, counts: Any) -> Floats:
    """Each draw's log-weight, equal ones spread evenly over at most a tenth of the weight to either side and at most
    half-way to the neighbouring weights."""
    weights = np.exp(values - values[-1])
    middles = (weights[1:] + weights[:-1]) / 2
    low = np.maximum(np.append(weights[0], middles), 0.9 * weights)
    high = np.minimum(np.append(middles, weights[-1]), 1.1 * weights)
    order, starts = np.argsort(which, kind="stable"), np.cumsum(counts) - counts
    rank = np.empty(len(which))
    rank[order] = np.arange(len(which)) - starts[which[order]]
    share = (rank + 0.5) / counts[which]
    with np.errstate(divide="ignore"):
        placed = np.log(low[which] + (high - low)[which] * share) + values[-1]
    return np.where((counts[which] > 1) & np.isfinite(placed), placed, values[which])


def _checked(log_weights: Floats) -> Floats:
    if len(log_weights) == 0 or not np.isfinite(log_weights).all():
        raise ValueError("weights of importance need at least one draw, and a finite log R and log q of each")
    return log_weights
