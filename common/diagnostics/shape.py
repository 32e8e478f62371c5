"""The shape of what a sampler draws: how many rationales, how they begin, how long they are.

Trajectory balance and its sub-trajectory form fail on language models in two published ways (RapTB, arXiv 2603.00454):
prefix collapse, where all samples begin alike, and length bias, where they are shorter or longer than the posterior's.
Each is told by the difference of two means over the same draws, one plain and one weighted by w = R/q, so that neither
is held against a posterior that is itself short or has one beginning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.diagnostics.draws import Draws
from common.diagnostics.estimate import Estimate, of_influence
from common.diagnostics.importance import Floats, normalized_weights


@dataclass(frozen=True)
class Shape:
    """Figures of the draws of one query; lengths in tokens without ⊤, entropies in nats."""

    distinct: int
    largest_share: float
    unique_mass: float
    first_token_entropy: float
    first_token_entropy_weighted: float
    prefix_collapse: Estimate
    distinct_prefixes: list[int]
    mean_length: float
    mean_length_weighted: float
    length_bias: Estimate


def shape_of(draws: Draws) -> Shape:
    """The figures, each as `QueryDiagnosis` describes it."""
    weights = normalized_weights(draws.log_weights)
    plain, weighted, collapse = _first_tokens(draws, weights)
    lengths = draws.lengths
    mean, mean_weighted = float(lengths.mean()), float(weights @ lengths)
    influence = (lengths - mean) - draws.n * weights * (lengths - mean_weighted)
    once = draws.distinct()
    return Shape(
        distinct=once.n,
        largest_share=int(np.bincount(draws.labels()).max()) / draws.n,
        unique_mass=min(1.0, float(np.exp(once.log_q).sum())),
        first_token_entropy=plain,
        first_token_entropy_weighted=weighted,
        prefix_collapse=collapse,
        distinct_prefixes=distinct_prefixes(draws.actions),
        mean_length=mean,
        mean_length_weighted=mean_weighted,
        length_bias=of_influence(mean - mean_weighted, influence),
    )


def distinct_prefixes(actions: tuple[tuple[int, ...], ...]) -> list[int]:
    """How many different beginnings of 1, 2, … tokens there are, up to the longest; a rationale that ends before
    counts with its whole, so the numbers never fall, and the last is that of distinct rationales."""
    found = set(actions)
    longest = max(map(len, found), default=0)
    # ⊤ is a token here, as "a" that ends and "a" that goes on have parted.
    ended = [(*item, -1) for item in found]
    return [len({item[:depth] for item in ended}) for depth in range(1, longest + 2)]


def _first_tokens(draws: Draws, weights: Floats) -> tuple[float, float, Estimate]:
    """Entropy of the first token (⊤ among them) under q and under the weights, and the second less the first."""
    first = np.array([item[0] if item else -1 for item in draws.actions])
    _, which = np.unique(first, return_inverse=True)
    # Shares too small for floating point count as the smallest; their weight is 0 then.
    surprise, surprise_weighted = (
        -np.log(np.maximum(np.bincount(which, weights=shares), np.finfo(np.float64).tiny))[which]
        for shares in (np.full(draws.n, 1.0 / draws.n), weights)
    )
    plain, weighted = float(surprise.mean()), float(weights @ surprise_weighted)
    # The influence function of an entropy Σ −p log p is −log p less the entropy.
    influence = draws.n * weights * (surprise_weighted - weighted) - (surprise - plain)
    return plain, weighted, of_influence(weighted - plain, influence)
