"""All rationales of a small action space, and the exact posterior over them. No engine inside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from common.action_space import ActionSpace

Floats = NDArray[np.float64]
Z = tuple[int, ...]


def every_rationale(space: ActionSpace, limit: int) -> list[Z] | None:
    """What a policy with this mask can write, without ⊤: prefixes before what goes on from them. None for more than
    `limit`, found without going through them all."""
    if space.grammar is None and _count(space, limit) > limit:
        return None
    # Every prefix that the mask lets through can end, so that no way leads nowhere.
    found = list(islice(_walk(space, ()), limit + 1))
    return None if len(found) > limit else found


def _count(space: ActionSpace, limit: int) -> int:
    """How many there are without a grammar; whatever is above `limit` where it is more than that."""
    total, choices = 0, len(space.allowed_array) - 1
    for length in range(space.min_len, space.max_len + 1):
        total += choices**length
        if total > limit:
            break
    return total


def _walk(space: ActionSpace, prefix: Z) -> Iterator[Z]:
    tokens = space.allowed_array[space.mask(prefix)].tolist()
    if space.terminator_id in tokens:
        yield prefix
    for token in tokens:
        if token != space.terminator_id:
            yield from _walk(space, (*prefix, token))


@dataclass(frozen=True)
class Enumerated:
    """The exact posterior of one query: every rationale that has a reward, with its log R."""

    actions: tuple[Z, ...]
    log_r: Floats
    """In nats, finite, shape (n,)."""
    without_reward: int = 0
    """Rationales besides whose R is 0, as where a reward of the user's own gives nothing: they add nothing to Z, and
    are never drawn."""

    @cached_property
    def log_z(self) -> float:
        """log Σ R."""
        return float(np.logaddexp.reduce(self.log_r))

    @cached_property
    def probabilities(self) -> Floats:
        """R/Z of each, shape (n,)."""
        return np.exp(self.log_r - self.log_z)

    @cached_property
    def index(self) -> dict[Z, int]:
        """Where each rationale stands."""
        return {actions: i for i, actions in enumerate(self.actions)}

    def draw(self, n: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Where `n` independent exact draws stand."""
        return generator.choice(len(self.actions), size=n, p=self.probabilities / self.probabilities.sum())
