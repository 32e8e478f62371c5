"""From figures to words: may this sampler be trusted, and what helps if not.

Every threshold stands here with its source. "good": its draws may be taken as the posterior's. "usable with
correction": weighted or resampled they may, as they are they mislead. "not to be trusted": neither.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from common.diagnostics.diagnosis import QueryDiagnosis
from common.diagnostics.estimate import Estimate
from common.diagnostics.importance import tail_draws

PARETO_K_ERRORS = 0.5
"""Standard errors of k̂ by which it must be above its limit, as it is noisy itself. Ours."""
PARETO_K_LIMIT = 0.7
"""k̂ above it: more draws help too slowly to count on, however many there are (Vehtari et al. 2024, arXiv 1507.02646v9;
as the rule for using amortised draws Li et al. 2024, arXiv 2409.04332)."""
MIN_ESS = 10
"""Effective draws below it: the relative standard error of Z is above a third, where the delta method on the log scale
and every weighted mean end. Ours; Owen, chapter 9.3, asks for the check and leaves the number to the use."""
ROUNDING = 1e-6
"""Effective draws that rounding may take away: ten equal ones are worth 9.999…"""
EVEN_ESS = 0.9
"""Share at or above which weights are even (their coefficient of variation is a third at most), so that the shape of
their tail is of no account: k̂ has no scale, and a tail of a hundredth of the weight can have any shape. Ours."""
GOOD_ESS = 0.8
"""Share from which plain draws are as good as the posterior's: ess = 1/(1 + χ²(p‖q)), and by Cauchy and Schwarz total
variation is at most √χ²/2, here a quarter; KL(p‖q) is at most −log ess, 0.22 nats."""
GOOD_TV = math.sqrt(1 / GOOD_ESS - 1) / 2
GOOD_KL = -math.log(GOOD_ESS)
LOST_MASS, SOME_LOST_MASS = 0.1, 0.02
"""Posterior mass that no draws show: from the first on an estimate means nothing, from the second on draws are not
good as they are. Ours."""
SOME_MISSING, MOST_MISSING = 0.05, 0.5
"""Share of draws that made no valid rationale: above the first plain draws aren't the posterior's, above the second
nothing of them means much. Ours."""
ENOUGH_WITNESSES = 5.0
"""Effective draws of the base model from which on they speak for a sampler that draws one rationale alone. Ours."""
RIGHT_BESIDE = 0.5
"""Share of the posterior's mass on known rationales beside the most frequent draw that q must give them to be taken for
right on them. Ours."""
LENGTH_SHARE, LENGTH_TOKENS = 0.1, 0.5
"""A length bias counts from a tenth of the posterior's length and half a token on, and three standard errors. Ours."""
COLLAPSE_NATS = math.log(2)
"""A prefix collapse counts where q has half as many first tokens as the posterior, beyond the error. Ours."""
ONE_RATIONALE = 0.9
"""Share of draws that are one rationale from which on weights tell too little of the others to be the only witness:
of 256 draws no more than 26 are anything else. Ours."""
REFUSED_SHARE = 0.1
"""A run is not to be trusted when more than this share of its queries isn't, and good when as many are good. Ours."""
Z_99_7 = 0.997
"""Level of the intervals that a verdict rests on: three standard errors, so that it doesn't change with the seed."""

MORE_DRAWS = "draw more samples (256 or more)"
TRAIN_ON = "train longer (learner.steps), or steadier with a lower learner.lr"
EXPLORE = (
    "explore more: a higher actor.tempered_share or actor.temperature_high, learner.reward.temperature.start above 1, "
    "or seed rationales (seeds)"
)
OTHER_LENGTHS = "train longer (learner.steps), or with another learner.normalize or learner.objective"
VALID = "keep rationales valid: see why rewards fail in the log, or allow only valid ones (the task's mask)"
LOOK_ELSEWHERE = "check it against rationales from elsewhere: known ones, enumeration, or draws of the posterior"


