"""Sequential Monte Carlo: a population of weighted particles that grow step by step, resampled where few carry it.

Source: Chopin and Papaspiliopoulos 2020, *An introduction to sequential Monte Carlo*, chapters 9 and 10; how much they
are worth by their first ancestors, Lee and Whiteley 2018 (arXiv 1509.00394); of language models Lew et al. 2023 (arXiv
2306.03081), whose library genlm-control needs vLLM below 0.27, and a GPU to use it. No engine inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
StateT = TypeVar("StateT")

RESAMPLE_BELOW = 0.5
"""Effective share of the particles below which they are resampled, the usual choice (chapter 10.2)."""


@dataclass(frozen=True)
class Extended(Generic[StateT]):
    """A particle one step further."""

    state: StateT
    log_increment: float
    """log γ(new) − log γ(old) − log g(new|old) of the intermediate targets γ, in nats; at the end γ is R itself. -inf
    for a particle that is of no more use."""
    done: bool
    """Whether it is at its end."""


Extend = Callable[[Sequence[StateT]], Sequence[Extended[StateT]]]
"""Each of the particles one step further, in their order; whatever is copied before must be left as it is."""


@dataclass(frozen=True)
class Population(Generic[StateT]):
    """Particles at their ends."""

    states: list[StateT]
    log_weights: Floats
    """Of each, to be drawn by; unnormalised, shape (n,)."""
    log_z: float
    """log of the unbiased estimate of Z, in nats; -inf where no particle is left."""
    resamplings: int
    ancestors: NDArray[np.int64]
    """The particle at the start that each is from, shape (n,)."""

    @property
    def effective_families(self) -> float:
        """Of how many independent draws they are worth: 1/Σ F² over the shares F of families, those of one ancestor.

        Without resampling it is the effective number of weights. Resampling makes weights equal again, and of one
        particle several, which tell no more than it did: the weights alone would count them all. 0 where none is left.
        """
        if not np.isfinite(self.log_weights).any():
            return 0.0
        families = np.bincount(self.ancestors, weights=self.shares())
        return float(1.0 / np.square(families).sum())

    def shares(self) -> Floats:
        """The weights as shares that sum to 1, shape (n,); raises ValueError where no particle is left."""
        return _shares(self.log_weights)

    def draw(self, n: int, generator: np.random.Generator) -> list[StateT]:
        """`n` of them, each as often as its weight says, rounded up or down at random."""
        return [self.states[i] for i in systematic(self.shares(), n, generator)]


def sequential_monte_carlo(
    start: Sequence[StateT], extend: Extend[StateT], generator: np.random.Generator
) -> Population[StateT]:
    """Extend all particles to their ends. Those that are there already wait, and take part in each resampling."""
    states, log_weights, done = list(start), np.zeros(len(start)), np.zeros(len(start), bool)
    log_z, resamplings, ancestors = 0.0, 0, np.arange(len(states))
    while not done.all():
        growing = np.flatnonzero(~done).tolist()
        for i, extended in zip(growing, extend([states[i] for i in growing]), strict=True):
            # Of one that is of no more use nothing is asked any more.
            states[i], done[i] = extended.state, extended.done or extended.log_increment == -np.inf
            log_weights[i] += extended.log_increment
        if not np.isfinite(log_weights).any():
            return Population(states, log_weights, -np.inf, resamplings, ancestors)
        shares = _shares(log_weights)
        if not done.all() and 1.0 / np.square(shares).sum() < RESAMPLE_BELOW * len(states):
            log_z += float(np.logaddexp.reduce(log_weights) - np.log(len(states)))
            chosen = systematic(shares, len(states), generator)
            states, done, ancestors = [states[i] for i in chosen], done[chosen], ancestors[chosen]
            log_weights = np.zeros(len(states))
            resamplings += 1
    log_z += float(np.logaddexp.reduce(log_weights) - np.log(len(states)))
    return Population(states, log_weights, log_z, resamplings, ancestors)


def systematic(shares: Floats, n: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Indices of `n` draws with one random number for all: each as often as n times its share, rounded."""
    places = (np.arange(n) + generator.random()) / n
    found = np.searchsorted(np.cumsum(shares), places, side="right")
    # Rounding may leave the sum of all below the last place.
    return np.minimum(found, int(np.flatnonzero(shares)[-1]))


def _shares(log_weights: Floats) -> Floats:
    if not np.isfinite(log_weights).any():
        raise ValueError("no particle is left that has a weight")
    found = np.exp(log_weights - np.max(log_weights))
    return found / found.sum()
