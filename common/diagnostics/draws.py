"""Draws of a sampler for one query: what every diagnosis is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.diagnostics.importance import Floats
from common.reward import RewardWeights
from common.trajectory import Trajectory


@dataclass(frozen=True)
class Draws:
    """Rationales Z of one query with log q and log R, in nats; of the sampler q itself, or of another source."""

    log_q: Floats
    """log q(Z⊤|X), shape (n,): of the policy as it samples untempered, whatever drew Z."""
    log_r: Floats
    """log R as it is trained for, shape (n,): weights and the temperature at its end included."""
    actions: tuple[tuple[int, ...], ...]
    """Z's own tokens, without ⊤; equal ones are the same rationale."""
    missing: int = 0
    """Draws besides that made no valid rationale: their R is 0, so that they have no log R and are in no array."""

    def __post_init__(self) -> None:
        if not len(self.actions) == len(self.log_q) == len(self.log_r):
            raise ValueError(
                f"{len(self.actions)} rationales, {len(self.log_q)} log q and {len(self.log_r)} log R are no draws"
            )
        if not (np.isfinite(self.log_q).all() and np.isfinite(self.log_r).all()):
            raise ValueError("draws need a finite log q and a finite log R each")

    @property
    def n(self) -> int:
        """How many valid ones, repeated ones counted each time."""
        return len(self.actions)

    @property
    def asked(self) -> int:
        """How many were drawn, the missing ones included."""
        return self.n + self.missing

    @property
    def log_weights(self) -> Floats:
        """log R − log q, shape (n,)."""
        return self.log_r - self.log_q

    @property
    def lengths(self) -> Floats:
        """Tokens of each, without ⊤; shape (n,)."""
        return np.array([len(item) for item in self.actions], np.float64)

    def labels(self) -> NDArray[np.int64]:
        """A number for each draw, shape (n,), the same for the same rationale: 0, 1, … in order of appearance."""
        seen: dict[tuple[int, ...], int] = {}
        return np.array([seen.setdefault(item, len(seen)) for item in self.actions], np.int64)

    def distinct(self) -> Draws:
        """Each rationale once, where it is first; none is missing."""
        _, first = np.unique(self.labels(), return_index=True)
        return Draws(self.log_q[first], self.log_r[first], tuple(self.actions[i] for i in first.tolist()))

    def joined(self, other: Draws) -> Draws:
        """These, then the other's; none is missing."""
        return Draws(
            np.concatenate([self.log_q, other.log_q]),
            np.concatenate([self.log_r, other.log_r]),
            self.actions + other.actions,
        )


def draws_of(trajectories: Sequence[Trajectory], weights: RewardWeights, tau: float, missing: int = 0) -> Draws:
    """Draws from one query's trajectories, which the policy sampled at temperature 1; `tau` is R's temperature, and
    `missing` more were drawn that made no trajectory."""
    for item in trajectories:
        if item.source != "policy" or item.behaviour.temperature != 1.0:
            raise ValueError(
                f"a trajectory of source {item.source} at temperature {item.behaviour.temperature:g} is no draw of "
                "the policy itself"
            )
    return Draws(
        log_q=np.array([item.behaviour.log_prob for item in trajectories], np.float64),
        log_r=np.array([item.log_reward(weights, tau)[-1] for item in trajectories], np.float64),
        actions=tuple(tuple(item.action_ids.tolist()) for item in trajectories),
        missing=missing,
    )