class Verdict(StrEnum):
    """From best to worst."""

    GOOD = "good"
    CORRECT = "usable with correction"
    REFUSE = "not to be trusted"

    @property
    def rank(self) -> int:
        """0 for the best."""
        return list(Verdict).index(self)


@dataclass(frozen=True)
class Judgement:
    """The verdict on one query."""

    verdict: Verdict
    reasons: list[str]
    """Each names a figure, its value and the threshold; those for the verdict, and for a good one what it rests on."""
    remedy: str | None
    """What to do, where the pattern points to something."""
    may_be_chance: bool = False
    """Whether it is refused for a reason alone that other draws of the same sampler might not give: a heavy tail."""


@dataclass(frozen=True)
class RunJudgement:
    """The verdict on all queries of a run together."""

    verdict: Verdict
    worst: str
    """The query that fares worst, by its name."""
    counts: dict[str, int]
    """How many queries got each verdict, by its words."""
    remedy: str | None
    """That of most queries among those that fared worst."""


def pareto_k_limit(n: int) -> float:
    """The k̂ up to which `n` draws are enough: min(1 − 1/log10 n, 0.7) (arXiv 1507.02646v9)."""
    return min(1 - 1 / math.log10(max(n, 2)), PARETO_K_LIMIT)


def pareto_k_error(pareto_k: float, n: int) -> float:
    """The standard error of k̂ of `n` draws: (1 + k)/√m with m draws in the tail, which is that of the maximum
    likelihood (Smith 1987, *Estimating tails of probability distributions*)."""
    return (1 + max(pareto_k, -0.5)) / math.sqrt(max(tail_draws(n), 1))


def estimate_refused(pareto_k: float | None, n: int, ess: float) -> tuple[str, str] | None:
    """Why a weighted estimate from `n` draws means nothing, and the remedy; None if it means something.

    `ess` is the share of n. k̂ isn't asked where the weights are even (`EVEN_ESS`) or too few to tell it.
    """
    if n * ess < MIN_ESS - ROUNDING:
        return (
            f"the {n} weighted draws are worth {n * ess:.1f} of the posterior's, fewer than {MIN_ESS}",
            MORE_DRAWS if n * GOOD_ESS < MIN_ESS else f"{MORE_DRAWS}, or {TRAIN_ON}",
        )
    if pareto_k is None or ess >= EVEN_ESS:
        return None
    limit, allowed = pareto_k_limit(n), PARETO_K_ERRORS * pareto_k_error(pareto_k, n)
    if pareto_k - allowed > limit:
        return (
            f"Pareto k̂ of the weights is {pareto_k:.2f}, above {limit:.2f} for {n} draws by more than {allowed:.2f}, "
            "its noise: a few draws decide it all",
            f"{MORE_DRAWS}, or {TRAIN_ON}" if pareto_k <= PARETO_K_LIMIT else TRAIN_ON,
        )
    return None


def judge(diagnosis: QueryDiagnosis) -> Judgement:
    """The verdict on one query: the worst that any figure gives it."""
    sure = _refusals(diagnosis)
    refused = estimate_refused(diagnosis.pareto_k, diagnosis.n, diagnosis.ess)
    found = [*sure, refused] if refused else sure
    if found:
        return Judgement(Verdict.REFUSE, [reason for reason, _ in found], found[0][1], not sure)
    found = _corrections(diagnosis)
    if found:
        return Judgement(Verdict.CORRECT, [reason for reason, _ in found], found[0][1])
    k = "" if diagnosis.pareto_k is None else f"; Pareto k̂ {diagnosis.pareto_k:.2f}"
    reason = f"effective sample size {diagnosis.ess:.2f} of the draws, {GOOD_ESS} or more{k}"
    return Judgement(Verdict.GOOD, [reason], None)


