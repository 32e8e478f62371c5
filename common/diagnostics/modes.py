"""Rationales that are known to be good, and what the sampler makes of them.

Weights tell only of what was drawn. Known rationales (the buffer's best, a search's, another model's) tell of the rest:
Σ R over distinct ones can't exceed Z, whatever the sampler does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.diagnostics.draws import Draws
from common.diagnostics.importance import Floats


@dataclass(frozen=True)
class ModeCoverage:
    """Known rationales under q and under the posterior p = R/Z."""

    known: int
    """Distinct ones."""
    log_known_mass: float
    """log Σ R of them, in nats: a sure lower bound of log Z."""
    mass_under_q: float
    """Σ q of them, 0 to 1."""
    mass_under_posterior: float
    """Σ R / Z of them, 0 to 1."""
    missed: int
    """How many of them are expected less than once in as many draws as there are: n·q < 1."""
    missed_mass: float
    """The posterior's mass on known rationales with p/q > n. No n draws show it, as a rule, and a single one of these
    would outweigh all others: importance sampling takes about exp(KL(p‖q)) draws, and log(p/q) is what KL averages
    (Chatterjee and Diaconis 2018, arXiv 1511.01437)."""
    beside: float | None = None
    """Of those that aren't the most frequent draw, the mass under q over that under the posterior, e at most: about 1
    where q is right beside what it draws, 0 where it has collapsed. None where there are none of them."""


def log_total(draws: Draws) -> float:
    """log Σ R over the distinct rationales: a sure lower bound of log Z, in nats."""
    return float(np.logaddexp.reduce(draws.distinct().log_r))


def mode_coverage(known: Draws, drawn: Draws, log_z: float) -> ModeCoverage:
    """How q, of which `drawn` are draws, covers the `known` rationales; `log_z` is the best that is known of it, at
    least Σ R of them."""
    once, n = known.distinct(), drawn.asked
    labels = drawn.labels()
    most = drawn.actions[int((labels == np.bincount(labels).argmax()).argmax())]
    others = np.array([item != most for item in once.actions])
    # Rounding may bring a share above 1.
    log_p = np.minimum(once.log_r - log_z, 0.0)
    lost = log_p - once.log_q > np.log(n)
    return ModeCoverage(
        known=once.n,
        log_known_mass=log_total(once),
        mass_under_q=min(1.0, float(np.exp(once.log_q).sum())),
        mass_under_posterior=min(1.0, float(np.exp(log_p).sum())),
        missed=int((once.log_q < -np.log(n)).sum()),
        missed_mass=min(1.0, float(np.exp(log_p[lost]).sum())),
        beside=_ratio(once.log_q[others], log_p[others]),
    )


def _ratio(log_q: Floats, log_p: Floats) -> float | None:
    """Σ q / Σ p from their logarithms, at most e."""
    if not len(log_q):
        return None
    return float(np.exp(min(1.0, np.logaddexp.reduce(log_q) - np.logaddexp.reduce(log_p))))
