"""Looks at a run on held-out queries while it trains: what is sampled, and an evaluation's figures of it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from common.config import RunConfig
from common.held_out import EVALUATION_PREFIX, Part, diagnosis_request, is_the_policy_s_own
from common.reward import RewardWeights
from common.tasks import SampleRequest, Task
from common.trajectory import Query, Trajectory

PREFIX = EVALUATION_PREFIX
"""Of an evaluation's figures' names."""
TRAINED = "trained"
"""How tasks call the samples of the trained policy."""


def request_of(task: Task[Any], n: int) -> SampleRequest:
    """`n` samples of a query, drawn as the task's own evaluation draws the trained policy's."""
    own = [request for request in task.sample_requests() if request.adapter and not request.beams]
    found = next((request for request in own if request.label == TRAINED), own[0] if own else None)
    if found is None:
        return SampleRequest(TRAINED, adapter=True, temperature=1.0, n=n)
    return replace(found, n=n)


def requests_of(config: RunConfig, task: Task[Any]) -> dict[Part, SampleRequest]:
    """What is sampled of a query for each part of a look."""
    return {
        Part.EVALUATION: request_of(task, config.evaluation.samples),
        Part.DIAGNOSIS: diagnosis_request(config.diagnose.samples),
    }


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
    if is_the_policy_s_own(request):
        log_q = [item.behaviour.log_prob for item in trajectories]
        found["log_z_bound"] = float(np.mean(log_r / tau - log_q))
    if task.sample_requests():
        found |= task.evaluate_samples({request.label: dict(groups)}, weights)
    return measures(found)


def measures(found: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among a task's figures, counts left out."""
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, float | np.floating) and math.isfinite(value)
    }


def evaluated_queries(task: Task[Any], n: int) -> tuple[list[Query], int]:
    """At most `n` queries that a run is measured on while it trains, and how many of them it trains on as well."""
    found, train = spread(task.queries("test"), n), {query.id for query in task.queries("train")}
    return found, sum(query.id in train for query in found)


def held_out_queries(config: RunConfig, task: Task[Any]) -> tuple[list[tuple[Query, Part]], dict[Part, int]]:
    """What a run looks at while it trains, each query with the parts that it serves; and how many of each part's the
    run trains on as well."""
    found: dict[str, tuple[Query, Part]] = {}
    trained_on: dict[Part, int] = {}
    for part, n in ((Part.EVALUATION, config.evaluation.queries), (Part.DIAGNOSIS, config.diagnose.queries)):
        if part not in config.looks:
            continue
        queries, trained_on[part] = evaluated_queries(task, n)
        for query in queries:
            before = found[query.id][1] if query.id in found else Part(0)
            found[query.id] = (query, before | part)
    return list(found.values()), trained_on


def spread(queries: Sequence[Query], n: int) -> list[Query]:
    """At most `n` of them, evenly over all, so that each of several files has its part."""
    n = min(n, len(queries))
    return [queries[i * len(queries) // n] for i in range(n)]