def judge_run(named: Mapping[str, QueryDiagnosis], left_out: int = 0) -> RunJudgement:
    """The verdict on a run's queries, given by name; at least one. So many more were `left_out` for want of valid
    draws, and count as not to be trusted.

    A single query that may be refused by chance doesn't refuse the run, unless it is the only one.
    """
    judged = {name: judge(diagnosis) for name, diagnosis in named.items()}
    counts = {str(verdict): sum(item.verdict is verdict for item in judged.values()) for verdict in Verdict}
    counts[Verdict.REFUSE] += left_out
    total = len(judged) + left_out
    refused, chance = counts[Verdict.REFUSE], sum(item.may_be_chance for item in judged.values())
    if refused > REFUSED_SHARE * total and (refused > chance or refused > 1 or refused == total):
        verdict = Verdict.REFUSE
    elif not counts[Verdict.REFUSE] and counts[Verdict.GOOD] >= (1 - REFUSED_SHARE) * total:
        verdict = Verdict.GOOD
    else:
        verdict = Verdict.CORRECT
    worst = max(judged, key=lambda name: (judged[name].verdict.rank, _hidden(named[name]), -named[name].ess))
    remedies = Counter(item.remedy for item in judged.values() if item.remedy and item.verdict is judged[worst].verdict)
    return RunJudgement(verdict, worst, counts, remedies.most_common(1)[0][0] if remedies else None)


def is_hidden(diagnosis: QueryDiagnosis) -> bool:
    """Whether log Z is known to lie so far above its estimate that `LOST_MASS` of the posterior is missed."""
    return _hidden(diagnosis) > -math.log(1 - LOST_MASS)


def _hidden(diagnosis: QueryDiagnosis) -> float:
    """By how many nats log Z is known to lie above the estimate's interval; 0 where it doesn't."""
    known = diagnosis.log_z_low if diagnosis.log_z_exact is None else diagnosis.log_z_exact
    return max(0.0, known - diagnosis.log_z.interval(Z_99_7)[1])


def _refusals(diagnosis: QueryDiagnosis) -> list[tuple[str, str]]:
    """Reasons and remedies; what shows missed modes comes first, as weights look fine without them."""
    found = []
    if is_hidden(diagnosis):
        exact = diagnosis.log_z_exact is not None
        known = diagnosis.log_z_low if diagnosis.log_z_exact is None else diagnosis.log_z_exact
        found.append(
            (
                f"log Z is {'' if exact else 'at least '}{known:.2f} {'known' if exact else _known_by(diagnosis)}, its "
                f"estimate {_told(diagnosis.log_z)}: more than {LOST_MASS:.0%} of the posterior is missed",
                EXPLORE,
            )
        )
    if diagnosis.modes and diagnosis.modes.missed_mass > LOST_MASS:
        found.append(
            (
                f"known rationales with {diagnosis.modes.missed_mass:.0%} of the posterior, above {LOST_MASS:.0%}, are "
                f"too unlikely to be seen in {diagnosis.n} draws",
                EXPLORE,
            )
        )
    told = diagnosis.witness
    if told and told.missed_mass > LOST_MASS and told.missed_mass_low > SOME_LOST_MASS:
        found.append((f"{_missed_by_base(diagnosis)}, above {LOST_MASS:.0%}", EXPLORE))
    missing = diagnosis.missing / diagnosis.n
    if missing > MOST_MISSING:
        found.append((f"{missing:.0%} of the draws made no valid rationale, above {MOST_MISSING:.0%}", VALID))
    if diagnosis.kl_p_q and diagnosis.kl_p_q[0] > math.log(diagnosis.n):
        # Chatterjee and Diaconis 2018: importance sampling takes about exp(KL(p‖q)) draws.
        found.append(
            (
                f"KL(p‖q) is {diagnosis.kl_p_q[0]:.2f} nats at least, above log n = {math.log(diagnosis.n):.2f}: "
                f"{diagnosis.n} draws are too few for the weights to work",
                EXPLORE,
            )
        )
    if diagnosis.largest_share > ONE_RATIONALE and not _known_elsewhere(diagnosis):
        found.append(
            (
                f"{diagnosis.largest_share:.0%} of the draws, above {ONE_RATIONALE:.0%}, are one rationale: weights "
                "say next to nothing of what the sampler misses, and nothing known from elsewhere speaks for it",
                LOOK_ELSEWHERE,
            )
        )
    return found


