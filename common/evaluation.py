"""Evaluation by samples while a run trains: what is sampled, and the figures of it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from common.reward import RewardWeights
from common.tasks import SampleRequest, Task
from common.trajectory import Query, Trajectory

PREFIX = "eval/"
"""Of these figures' names in metrics.jsonl and in the trackers."""
TRAINED = "trained"
"""How tasks call the samples of the trained policy."""


def request_of(task: Task[Any], n: int) -> SampleRequest:
    """`n` samples of a query, drawn as the task's own evaluation draws the trained policy's."""
    own = [request for request in task.sample_requests() if request.adapter and not request.beams]
    found = next((request for request in own if request.label == TRAINED), own[0] if own else None)
    if found is None:
        return SampleRequest(TRAINED, adapter=True, temperature=1.0, n=n)
    return replace(found, n=n)


def figures_of(
    task: Task[Any], request: SampleRequest, trajectories: Sequence[Trajectory], weights: RewardWeights, tau: float
) -> dict[str, float]:
    """The task's figures of samples of the trained policy alone, and two that every task has; counts are left out.

    `mean_log_reward` is the mean of log R, which a policy that has collapsed onto the best rationales has the highest
    of. `log_z_bound` is the mean of log R/τ − log q(Z⊤|X), whose expectation is log Z − KL(q ‖ posterior): no policy's
    is higher than the posterior's. It is there where samples are the policy's own, and neither tempered nor cut.

    Raises ValueError where there are no samples.
    """
    if not trajectories:
        raise ValueError("no sample of the evaluation made a valid trajectory")
    groups: defaultdict[str, list[Trajectory]] = defaultdict(list)
    for item in trajectories:
        groups[item.query_id].append(item)
    log_r = np.array([item.log_reward(weights)[-1] for item in trajectories])
    found = {"mean_log_reward": float(np.mean(log_r))}
    if (request.temperature, request.top_p, request.top_k) == (1.0, 1.0, 0):
        log_q = [item.behaviour.log_prob for item in trajectories]
        found["log_z_bound"] = float(np.mean(log_r / tau - log_q))
    if task.sample_requests():
        found |= task.evaluate_samples({request.label: dict(groups)}, weights)
    return {name: float(value) for name, value in found.items() if _is_measure(value)}


def _is_measure(value: object) -> bool:
    return isinstance(value, float | np.floating) and math.isfinite(value)


def evaluated_queries(task: Task[Any], n: int) -> tuple[list[Query], int]:
    """The queries that a run is evaluated on while it trains, and how many of them it trains on as well."""
    found, train = spread(task.queries("test"), n), {query.id for query in task.queries("train")}
    return found, sum(query.id in train for query in found)


def spread(queries: Sequence[Query], n: int) -> list[Query]:
    """At most `n` of them, evenly over all, so that each of several files has its part."""
    n = min(n, len(queries))
    return [queries[i * len(queries) // n] for i in range(n)]
