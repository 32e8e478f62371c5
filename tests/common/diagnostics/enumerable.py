"""A posterior over few rationales, all of whose figures can be summed up, and samplers of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from common.diagnostics.draws import Draws

RATIONALES = tuple(item for length in range(4) for item in product((1, 2, 3), repeat=length))
"""All of up to three tokens out of three: 40."""


@dataclass(frozen=True)
class Enumerable:
    """R and q of each of the rationales, shape (40,)."""

    log_r: np.ndarray
    log_q: np.ndarray

    @property
    def log_z(self) -> float:
        return float(np.logaddexp.reduce(self.log_r))

    @property
    def q(self) -> np.ndarray:
        return np.exp(self.log_q)

    @property
    def p(self) -> np.ndarray:
        return np.exp(self.log_r - self.log_z)

    @property
    def log_w(self) -> np.ndarray:
        return self.log_r - self.log_q

    def of(self, indices: np.ndarray) -> Draws:
        return Draws(self.log_q[indices], self.log_r[indices], tuple(RATIONALES[i] for i in indices.tolist()))

    def draw(self, n: int, generator: np.random.Generator) -> Draws:
        return self.of(generator.choice(len(self.q), n, p=self.q))

    def draw_posterior(self, n: int, generator: np.random.Generator) -> Draws:
        return self.of(generator.choice(len(self.p), n, p=self.p))


def posterior(seed: int = 7) -> np.ndarray:
    """log R, log Z far from 0."""
    return np.random.default_rng(seed).normal(size=len(RATIONALES)) * 1.2 - 30.0


def sampler(log_r: np.ndarray, off: float | np.ndarray, seed: int = 8) -> Enumerable:
    """q ∝ R·exp(off·noise), or with given log-factors: 0 is exact."""
    factors = np.random.default_rng(seed).normal(size=len(log_r)) * off if np.isscalar(off) else off
    log_q = log_r + factors
    return Enumerable(log_r, log_q - np.logaddexp.reduce(log_q))


def mediocre() -> Enumerable:
    """A sampler with an effective sample size of about 0.6."""
    return sampler(posterior(), 0.75)
