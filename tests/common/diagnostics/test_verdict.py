"""What a diagnosis comes to in words."""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from common.config import RunConfig
from common.diagnostics import verdict
from common.diagnostics.diagnosis import QueryDiagnosis, diagnose
from common.diagnostics.draws import Draws
from common.diagnostics.importance import effective_sample_size, pareto_smoothed
from common.diagnostics.modes import ModeCoverage
from common.diagnostics.verdict import Verdict, estimate_refused, judge, judge_run, pareto_k_limit
from common.diagnostics.witness import Witnessed
from tests.common.diagnostics.enumerable import RATIONALES, Enumerable, mediocre, posterior, sampler

N = 256
FIRST = np.array([item[0] if item else 0 for item in RATIONALES])
LENGTHS = np.array([len(item) for item in RATIONALES], float)


def collapsed() -> Enumerable:
    """Almost always the best rationale, which has a share of the posterior like others."""
    log_r = posterior()
    return sampler(log_r, 20.0 * (np.arange(len(log_r)) == log_r.argmax()))


def found(problem: Enumerable, seed: int = 1, **known: object) -> QueryDiagnosis:
    return diagnose(problem.draw(N, np.random.default_rng(seed)), **known)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("off", [0.0, 0.01, 0.1, 0.2])
def test_a_sampler_that_is_exact_or_almost_is_good(off: float, seed: int) -> None:
    problem = sampler(posterior(), off)
    known = problem.of(problem.log_r.argsort()[-10:])
    assert judge(found(problem, seed, modes=known)).verdict is Verdict.GOOD
    assert judge(found(problem, seed)).verdict is Verdict.GOOD


def test_a_mediocre_sampler_is_usable_with_correction_for_its_effective_sample_size() -> None:
    judgement = judge(found(mediocre()))
    assert judgement.verdict is Verdict.CORRECT and judgement.remedy is not None
    assert any("effective sample size 0." in reason and "below 0.8" in reason for reason in judgement.reasons)


def test_a_collapsed_sampler_has_perfect_weights_and_is_found_by_what_is_known_besides() -> None:
    problem = collapsed()
    alone = found(problem)
    assert (alone.ess, alone.pareto_k, alone.distinct) == (pytest.approx(1.0), 0.0, 1)
    generator = np.random.default_rng(2)
    for known in (
        {"modes": problem.of(problem.log_r.argsort()[-6:])},
        {"log_z_exact": problem.log_z},
        {"posterior_draws": problem.draw_posterior(64, generator)},
    ):
        judgement = judge(found(problem, **known))
        assert judgement.verdict is Verdict.REFUSE, known
        assert judgement.remedy is not None and "explore more" in judgement.remedy


def test_draws_of_one_rationale_speak_for_nothing_unless_something_else_does() -> None:
    judgement = judge(found(collapsed()))
    assert judgement.verdict is Verdict.REFUSE and judgement.reasons[0].startswith("100% of the draws, above 90%")


@pytest.mark.parametrize("sharpness", [5.0, 20.0])
def test_a_posterior_that_is_itself_narrow_is_no_collapse_once_other_rationales_are_known(sharpness: float) -> None:
    log_r = posterior()
    narrow = sampler(log_r + sharpness * (np.arange(40) == log_r.argmax()), 0.0)
    alone = found(narrow)
    assert alone.largest_share > 0.9 and judge(alone).verdict is Verdict.REFUSE
    known = narrow.of(narrow.log_r.argsort()[-3:])
    assert judge(found(narrow, modes=known)).verdict is Verdict.GOOD


@pytest.mark.parametrize("seed", range(5))
def test_a_sampler_that_is_collapsed_but_for_a_few_draws_is_refused_by_its_draws_alone(seed: int) -> None:
    m = 1_000
    p = np.random.default_rng(3).dirichlet(np.ones(m))
    q = 0.01 * p + 0.99 * (np.arange(m) == p.argmax())
    indices = np.random.default_rng(seed).choice(m, N, p=q)
    draws = Draws(np.log(q)[indices], np.log(p)[indices], tuple((i,) for i in indices.tolist()))
    assert judge(diagnose(draws)).verdict is Verdict.REFUSE


def test_what_is_missed_wholly_is_refused_once_rationales_from_there_are_known() -> None:
    missing = sampler(posterior(), -30.0 * (FIRST == 2))
    lost = missing.p[FIRST == 2].sum()
    assert lost > 0.15
    assert judge(found(missing)).verdict is not Verdict.REFUSE  # Nothing shows it,
    known = missing.of(missing.log_r.argsort()[-12:])
    judgement = judge(found(missing, modes=known))  # until rationales from there are known.
    assert judgement.verdict is Verdict.REFUSE
    assert any("too unlikely to be seen in 256 draws" in reason for reason in judgement.reasons)


