"""Does the sampler use the adapter that it says it uses? Compare its log-probabilities with the learner's.

A missing or older adapter looks just like staleness in every other figure. So the learner keeps the last published
weights and recomputes, under the very version a trajectory names, the log-probabilities its sampler reported.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.trajectory import Query, Trajectory
from learner.policy import Actions, LoraPolicy

MAX_COMPARED = 16
"""Trajectories in one comparison: enough for a mean, cheap beside a step."""


@dataclass(frozen=True)
class Gap:
    """Sampler against learner on the same actions under the same adapter version."""

    version: int
    mean: float
    """Mean |sampler − learner| in nats a token."""
    largest: float
    tokens: int


def measure_gap(policy: LoraPolicy, trajectories: Sequence[Trajectory], queries: Mapping[str, Query]) -> Gap | None:
    """Compare under the policy's present weights; None without a sampled action."""
    compared = [item for item in trajectories if len(item.action_ids)]
    if not compared:
        return None
    with torch.no_grad():
        log_pf = policy.log_probs([Actions.of(item, queries[item.query_id]) for item in compared]).log_pf.cpu().numpy()
    gaps = np.concatenate(
        [
            np.abs(row[: len(item.action_ids)] - item.behaviour.sampler_log_prob)
            for row, item in zip(log_pf, compared, strict=True)
        ]
    )
    return Gap(compared[0].behaviour.adapter_version, float(gaps.mean()), float(gaps.max()), len(gaps))


class GapMonitor:
    """Keeps the last published weights and compares untempered samples with them."""

    def __init__(self, policy: LoraPolicy, keep: int) -> None:
        self._policy, self._keep = policy, keep
        self._published: OrderedDict[int, dict[str, Tensor]] = OrderedDict()

    def remember(self, version: int) -> None:
        """Keep the present weights as those of `version`."""
        self._published[version] = self._policy.snapshot()
        while len(self._published) > self._keep:
            self._published.popitem(last=False)

    def compare(self, trajectories: Sequence[Trajectory], queries: Mapping[str, Query]) -> Gap | None:
        """The gap on the newest version among untempered samples; None if no such version is kept."""
        by_version: dict[int, list[Trajectory]] = {}
        for item in trajectories:
            if item.source == "policy" and item.behaviour.adapter_version in self._published:
                by_version.setdefault(item.behaviour.adapter_version, []).append(item)
        if not by_version:
            return None
        version = max(by_version)
        with self._policy.swapped(self._published[version]):
            return measure_gap(self._policy, by_version[version][:MAX_COMPARED], queries)
