"""The diagnosis of one query: how far q(Z|X) is from the posterior p(Z|X,Y) = R/Z, from draws of q with w = R/q.

- log Z by the mean weight, from below by the ELBO (the mean of log w) and by IWAE-k (the mean of the log of the mean
  of k weights; Burda, Grosse and Salakhutdinov 2016, arXiv 1509.00519), from above by the EUBO, the mean of log w over
  draws of the posterior (Blessing et al. 2024, arXiv 2406.07423; of language models Zhao et al. 2024, 2404.17546).
- KL(q‖p) = log Z − ELBO and KL(p‖q) = EUBO − log Z, as intervals.
- How far the weights can be trusted: effective sample size, Pareto k̂, the largest weight's share.
- The shape of the draws (`shape.py`), and what rationales known from elsewhere (`modes.py`) and draws of the base model
  (`witness.py`) show.

Draws that made no valid rationale have R = 0, and count: with s the share of the others, log Z is that of the mean weight
over all, and the effective sample size a share of all. log R has no mean then. ELBO and IWAE-k are those of the sampler
that draws again until it is valid, q/s: their means over the valid draws, and log s. KL(q‖p) is that sampler's as well,
and so are all figures of shape.

All log-quantities in nats. Intervals cover with probability 95%.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.diagnostics.draws import Draws
from common.diagnostics.estimate import Estimate, mean_of, of_influence
from common.diagnostics.importance import (
    Floats,
    effective_sample_size,
    log_mean_weight,
    normalized_weights,
    pareto_smoothed,
)
from common.diagnostics.modes import ModeCoverage, log_total, mode_coverage
from common.diagnostics.shape import shape_of
from common.diagnostics.witness import Testimony, Witness, testimony

IWAE_BLOCKS = 16
"""Blocks of draws that IWAE-k is the mean over: the fewest that give it a standard error worth the name."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class QueryDiagnosis:
    """What n draws of the sampler, and whatever else is known, say of it on one query. `dataclasses.asdict` makes
    it JSON: every number is finite."""

    n: int
    """Draws of q, those that are missing included."""
    log_z: Estimate
    """log of the mean weight, with the delta method's error. Too low by what q misses wholly."""
    elbo: Estimate
    """The mean of log w: a lower bound of log Z, by KL(q‖p)."""
    iwae: Estimate
    """The mean over blocks of k draws of the log of their mean weight: a lower bound of log Z, between the two."""
    iwae_k: int
    """n / 16, at least 1, where it is the ELBO."""
    log_z_upper: Estimate | None
    """The EUBO, the mean of log w over draws of the posterior: an upper bound of log Z, by KL(p‖q). None without."""
    log_z_exact: float | None
    """Where log Z is known otherwise, by enumeration say."""
    log_z_floor: float
    """log Σ R over all distinct rationales seen, drawn or known: a sure lower bound of log Z."""
    kl_q_p: Interval
    """KL(q‖p), low and high. Without log Z or draws of the posterior the high end misses what q misses."""
    kl_p_q: Interval | None
    """KL(p‖q), low and high; None without draws of the posterior."""
    ess: float
    """Effective sample size as a share of n, 0 to 1 (Kish). 1/ess − 1 estimates χ²(p‖q)."""
    pareto_k: float | None
    """k̂ of the weights' tail, as `pareto_smoothed` defines it for a discrete space; None for fewer than 25 draws."""
    max_weight_share: float
    """The share of all weight that the heaviest single draw has, 1/n to 1."""
    distinct: int
    """Different rationales among the draws."""
    largest_share: float
    """The share of draws that are the most frequent rationale, 1/n to 1."""
    unique_mass: float
    """Σ q over the different rationales drawn: how much of q's own mass the draws have seen, 0 to 1. Near 1 with few
    distinct ones q is narrow, and the weights of its draws say nothing of what lies outside."""
    first_token_entropy: float
    """Of the draws' first tokens, where ⊤ counts as one."""
    first_token_entropy_weighted: float
    """The same with each draw weighted by w: the posterior's, as far as the draws show it."""
    prefix_collapse: Estimate
    """The weighted entropy less the plain: above 0 q has fewer beginnings than the posterior."""
    distinct_prefixes: list[int]
    """Different beginnings of 1, 2, … tokens among the draws; shorter rationales count whole, with their ⊤. The last is
    the number of distinct rationales."""
    mean_length: float
    """Tokens of a draw, without ⊤."""
    mean_length_weighted: float
    """The same under the weights: the posterior's mean length, as far as the draws show it."""
    length_bias: Estimate
    """mean_length − mean_length_weighted: above 0 the sampler writes too long, below 0 too short."""
    modes: ModeCoverage | None
    """Known rationales under q; None where none are given."""
    missing: int = 0
    """Draws among the n that made no valid rationale; their R is 0."""
    witness: Testimony | None = None
    """What draws of the base model say of q; None where there are none."""
    log_z_known: float | None = None
    """A lower limit of log Z from elsewhere, that isn't certain but as good as: by earlier draws of another sampler."""

    @property
    def log_z_low(self) -> float:
        """The highest of what log Z is known not to lie below, by others than q's own weights."""
        told = [self.log_z_floor]
        told += [] if self.witness is None else [self.witness.log_z_low]
        told += [] if self.log_z_known is None else [self.log_z_known]
        return max(told)


