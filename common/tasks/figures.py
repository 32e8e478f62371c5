"""Figures of sampled rationales that several tasks report."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from common.diagnostics.correction import of_targets
from common.diagnostics.estimate import mean_of, of_influence
from common.diagnostics.importance import Floats, log_shares_of_distinct
from common.diagnostics.verdict import REFUSED_SHARE
from common.reward import RewardWeights
from common.trajectory import SAMPLED, Trajectory


def summarise(groups: Sequence[Sequence[Trajectory]], weights: RewardWeights) -> dict[str, float]:
    """Mean and best untempered log R, diversity and length; a group holds the samples of one query."""
    rewards = [item.log_reward(weights)[-1] for group in groups for item in group]
    return {
        "mean_log_reward": float(np.mean(rewards)),
        **best_of_each(groups, weights),
        "diversity": float(np.mean([edit_diversity(group) for group in groups])),
        "mean_actions": float(np.mean([len(item.action_ids) for group in groups for item in group])),
    }


def against_known(
    groups: Mapping[str, Sequence[Trajectory]], known: Mapping[str, Sequence[Trajectory]], weights: RewardWeights
) -> dict[str, float]:
    """How draws stand beside rationales that are known of their queries, by untempered log R: what a sampler misses is
    either not found by it or not preferred by the reward. Empty where none is known.

    `known_above` is the share of queries whose best known rationale has more R than every draw and isn't among them,
    which the sampler lacks; `known_below` that where another draw has more R than all known ones, so that the reward
    prefers it; `known_log_reward` the mean log R of the best known one.
    """
    both = [(groups[key], known[key]) for key in groups if known.get(key)]
    if not both:
        return {}

    def log_r(item: Trajectory) -> float:
        return float(item.log_reward(weights)[-1])

    best, above, below = [], 0, 0
    for group, others in both:
        reference, most = max(others, key=log_r), max(group, key=log_r)
        best.append(log_r(reference))
        if not {item.id for item in others} & {most.id}:
            drawn = any(item.id == reference.id for item in group)
            above += not drawn and log_r(most) < best[-1]
            below += log_r(most) > best[-1]
    n = len(both)
    return {"known_log_reward": float(np.mean(best)), "known_above": above / n, "known_below": below / n}


LENGTHS_TOGETHER = 5
"""Actions that a bin of lengths spans."""


def by_length(groups: Sequence[Sequence[Trajectory]], weights: RewardWeights) -> dict[str, float]:
    """Mean untempered log R of samples of 1 to 5 actions, of 6 to 10, …, with its standard error, and how large a share
    they are: likelihood favours short texts, so that samplers which write texts of different lengths are compared bin
    by bin. Bins without a sample are left out, and errors where all of a bin are of one query."""
    bins: defaultdict[int, list[list[float]]] = defaultdict(list)
    for group in groups:
        rewards: defaultdict[int, list[float]] = defaultdict(list)
        for item in group:
            rewards[max(0, len(item.action_ids) - 1) // LENGTHS_TOGETHER].append(float(item.log_reward(weights)[-1]))
        for i, found in rewards.items():
            bins[i].append(found)
    n, figures = sum(map(len, groups)), dict[str, float]()
    for i, of_queries in sorted(bins.items()):
        lengths = f"{i * LENGTHS_TOGETHER + 1}_to_{(i + 1) * LENGTHS_TOGETHER}"
        figures[f"log_reward_of_{lengths}"], error = _mean_over_queries(of_queries)
        if error is not None:
            figures[f"log_reward_of_{lengths}_se"] = error
        figures[f"share_of_{lengths}"] = sum(map(len, of_queries)) / n
    return figures


def _mean_over_queries(groups: Sequence[Sequence[float]]) -> tuple[float, float | None]:
    """The mean of all values, and its standard error where those of one query hang together (Liang and Zeger 1986);
    None for a single query."""
    counts, sums = np.array([len(group) for group in groups]), np.array([sum(group) for group in groups])
    mean = float(sums.sum() / counts.sum())
    if len(groups) < 2:
        return mean, None
    return mean, of_influence(mean, (sums - mean * counts) / counts.mean()).se


def best_of_each(groups: Sequence[Sequence[Trajectory]], weights: RewardWeights) -> dict[str, float]:
    """Mean over queries of the best sample's untempered log R, with its standard error where there are several."""
    best = [max(float(item.log_reward(weights)[-1]) for item in group) for group in groups]
    error = {"max_log_reward_se": mean_of(np.array(best)).se} if len(best) > 1 else {}
    return {"max_log_reward": float(np.mean(best)), **error}


