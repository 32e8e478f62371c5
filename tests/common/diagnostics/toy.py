"""A posterior over short sequences that is known in full: two tokens, up to three of them, a table of g and of R."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_LEN = 3
STOP = 2
Z = tuple[int, ...]
SPACE: list[Z] = [z for k in range(MAX_LEN + 1) for z in itertools.product((0, 1), repeat=k)]
_random = np.random.default_rng(7)
NEXT = {z: _random.dirichlet((4.0, 4.0, 3.0)) for z in SPACE if len(z) < MAX_LEN}
"""g(token or ⊤ | prefix); at `MAX_LEN` nothing is left but ⊤."""
LOG_R: dict[Z, float] = {z: float(value) for z, value in zip(SPACE, _random.normal(0, 1.2, len(SPACE)), strict=True)}
LOG_Z = float(np.logaddexp.reduce(list(LOG_R.values())))
POSTERIOR = np.exp(np.array([LOG_R[z] for z in SPACE]) - LOG_Z)


@dataclass(frozen=True)
class Drawn:
    """A sequence with log g of each token and of ⊤, shape (K+1,)."""

    z: Z
    log_g: NDArray[np.float64]


def next_token(generator: np.random.Generator, z: Z) -> int:
    """From g."""
    place, (zero, one, _) = generator.random(), NEXT[z]
    return 0 if place < zero else 1 if place < zero + one else STOP


def draw(generator: np.random.Generator, kept: Z = (), kept_log_g: Iterable[float] = ()) -> Drawn:
    """From g, behind what is kept."""
    z, log_g = kept, [*kept_log_g]
    while len(z) < MAX_LEN:
        token = next_token(generator, z)
        log_g.append(float(np.log(NEXT[z][token])))
        if token == STOP:
            return Drawn(z, np.array(log_g))
        z = (*z, token)
    return Drawn(z, np.array([*log_g, 0.0]))


def total_variation(drawn: Iterable[Z], weights: Iterable[float] | None = None) -> float:
    """Of the frequencies of draws, or of their weights, to the posterior."""
    found: Counter[Z] = Counter()
    drawn = list(drawn)
    for z, weight in zip(drawn, weights if weights is not None else [1.0] * len(drawn), strict=True):
        found[z] += weight  # type: ignore[assignment]
    shares = np.array([found[z] for z in SPACE]) / sum(found.values())
    return 0.5 * float(np.abs(shares - POSTERIOR).sum())