def diagnose(
    draws: Draws,
    *,
    posterior_draws: Draws | None = None,
    log_z_exact: float | None = None,
    modes: Draws | None = None,
    witness: Witness | None = None,
    log_z_known: float | None = None,
) -> QueryDiagnosis:
    """Diagnose the sampler on a query from two or more independent `draws` of it.

    `posterior_draws` are draws of the posterior, independent or thinned until nearly so, each with the sampler's log q.
    `modes` are rationales known from elsewhere, each with its exact log q and log R; repeated ones count once. `witness`
    are draws of the base model, and `log_z_known` a lower limit of log Z by draws that are gone.
    """
    if draws.n < 2 or (posterior_draws is not None and posterior_draws.n < 2):
        raise ValueError("a diagnosis needs two draws at least, of the sampler and of the posterior if any")
    log_weights = draws.log_weights
    shares = normalized_weights(log_weights)
    valid = _log_share(draws)
    influence = np.append(draws.asked * shares, np.zeros(draws.missing))
    log_z = of_influence(log_mean_weight(log_weights) + valid.value, influence)
    elbo, (iwae, iwae_k) = _plus(mean_of(log_weights), valid), _iwae(log_weights)
    upper = mean_of(posterior_draws.log_weights) if posterior_draws else None
    seen = draws
    for others in (modes, posterior_draws, witness.draws if witness else None):
        seen = seen.joined(others) if others else seen
    floor = log_total(seen)
    best = max(log_z.value, floor, floor if log_z_known is None else log_z_known)
    best = best if log_z_exact is None else log_z_exact
    told = testimony(witness, draws.asked, log_z.value, best) if witness and witness.draws.n else None
    if told is not None and log_z_exact is None:
        best = max(best, told.log_z_low)
    shape = shape_of(draws)
    return QueryDiagnosis(
        n=draws.asked,
        log_z=log_z,
        elbo=elbo,
        iwae=_plus(iwae, valid),
        iwae_k=iwae_k,
        log_z_upper=upper,
        log_z_exact=log_z_exact,
        log_z_floor=floor,
        kl_q_p=_kl_q_p(log_weights, elbo, upper, log_z_exact, floor),
        kl_p_q=_kl_p_q(log_z, upper, log_z_exact) if upper else None,
        ess=effective_sample_size(log_weights) / draws.asked,
        pareto_k=pareto_smoothed(log_weights, draws.labels()).pareto_k,
        max_weight_share=float(shares.max()),
        distinct=shape.distinct,
        largest_share=shape.largest_share,
        unique_mass=shape.unique_mass,
        first_token_entropy=shape.first_token_entropy,
        first_token_entropy_weighted=shape.first_token_entropy_weighted,
        prefix_collapse=shape.prefix_collapse,
        distinct_prefixes=shape.distinct_prefixes,
        mean_length=shape.mean_length,
        mean_length_weighted=shape.mean_length_weighted,
        length_bias=shape.length_bias,
        modes=mode_coverage(modes, draws, best) if modes and modes.n else None,
        missing=draws.missing,
        witness=told,
        log_z_known=log_z_known,
    )


def _log_share(draws: Draws) -> Estimate:
    """log of the share that is valid, with its binomial error."""
    return Estimate(float(np.log(draws.n / draws.asked)), (draws.missing / draws.n / draws.asked) ** 0.5)


def _plus(estimate: Estimate, other: Estimate) -> Estimate:
    """The sum of two that are independent."""
    return Estimate(estimate.value + other.value, float(np.hypot(estimate.se, other.se)), estimate.degrees)


def _iwae(log_weights: Floats) -> tuple[Estimate, int]:
    """IWAE-k and its k: disjoint blocks of k draws are independent, so their mean is unbiased and has an error."""
    k = max(1, len(log_weights) // IWAE_BLOCKS)
    blocks = log_weights[: len(log_weights) // k * k].reshape(-1, k)
    return mean_of(np.logaddexp.reduce(blocks, axis=1) - np.log(k), student=True), k


def _kl_q_p(log_weights: Floats, elbo: Estimate, upper: Estimate | None, exact: float | None, floor: float) -> Interval:
    """log Z − ELBO; of one set of draws both move together, which the delta method takes into account. The share of
    valid draws is in both, and cancels."""
    elbo_low, elbo_high = elbo.interval()
    if exact is not None:
        return max(0.0, exact - elbo_high), max(0.0, exact - elbo_low)
    mean = float(log_weights.mean())
    influence = len(log_weights) * normalized_weights(log_weights) - (log_weights - mean)
    low, high = of_influence(log_mean_weight(log_weights) - mean, influence).interval()
    # What is known from elsewhere holds whatever the draws have missed.
    low, high = max(low, floor - elbo_high), max(high, floor - elbo_low)
    if upper is not None:
        joint = Estimate(upper.value - elbo.value, float(np.hypot(upper.se, elbo.se)))
        high = max(high, joint.interval()[1])
    return max(0.0, low), max(0.0, high)


def _kl_p_q(log_z: Estimate, upper: Estimate, exact: float | None) -> Interval:
    """EUBO − log Z, of independent sets of draws."""
    of_z = Estimate(exact, 0.0) if exact is not None else log_z
    low, high = Estimate(upper.value - of_z.value, float(np.hypot(upper.se, of_z.se))).interval()
    return max(0.0, low), max(0.0, high)