def edit_diversity(group: Sequence[Trajectory]) -> float:
    """Mean normalised edit distance over token ids of all pairs, in [0, 1]; 0 for a single sample."""
    from rapidfuzz.distance import Levenshtein

    ids = [item.action_ids.tolist() for item in group]
    pairs = list(itertools.combinations(ids, 2))
    return float(np.mean([Levenshtein.normalized_distance(a, b) for a, b in pairs])) if pairs else 0.0


def target_wins(group: Sequence[Trajectory]) -> bool:
    """Whether the query's own target is the likeliest under the mean over rationales of p(Y|XZ⊤)."""
    log_means = _log_mean_of_choices(group, contextual=False)
    return bool((log_means[0] > log_means[1:]).all())


def accuracy(groups: Mapping[str, Sequence[Trajectory]]) -> float:
    """Share of queries whose own target wins."""
    return float(np.mean([target_wins(group) for group in groups.values()]))


def choice_log_probs(
    groups: Sequence[Sequence[Trajectory]], truths: Sequence[int], *, contextual: bool = False
) -> Floats:
    """log P(Y|X) of every choice, shape (queries, choices), each row normalised: of the mean over a query's rationales
    of p(Y|XZ⊤). `truths` says which choice each query's target is.

    Of a policy's own draws each distinct rationale counts once, by its probability (`log_shares_of_distinct`): how
    often it came is chance. With `contextual` each p(Y|XZ⊤) is divided by what it is behind the content-free text and
    normalised over the choices first (Zhao et al. 2021, with W diagonal and b = 0).
    """
    found = []
    for group, truth in zip(groups, truths, strict=True):
        own, *others = _log_mean_of_choices(group, contextual=contextual)
        found.append(np.insert(others, truth, own))
    return normalized(np.stack(found))


def normalized(log_p: Floats) -> Floats:
    """Each row of log-probabilities, shape (rows, choices), with the sum of its probabilities made 1."""
    return log_p - np.logaddexp.reduce(log_p, axis=1, keepdims=True)


def _log_mean_of_choices(group: Sequence[Trajectory], *, contextual: bool) -> Floats:
    """log of the mean over a query's rationales of p(Y|XZ⊤), up to a constant: of the target and then of each
    alternative."""
    items = list(group)
    log_shares = np.zeros(len(items))
    if all(item.source in SAMPLED for item in group):
        items = list({item.id: item for item in group}.values())
        log_shares = log_shares_of_distinct(np.array([item.behaviour.log_prob for item in items]), len(group))
    rows = np.stack([_of_choices(item, contextual=contextual) for item in items])
    return np.logaddexp.reduce((normalized(rows) if contextual else rows) + log_shares[:, None], axis=0)


def _of_choices(item: Trajectory, *, contextual: bool) -> Floats:
    """log p(Y|XZ⊤) of the target and then of each alternative, by the model or divided by what is content-free."""
    if not contextual:
        return item.log_targets
    if not len(item.log_choices):
        raise ValueError("trajectory was scored without a content-free text: it can't be calibrated by one")
    return item.log_targets - item.log_choices[len(item.log_targets) :].astype(np.float64)


def batch_calibrated(log_p: Floats) -> Floats:
    """Each choice's probability divided by its mean over the queries, normalised again (Zhou et al. 2023, equation 3);
    shape (queries, choices)."""
    return normalized(log_p - np.logaddexp.reduce(log_p, axis=0))


def prior_matched(log_p: Floats) -> Floats:
    """Each choice's probability times a weight of its own, the same for all queries, with which all choices are as
    probable in the mean over the queries; normalised again. Shape (queries, choices).

    Prior matching (Liusie et al. 2023, arXiv 2309.04992), which `batch_calibrated` is the first step of. That one does
    little where probabilities are near 0 and 1, as after fine-tuning.
    """
    from scipy.optimize import minimize

    def unevenness(shift: Floats) -> tuple[float, Floats]:
        # Convex, and least where the mean of the moved probabilities is even.
        moved = log_p + shift
        norms = np.logaddexp.reduce(moved, axis=1, keepdims=True)
        return float(norms.mean() - shift.mean()), np.exp(moved - norms).mean(axis=0) - 1 / len(shift)

    return normalized(log_p + minimize(unevenness, -log_p.mean(axis=0), jac=True, method="BFGS").x)