def _corrections(diagnosis: QueryDiagnosis) -> list[tuple[str, str]]:
    """Reasons and remedies for what weights repair."""
    found = []
    if (gap := diagnosis.prefix_collapse.interval(Z_99_7)[0]) > COLLAPSE_NATS:
        found.append(
            (
                f"prefix collapse: the first token's entropy is {diagnosis.first_token_entropy:.2f} nats, under the "
                f"weights {diagnosis.first_token_entropy_weighted:.2f}; at least {gap:.2f} apart, above "
                f"{COLLAPSE_NATS:.2f}",
                EXPLORE,
            )
        )
    bias, length = diagnosis.length_bias, diagnosis.mean_length_weighted
    if abs(bias.value) > max(LENGTH_SHARE * length, LENGTH_TOKENS, 3 * bias.se):
        found.append(
            (
                f"length bias: draws are {diagnosis.mean_length:.1f} tokens long, under the weights {length:.1f}; "
                f"{bias.value:+.1f} ± {bias.se:.1f}, beyond {LENGTH_SHARE:.0%} of it",
                OTHER_LENGTHS,
            )
        )
    modes = diagnosis.modes
    if modes and (lost := modes.mass_under_posterior - modes.mass_under_q) > GOOD_TV:
        found.append(
            (
                f"known rationales have {modes.mass_under_posterior:.2f} of the posterior and {modes.mass_under_q:.2f} "
                f"of the sampler: {lost:.2f} less, above {GOOD_TV:.2f}",
                EXPLORE,
            )
        )
    if modes and modes.missed_mass > SOME_LOST_MASS:
        found.append(
            (
                f"known rationales with {modes.missed_mass:.0%} of the posterior, above {SOME_LOST_MASS:.0%}, are too "
                f"unlikely to be seen in {diagnosis.n} draws",
                EXPLORE,
            )
        )
    told = diagnosis.witness
    if told and told.missed_mass > SOME_LOST_MASS:
        found.append((f"{_missed_by_base(diagnosis)}, above {SOME_LOST_MASS:.0%}", EXPLORE))
    missing = diagnosis.missing / diagnosis.n
    if missing > SOME_MISSING:
        found.append((f"{missing:.0%} of the draws made no valid rationale, above {SOME_MISSING:.0%}", VALID))
    if diagnosis.kl_p_q and diagnosis.kl_p_q[0] > GOOD_KL:
        found.append((f"KL(p‖q) is {diagnosis.kl_p_q[0]:.2f} nats at least, above {GOOD_KL:.2f}", TRAIN_ON))
    if diagnosis.ess < GOOD_ESS:
        found.append((f"effective sample size {diagnosis.ess:.2f} of the draws, below {GOOD_ESS}", TRAIN_ON))
    return found


def _known_elsewhere(diagnosis: QueryDiagnosis) -> bool:
    """Whether anything but the draws themselves tells of the posterior: known rationales that q is right on beside the
    one it draws, and draws of the base model or of the posterior."""
    modes, told = diagnosis.modes, diagnosis.witness
    right = modes is not None and modes.beside is not None and modes.beside >= RIGHT_BESIDE
    enough = told is not None and told.effective_draws >= ENOUGH_WITNESSES
    return right or enough or diagnosis.log_z_exact is not None or diagnosis.log_z_upper is not None


def _known_by(diagnosis: QueryDiagnosis) -> str:
    """What the highest lower limit of log Z comes from."""
    if diagnosis.log_z_low == diagnosis.log_z_floor:
        return "by rationales known"
    told = diagnosis.witness
    if told is not None and diagnosis.log_z_low == told.log_z_low:
        return f"by {told.n} draws of the base model"
    return "by draws before training"


def _missed_by_base(diagnosis: QueryDiagnosis) -> str:
    told = diagnosis.witness
    assert told is not None
    return (
        f"{told.missed_mass:.0%} of the posterior, by {told.n} draws of the base model, is on rationales too unlikely "
        f"to be seen in {diagnosis.n} draws"
    )


def _told(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ± {estimate.se:.2f}"
