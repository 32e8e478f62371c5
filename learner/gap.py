"""Does the sampler use the adapter that it says it uses? Compare its log-probabilities with the learner's.

A missing or older adapter looks just like staleness in every other figure. So the learner keeps the last published
weights and recomputes, under the very version a trajectory names, the log-probabilities its sampler reported. A handful
of tokens says little, as single ones differ by far more than their mean in low precision: checks are pooled until they
hold enough.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.trajectory import Behaviour, Query, Trajectory
from learner.policy import Actions, LoraPolicy

MAX_COMPARED = 16
"""Trajectories in one comparison: cheap beside a step."""
ENOUGH_TOKENS = 256
"""On so many the mean is judged as it is."""
LEAST_TOKENS, SURE = 32, 4.0
"""On so many it is judged already where it is so many standard errors above the limit, as without any adapter."""


@dataclass(frozen=True)
class Gap:
    """Sampler against learner on the same actions under the same adapter version."""

    version: int
    mean: float
    """Mean |sampler − learner| in nats a token."""
    largest: float
    tokens: int
    standard_error: float = 0.0
    """Of the mean."""

    @classmethod
    def of(cls, version: int, gaps: NDArray[np.floating[Any]]) -> Gap:
        """From |sampler − learner| of each token."""
        error = float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else np.inf
        return cls(version, float(gaps.mean()), float(gaps.max()), len(gaps), error)

    @property
    def enough(self) -> bool:
        """Whether the mean may be judged as it is."""
        return self.tokens >= ENOUGH_TOKENS

    def exceeds(self, limit: float) -> bool:
        """Whether the mean is above a limit, as far as so many tokens can say."""
        if self.enough:
            return self.mean > limit
        return self.tokens >= LEAST_TOKENS and self.mean - SURE * self.standard_error > limit


def measure_gap(policy: LoraPolicy, trajectories: Sequence[Trajectory], queries: Mapping[str, Query]) -> Gap | None:
    """Compare under the policy's present weights; None without a sampled action."""
    gaps = token_gaps(policy, trajectories, queries)
    return Gap.of(trajectories[0].behaviour.adapter_version, gaps) if len(gaps) else None


def token_gaps(
    policy: LoraPolicy, trajectories: Sequence[Trajectory], queries: Mapping[str, Query]
) -> NDArray[np.float64]:
    """|sampler − learner| of every action, in nats, under the policy's present weights; shape (tokens,)."""
    compared = [item for item in trajectories if len(item.action_ids)]
    if not compared:
        return np.zeros(0)
    with torch.no_grad():
        log_pf = policy.log_probs([Actions.of(item, queries[item.query_id]) for item in compared]).log_pf.cpu().numpy()
    return np.concatenate(
        [
            np.abs(row[: len(item.action_ids)] - item.behaviour.sampler_log_prob)
            for row, item in zip(log_pf.astype(np.float64), compared, strict=True)
        ]
    )


class GapMonitor:
    """Keeps the last published weights and compares untempered samples with them, pooling what checks found."""

    def __init__(self, policy: LoraPolicy, keep: int) -> None:
        self._policy, self._keep = policy, keep
        self._pooled: list[NDArray[np.float64]] = []
        self.means: list[float] = []
        """Of each pool, the last of which may still be growing."""
        self._published: OrderedDict[int, tuple[str, dict[str, Tensor]]] = OrderedDict()

    def remember(self, version: int, sha256: str) -> None:
        """Keep the present weights as those of `version`, whose files have this sha256."""
        self._published[version] = sha256, self._policy.snapshot()
        while len(self._published) > self._keep:
            self._published.popitem(last=False)

    def compare(self, trajectories: Sequence[Trajectory], queries: Mapping[str, Query]) -> Gap | None:
        """The gap on all tokens since a pool was last enough, with those of these untempered samples that the newest
        version gave; None if no such version is kept. What another run's adapters gave is passed over."""
        by_version: dict[int, list[Trajectory]] = {}
        for item in trajectories:
            if item.source == "policy" and self._is_kept(item.behaviour):
                by_version.setdefault(item.behaviour.adapter_version, []).append(item)
        if not by_version:
            return None
        version = max(by_version)
        with self._policy.swapped(self._published[version][1]):
            found = token_gaps(self._policy, by_version[version][:MAX_COMPARED], queries)
        if not len(found):
            return None
        grows = bool(self._pooled)
        self._pooled.append(found)
        gap = Gap.of(version, np.concatenate(self._pooled))
        self.means[len(self.means) - grows :] = [gap.mean]
        if gap.enough:
            self._pooled.clear()
        return gap

    def _is_kept(self, behaviour: Behaviour) -> bool:
        """Whether the weights that sampled are kept: versions of different runs have the same numbers."""
        kept = self._published.get(behaviour.adapter_version)
        return kept is not None and kept[0] == behaviour.adapter_sha256
