"""The base model as an independent witness of a sampler q: what q never draws, its own weights can't tell.

Draws of the base model g under the same mask, each with R and the exact log q, are at random, unlike rationales that are
known because they are good, which are just those that a sampler seeking modes covers.

- The mean of R/g over them estimates Z, whatever q does.
- The mean of R/g over those that q misses (p/q > n: no n draws of q show them, as a rule) estimates the mass M of R that q
  misses; what it doesn't is what its own draws estimate Z by, so that q misses the share M / (M + Ẑ of q) of the posterior.

Weights are never negative and their means unbiased, so that these err low nearly always where tails are heavy, and by
Markov's inequality are t times too high with probability 1/t at most. What exceeds is evidence; what doesn't is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.diagnostics.draws import Draws
from common.diagnostics.importance import Floats

SURE, LIKELY = 0.9985, 0.975
"""Levels of one-sided limits: that of three standard errors, and of two."""


@dataclass(frozen=True)
class Witness:
    """Draws of the base model for one query."""

    draws: Draws
    """With log q of the sampler that they are held against."""
    log_g: Floats
    """log g(Z⊤|X) of the base model, as it drew them; shape (n,)."""


@dataclass(frozen=True)
class Testimony:
    """What they say of q; every number is finite."""

    n: int
    """Draws of the base model, those without a valid reward included."""
    effective_draws: float
    """Of how many draws of the posterior those by R/g are worth, 1 to n."""
    log_z: float
    """log of the mean R/g, in nats."""
    log_z_low: float
    """Its lower limit, that log Z is below with probability 0.15% at most, nearly."""
    missed_mass: float
    """M / (M + Ẑ of q): the posterior's mass on rationales with p/q > n, 0 to 1."""
    missed_mass_low: float
    """Its lower limit by the error of M, at 97.5%."""


def testimony(witness: Witness, n: int, log_z: float, log_z_known: float) -> Testimony:
    """What a witness says of q, of which `n` draws gave the estimate `log_z`; `log_z_known` is the highest that is
    known of log Z otherwise."""
    draws, total = witness.draws, witness.draws.asked
    log_weights = draws.log_r - witness.log_g
    log_mean, low, effective = _mean(log_weights, total, SURE)
    best = max(log_z_known, low)
    missed = draws.log_weights - best > np.log(n)
    mass = mass_low = 0.0
    if missed.any():
        log_missed, log_missed_low, _ = _mean(log_weights[missed], total, LIKELY)
        mass, mass_low = _share(log_missed, log_z), _share(log_missed_low, log_z)
    return Testimony(total, effective, log_mean, low, mass, mass_low)


def lower_limit(log_weights: Floats, total: int) -> float:
    """The lower limit of log Z by weights R/g among `total` draws of which the others have none."""
    return _mean(log_weights, total, SURE)[1]


def _mean(log_weights: Floats, total: int, level: float) -> tuple[float, float, float]:
    """log of the mean weight over `total` draws, its lower limit, and the effective number of weights.

    The limit is of the gamma distribution with the effective number as its shape (Fay and Feuer 1997, *Confidence
    intervals for directly standardized rates*): exact for counts, where the delta method would call a single lucky hit
    certain to within three nats, and wider than it for even weights.
    """
    from scipy.special import gammaincinv  # SciPy's import takes a second

    log_sum = float(np.logaddexp.reduce(log_weights))
    effective = float(np.exp(2 * log_sum - np.logaddexp.reduce(2 * log_weights)))
    limit = float(gammaincinv(effective, 1 - level))
    log_mean = log_sum - float(np.log(total))
    return log_mean, log_mean + float(np.log(limit / effective)), effective


def _share(log_missed: float, log_seen: float) -> float:
    """Missed of both, from their logarithms."""
    return float(np.exp(log_missed - np.logaddexp(log_missed, log_seen)))