def test_many_known_rationales_that_are_each_rare_are_no_missed_modes() -> None:
    m = 5_000
    flat = Draws(np.full(m, -np.log(m)), np.zeros(m), tuple((i,) for i in range(m)))
    draws = Draws(flat.log_q[:N], flat.log_r[:N], flat.actions[:N])
    figures = diagnose(draws, modes=flat)
    assert figures.modes is not None and figures.modes.missed == m and figures.modes.missed_mass == 0
    assert judge(figures).verdict is Verdict.GOOD


def test_length_bias_and_prefix_collapse_are_reasons_of_their_own() -> None:
    shorter = judge(found(sampler(posterior(), -1.2 * LENGTHS)))
    assert any(reason.startswith("length bias: draws are 1.") for reason in shorter.reasons)
    # Of 13 beginnings of equal mass the sampler writes one half the time and the others too seldom.
    log_q = np.log(np.array([0.9] + [0.1 / 12] * 12))
    spread = Enumerable(np.zeros(13) - 3.0, log_q)
    indices = np.random.default_rng(3).choice(13, 2_048, p=spread.q)
    draws = Draws(log_q[indices], spread.log_r[indices], tuple((i,) for i in indices.tolist()))
    reasons = judge(diagnose(draws)).reasons
    assert any(reason.startswith("prefix collapse: the first token's entropy is 0.") for reason in reasons)


def test_a_verdict_on_length_does_not_jump_on_noise() -> None:
    exact = sampler(posterior(), 0.15)
    for seed in range(40):
        few = diagnose(exact.draw(32, np.random.default_rng(seed)))
        assert not any("length bias" in reason or "prefix" in reason for reason in judge(few).reasons)


@pytest.mark.parametrize(
    ("n", "limit"), [(10, 0.0), (64, 0.446), (256, 0.585), (2_048, 0.698), (10_000, 0.7), (10**6, 0.7)]
)
def test_the_limit_of_pareto_k_grows_with_the_draws_up_to_its_own(n: int, limit: float) -> None:
    assert pareto_k_limit(n) == pytest.approx(limit, abs=0.001)


def test_an_estimate_is_refused_with_the_figure_and_a_remedy() -> None:
    assert estimate_refused(0.3, 256, 0.4) is None
    assert estimate_refused(None, 12, 0.9) is None
    assert estimate_refused(1.4, 256, 0.97) is None  # Of even weights the tail is of no account.
    problem, remedy = estimate_refused(0.9, 256, 0.4) or ("", "")
    assert "k̂ of the weights is 0.90, above 0.58 for 256 draws" in problem and "learner.steps" in remedy
    assert estimate_refused(0.6, 256, 0.4) is None  # Above the limit by less than its noise.
    problem, remedy = estimate_refused(0.7, 64, 0.4) or ("", "")
    assert "0.70" in problem and "above 0.45 for 64 draws by more than 0.25" in problem and "draw more" in remedy
    problem, remedy = estimate_refused(0.2, 256, 0.01) or ("", "")
    assert "worth 2.6" in problem and "fewer than 10" in problem and "draw more" in remedy
    assert estimate_refused(None, 10, 0.9999999999) is None
    problem, remedy = estimate_refused(None, 8, 1.0) or ("", "")
    assert "worth 8.0" in problem and remedy == "draw more samples (256 or more)"


def test_a_run_is_judged_by_the_share_of_its_queries_and_names_the_worst() -> None:
    good, fair, bad = found(sampler(posterior(), 0.05)), found(mediocre()), found(collapsed())
    bad_known = found(collapsed(), modes=collapsed().of(np.arange(40)))
    good_run = judge_run({f"q{i}": good for i in range(19)} | {"fair": fair})
    assert (good_run.verdict, good_run.worst) == (Verdict.GOOD, "fair")
    assert good_run.counts == {"good": 19, "usable with correction": 1, "not to be trusted": 0}
    mixed = judge_run({f"q{i}": good for i in range(18)} | {"fair": fair, "bad": bad})
    assert (mixed.verdict, mixed.worst) == (Verdict.CORRECT, "bad")
    assert mixed.remedy == judge(bad).remedy
    refused = judge_run({"one": good, "two": bad, "three": bad_known})
    assert (refused.verdict, refused.worst) == (Verdict.REFUSE, "three")
    # A query without valid draws has no figures, and is as bad.
    assert judge_run({"one": good}, left_out=1).verdict is Verdict.REFUSE
    assert judge_run({f"q{i}": good for i in range(19)}, left_out=1).verdict is Verdict.CORRECT