def classification(log_p: Floats, truths: Sequence[int]) -> dict[str, float]:
    """Accuracy of log P(Y|X), shape (queries, choices), and the area under its ROC curve: how often a query of a choice
    has more of it than one of another choice has, ties half; of more than two choices the mean of each against the
    rest, and none where all queries are of one choice."""
    from scipy.stats import rankdata  # SciPy's import takes a second

    areas, of = list[float](), np.array(truths)
    for choice in range(log_p.shape[1]):
        own = of == choice
        n, rest = int(own.sum()), int((~own).sum())
        if n and rest:
            # By log-odds: of probabilities near 1 rounding makes ties.
            ranks = rankdata(log_p[:, choice] - np.logaddexp.reduce(np.delete(log_p, choice, axis=1), axis=1))
            areas.append((float(ranks[own].sum()) - n * (n + 1) / 2) / (n * rest))
    area = {"auc": float(np.mean(areas))} if areas else {}
    return {"accuracy": float((log_p.argmax(axis=1) == of).mean()), **area}


def area_by_one_rationale(groups: Sequence[Sequence[Trajectory]], truths: Sequence[int]) -> dict[str, float]:
    """`auc_by_one`: the area under the ROC curve where each query's choice is made by one of its draws alone, mean over
    the draws. What `auc` has more is what averaging over rationales brings. Nothing of what isn't drawn, as a beam
    search's, nor where no query has two draws."""
    n = max(map(len, groups))
    if n < 2 or not all(item.source in SAMPLED for group in groups for item in group):
        return {}
    # Whatever order they stand in: those at one place of each query's may be alike.
    mixed = [random.Random(i).sample(group, len(group)) for i, group in enumerate(groups)]
    each = (
        classification(choice_log_probs([[group[i % len(group)]] for group in mixed], truths), truths) for i in range(n)
    )
    areas = [found["auc"] for found in each if "auc" in found]
    return {"auc_by_one": float(np.mean(areas))} if areas else {}


def corrected_accuracy(
    groups: Mapping[str, Sequence[Trajectory]], weights: RewardWeights, tau: float, misleading_penalty: float
) -> dict[str, float | str | None]:
    """Classification as in `accuracy`, by p(Y|X) under the rationales that R prefers and no longer those that were
    drawn: each weighs R/q, R of the prompt alone at temperature `tau`.

    `corrected_accuracy` is None where the estimates mean nothing for more than a tenth of the queries, which
    `corrected_refused` then explains. `corrected_ess` is the mean over queries of the effective share of the draws, and
    `corrected_pareto_k` the k̂ that nine of ten queries stay within. Nothing at all for what no policy sampled, as the
    likeliest rationales of a beam search, or the posterior's own draws.
    """
    if not all(item.source in SAMPLED for group in groups.values() for item in group):
        return {}
    shares, pareto_k, wins, refused = [], [], [], []
    for group in groups.values():
        found, log_p = of_targets(group, weights, tau, misleading_penalty)
        own, *others = (found.log_mean(column) for column in log_p)
        wins.append(all(own > other for other in others))
        shares.append(found.effective_sample_size / len(group))
        pareto_k += [] if found.pareto_k is None else [found.pareto_k]
        refused += [(shares[-1], found.refused)] if found.refused else []
    problem = None
    if len(refused) > REFUSED_SHARE * len(groups):
        _, worst = min(refused)
        problem = (
            f"p(Y|X) means nothing for {len(refused)} of {len(groups)} queries, for the worst as {'; '.join(worst)}"
        )
    return {
        "corrected_accuracy": float(np.mean(wins)) if problem is None else None,
        "corrected_ess": float(np.mean(shares)),
        "corrected_pareto_k": float(np.quantile(pareto_k, 0.9)) if len(pareto_k) == len(groups) else None,
        "corrected_refused": problem,
    }


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, the first to come among equals; None where there is none."""
    given = [answer for answer in answers if answer is not None]
    return Counter(given).most_common(1)[0][0] if given else None


def on_hull(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """The upper concave hull of points (x, y) at x: the best that mixing two of them gives; None outside of them."""
    best: float | None = None
    for (x0, y0), (x1, y1) in itertools.product(points, repeat=2):
        if x0 <= x <= x1:
            y = max(y0, y1) if x0 == x1 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
            best = y if best is None else max(best, y)
    return best
