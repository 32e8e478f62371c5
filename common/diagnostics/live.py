"""A diagnosis while a run trains, in a few figures: of each held-out query, then of all of them together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from common.diagnostics.diagnosis import QueryDiagnosis, diagnose
from common.diagnostics.draws import Draws
from common.diagnostics.verdict import ONE_RATIONALE, RunJudgement, is_hidden, judge_run

PREFIX_DEPTH = 3
"""Tokens of the prefixes that are counted, fewer where rationales are shorter: a sampler whose beginnings have
collapsed (RapTB, arXiv 2603.00454) has few of them, however much they differ later on."""


@dataclass(frozen=True)
class LiveDiagnosis:
    """What the draws of one adapter version say."""

    figures: dict[str, float]
    """By the names of `common.stop_rule.DIAGNOSED`; one that is unknown for some query is left out."""
    judgement: RunJudgement
    queries: int
    draws: int
    narrow: int
    """Queries nearly all of whose draws are one rationale: equal weights say nothing of what lies outside."""
    hidden: int
    """Queries whose log Z is known to lie above its estimate, so that a noticeable share of the posterior is missed."""


def diagnose_live(
    draws: Mapping[str, Draws], known: Mapping[str, float] | None = None, left_out: int = 0
) -> LiveDiagnosis:
    """Diagnose a version by draws of some queries, by their ids; raises ValueError where there are none.

    `known` are lower limits of log Z by the draws of the untrained adapter, which is the base model; so many queries
    more were `left_out` for want of valid draws.
    """
    if not draws:
        raise ValueError("no query has draws enough")
    found = {query: diagnose(item, log_z_known=(known or {}).get(query)) for query, item in draws.items()}
    n = sum(item.n for item in draws.values())
    narrow = sum(item.largest_share > ONE_RATIONALE for item in found.values())
    hidden = sum(is_hidden(item) for item in found.values())
    return LiveDiagnosis(
        figures_of_all(list(found.values())), judge_run(found, left_out), len(found), n, narrow, hidden
    )


def figures_of_all(found: list[QueryDiagnosis]) -> dict[str, float]:
    """A sampler is trusted no further than its worst query: `ess` is the lowest share of all, `pareto_k` the highest.

    The others are means over the queries, with `log_z_se` the standard error of that mean, and `ess_mean` for a curve
    that is less noisy than its lowest point.
    """
    figures = {
        "ess": min(item.ess for item in found),
        "ess_mean": _mean([item.ess for item in found]),
        "pareto_k": _highest([item.pareto_k for item in found]),
        "log_z": _mean([item.log_z.value for item in found]),
        "log_z_se": float(np.sqrt(np.sum(np.square([item.log_z.se for item in found])))) / len(found),
        "elbo": _mean([item.elbo.value for item in found]),
        "length_bias": _mean([item.length_bias.value for item in found]),
        "distinct_prefixes": _mean([_prefixes(item.distinct_prefixes) for item in found]),
    }
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _highest(values: list[float | None]) -> float:
    """NaN where one is unknown: the worst is unknown then."""
    return max((math.nan if value is None else value for value in values), key=lambda value: (math.isnan(value), value))


def _prefixes(by_depth: list[int]) -> float:
    return float(by_depth[min(PREFIX_DEPTH, len(by_depth)) - 1])