def test_one_query_that_may_be_refused_by_chance_refuses_no_run_of_several_and_one_of_missed_modes_does() -> None:
    good, log_q = found(sampler(posterior(), 0.05)), np.full(N, -12.0)
    heavy = diagnose(Draws(log_q, log_q + np.append(9.0, np.zeros(N - 1)), tuple((i,) for i in range(N))))
    assert judge(heavy).verdict is Verdict.REFUSE and judge(heavy).may_be_chance
    assert judge_run({"a": good, "b": good, "c": good, "d": heavy}).verdict is Verdict.CORRECT
    assert judge_run({"a": good, "b": good, "c": heavy, "d": heavy}).verdict is Verdict.REFUSE
    assert judge_run({"a": heavy}).verdict is Verdict.REFUSE
    missed = found(collapsed(), modes=collapsed().of(np.arange(40)))
    assert not judge(missed).may_be_chance
    assert judge_run({"a": good, "b": good, "c": good, "d": missed}).verdict is Verdict.REFUSE


def test_even_enough_weights_of_four_queries_are_hardly_ever_refused_by_the_noise_of_their_tails() -> None:
    """Log-normal weights with an effective share of 0.6."""
    generator, refused = np.random.default_rng(11), []
    for _ in range(160):
        weights = generator.normal(size=N) * 0.71
        share = effective_sample_size(weights) / N
        refused.append(estimate_refused(pareto_smoothed(weights).pareto_k, N, share) is not None)
    # A run is refused for two of its four: in less than 5% if a query is in less than 9%.
    assert sum(refused) <= 8


def test_draws_without_a_valid_rationale_are_a_reason_of_their_own() -> None:
    draws = sampler(posterior(), 0.05).draw(N, np.random.default_rng(1))
    for share, expected, told in (
        (0.04, Verdict.GOOD, ""),
        (0.1, Verdict.CORRECT, "10%"),
        (0.6, Verdict.REFUSE, "60%"),
    ):
        missing = round(N * share / (1 - share))
        judgement = judge(diagnose(replace(draws, missing=missing)))
        assert judgement.verdict is expected
        assert not told or any(reason.startswith(f"{told} of the draws made no") for reason in judgement.reasons)
        assert not judgement.may_be_chance


PAGE = (Path(__file__).parents[3] / "docs" / "diagnosis.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "told",
    [
        f"| N · `ess` | below {verdict.MIN_ESS}:",
        f"where `ess` is below {verdict.EVEN_ESS} |",
        f"min(1 − 1/log₁₀ N, {verdict.PARETO_K_LIMIT}): {pareto_k_limit(64):.2f} at 64 draws, "
        f"{pareto_k_limit(256):.2f} at 256, {pareto_k_limit(2_048):.2f} at 2,048",
        f"by {-math.log(1 - verdict.LOST_MASS):.2f}: a tenth of the posterior is missed",
        f"| `modes.missed_mass` | above {verdict.LOST_MASS} |",
        f"| `modes.missed_mass` | above {verdict.SOME_LOST_MASS} |",
        f"| above {verdict.ONE_RATIONALE} |",
        f"| `ess` | below {verdict.GOOD_ESS};",
        f"| above {verdict.GOOD_TV:.2f}, the same total variation |",
        f"| above {verdict.GOOD_KL:.2f}, which is −log {verdict.GOOD_ESS} |",
        f"above log 2 = {verdict.COLLAPSE_NATS:.2f}:",
        f"`missing` | above {verdict.SOME_MISSING:.0%} |",
        f"`missing` | above {verdict.MOST_MISSING:.0%} |",
        f"above {verdict.LOST_MASS}, and `witness.missed_mass_low` above {verdict.SOME_LOST_MASS} |",
        f"| `witness.missed_mass` | above {verdict.SOME_LOST_MASS} |",
        f"by more than {verdict.PARETO_K_ERRORS} standard errors",
        f"less than {verdict.RIGHT_BESIDE} `modes.beside`",
        f"fewer than {verdict.ENOUGH_WITNESSES:.0f} `witness.effective_draws`",
        f"if {1 - verdict.REFUSED_SHARE:.0%} of its queries are",
        f"if more than {verdict.REFUSED_SHARE:.0%} of",
    ],
)
def test_the_thresholds_are_documented(told: str) -> None:
    assert told in PAGE


def test_every_figure_is_documented() -> None:
    names = [field.name for field in fields(QueryDiagnosis)] + [f"modes.{field.name}" for field in fields(ModeCoverage)]
    names += [f"witness.{field.name}" for field in fields(Witnessed)]
    told_elsewhere = {"n", "modes", "witness", "first_token_entropy", "first_token_entropy_weighted"}
    told_elsewhere |= {"mean_length", "mean_length_weighted"}
    assert [name for name in names if name not in told_elsewhere and f"`{name}`" not in PAGE] == []


def test_a_remedy_names_settings_that_exist() -> None:
    remedies = " ".join([verdict.TRAIN_ON, verdict.EXPLORE, verdict.OTHER_LENGTHS])
    named = set(re.findall(r"(?:learner|actor)\.[a-z_.]+[a-z]|seeds(?=\))", remedies))
    assert len(named) == 8
    for name in named:
        section: object = RunConfig
        for part in name.split("."):
            section = section.model_fields[part].annotation  # type: ignore[attr-defined]
