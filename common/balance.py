"""Who waits for whom while a run trains, in words: what holds it back, by how much, and the setting to change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from common.config import RunConfig

WAIT_SHARE = "wait_share"
"""In what the learner and actors tell of themselves: the share of their time, from the learner's first step or the
actor's first adapter on, that they waited for each other."""
FEW = 0.1
"""A share of the time that is not worth a change."""

HAND_OVERS = "adapter_hand_overs_s"
"""In what actors tell of themselves: from each version's publication to its first request, in seconds; the newest."""
HAND_OVERS_KEPT = 64


def hand_over(actors: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """How long versions took from the learner to the engines, over all actors; empty before there are any."""
    found = [float(taken_s) for actor in actors for taken_s in actor.get(HAND_OVERS) or ()]
    if not found:
        return {}
    return {f"adapter_hand_over_p{p}_s": float(np.percentile(found, p)) for p in (50, 95)}


def bottleneck(learner: Mapping[str, Any], actors: Iterable[Mapping[str, Any]], config: RunConfig) -> str | None:
    """Whether learner or actors are too slow for the other; None before there is anything to tell."""
    learner_waits = learner.get(WAIT_SHARE)
    shares = [float(actor[WAIT_SHARE]) for actor in actors if actor.get(WAIT_SHARE) is not None]
    if learner_waits is None or not shares:
        return None
    actors_wait, per_insert = sum(shares) / len(shares), config.buffer.samples_per_insert
    if max(learner_waits, actors_wait) < FEW:
        return f"none: learner and actors wait less than {FEW:.0%} of their time"
    if learner_waits >= actors_wait:
        return (
            f"actors: the learner waits {learner_waits:.0%} of its time for trajectories; raise actor.count, or train "
            f"on each more often (buffer.samples_per_insert above {per_insert:g})"
        )
    more = "learner.num_processes" if config.learner.device == "cuda" else "learner.threads"
    return (
        f"learner: the actors wait {actors_wait:.0%} of their time for it; raise {more}, or train on each trajectory "
        f"less often (buffer.samples_per_insert below {per_insert:g})"
    )
