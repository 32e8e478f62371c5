"""Simulation-based calibration: if Z* comes from the prior and Y from Z*, then Z* is a draw of the posterior given Y,
and among draws of a right sampler its rank is uniform, whatever is ranked.

Talts, Betancourt, Simpson, Vehtari and Gelman 2018 (arXiv 1804.06788). What is ranked should depend on Y, as log R
does: a sampler that ignores Y passes in all quantities that do (Modrák et al. 2023, arXiv 2211.02383). The empirical
distribution of the ranks and its simultaneous bands are those of Säilynoja, Bürkner and Vehtari 2022 (arXiv
2103.10522), by simulation; arviz-stats has bands for continuous values only, and ranks are discrete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.diagnostics.importance import Floats

SIMULATIONS = 2_000
"""Simulated sets of ranks behind the bands, and behind the p-value: no p-value is below 1/2001."""


@dataclass(frozen=True)
class Calibration:
    """Ranks of the truth among `draws` draws each, and whether they are uniform."""

    ranks: list[int]
    """Of each repeat, 0 to `draws`."""
    draws: int
    p_value: float
    """Of uniform ranks: how often a uniform set strays as far from the diagonal, at its worst point."""
    level: float
    """Of the bands: a uniform set stays within with this probability, at all points together."""
    positions: list[float]
    """Where the next three are taken, as shares of the ranks: (r + 1)/(draws + 1) for r = 0, 1, …"""
    ecdf: list[float]
    """The share of ranks at or below each; near `positions` where they are uniform."""
    lower: list[float]
    upper: list[float]

    @property
    def passed(self) -> bool:
        """Whether the ranks stay within the bands."""
        return all(low <= found <= high for low, found, high in zip(self.lower, self.ecdf, self.upper))


def rank_of(truth: float, drawn: Sequence[float] | Floats, generator: np.random.Generator) -> int:
    """How many of `drawn` lie below `truth`, 0 to their number; ties fall to either side at random, as a discrete
    space has them and ranks are uniform only so."""
    values = np.asarray(drawn, np.float64)
    below, equal = int((values < truth).sum()), int((values == truth).sum())
    return below + int(generator.integers(equal + 1))


def calibration(ranks: Sequence[int], draws: int, *, level: float = 0.95, seed: int = 0) -> Calibration:
    """Test ranks (each 0 to `draws`, of independent repeats) for uniformity.

    At each position a uniform set's count is binomial. The test asks how small the smallest tail probability is, over
    all positions, against `SIMULATIONS` uniform sets; the bands are the counts that would just pass.
    """
    if not ranks or min(ranks) < 0 or max(ranks) > draws:
        raise ValueError(f"calibration needs ranks from 0 to {draws}, found {sorted(set(ranks))[:5]}")
    from scipy.stats import binom  # SciPy's import takes a second

    n, generator = len(ranks), np.random.default_rng(seed)
    positions = np.arange(1, draws + 1) / (draws + 1)
    counts = np.arange(n + 1)
    # tail[c, j]: the smaller of the probabilities of at most and of at least c ranks at position j.
    tail = np.minimum(
        binom.cdf(counts[:, None], n, positions[None, :]), binom.sf(counts[:, None] - 1, n, positions[None, :])
    )
    where = np.arange(draws)
    found = _cumulative(np.asarray(ranks)[None, :], draws)[0]
    observed = tail[found, where].min()
    uniform = _cumulative(generator.integers(draws + 1, size=(SIMULATIONS, n)), draws)
    smallest = np.sort(tail[uniform, where].min(axis=1))
    threshold = smallest[int((1 - level) * SIMULATIONS)]
    passing = tail >= threshold
    return Calibration(
        ranks=[int(rank) for rank in ranks],
        draws=draws,
        p_value=float((1 + (smallest <= observed).sum()) / (1 + SIMULATIONS)),
        level=level,
        positions=positions.tolist(),
        ecdf=(found / n).tolist(),
        lower=(passing.argmax(axis=0) / n).tolist(),
        upper=((n - passing[::-1].argmax(axis=0)) / n).tolist(),
    )


def _cumulative(ranks: NDArray[np.int64], draws: int) -> NDArray[np.int64]:
    """Ranks at or below 0, 1, …, draws − 1 in each set; from shape (sets, n) to (sets, draws)."""
    counted = np.zeros((len(ranks), draws + 1), np.int64)
    np.add.at(counted, (np.arange(len(ranks))[:, None], ranks), 1)
    return counted.cumsum(axis=1)[:, :-1]
