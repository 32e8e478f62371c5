"""Samplers that seek modes, and exact ones, held against draws of the base model: a simulation of thousands of
rationales, of which draws of q show few."""

from __future__ import annotations

import numpy as np
import pytest

from common.diagnostics.diagnosis import QueryDiagnosis, diagnose
from common.diagnostics.draws import Draws
from common.diagnostics.verdict import Verdict, judge
from common.diagnostics.witness import Witness, lower_limit

M, N, N_BASE = 20_000, 128, 16
LOG_G = -np.log(M)


def simulated(
    spread: float, seed: int, *, top: int | None = None, off: float = 0.0, n_base: int = N_BASE
) -> QueryDiagnosis:
    """R has log-normal likelihoods under an even base model; q ∝ R on its `top` rationales alone, or ∝ R·exp(off·noise)
    on all of them. The best 32 are known."""
    generator = np.random.default_rng(seed)
    log_r = LOG_G + spread * generator.normal(size=M)
    log_q = log_r + off * generator.normal(size=M)
    best = log_r.argsort()[::-1]
    if top is not None:
        log_q[best[top:]] = -60.0
    log_q -= np.logaddexp.reduce(log_q)

    def of(indices: np.ndarray) -> Draws:
        return Draws(log_q[indices], log_r[indices], tuple((i,) for i in indices.tolist()))

    drawn = generator.choice(M, N, p=np.exp(log_q) / np.exp(log_q).sum())
    base = of(generator.integers(M, size=n_base))
    # A mode-seeker covers what is known, which are the best.
    known = of(best[: min(32, M if top is None else top)])
    return diagnose(of(drawn), modes=known, witness=Witness(base, np.full(n_base, LOG_G)))


@pytest.mark.parametrize("top", [1, 10, 40])
@pytest.mark.parametrize("spread", [1.5, 2.0, 2.5])
def test_a_sampler_of_the_best_rationales_alone_is_never_good_and_hardly_ever_trusted(spread: float, top: int) -> None:
    verdicts = [judge(simulated(spread, seed, top=top)).verdict for seed in range(20)]
    assert Verdict.GOOD not in verdicts
    assert verdicts.count(Verdict.REFUSE) >= 14


@pytest.mark.parametrize("off", [0.0, 0.3])
@pytest.mark.parametrize("spread", [0.5, 1.5, 2.5])
def test_an_exact_sampler_or_nearly_is_not_refused_by_the_base_model_s_noise(spread: float, off: float) -> None:
    for seed in range(20):
        found = simulated(spread, 100 + seed, off=off)
        assert found.witness is not None and found.witness.missed_mass == 0
        assert found.log_z_low <= found.log_z.interval(0.997)[1] + 0.105
        assert off or judge(found).verdict is Verdict.GOOD


@pytest.mark.parametrize("hit", [0.003, 0.03, 0.3, 1.0])
def test_the_lower_limit_of_log_z_is_above_it_in_less_than_a_hundredth(hit: float) -> None:
    """Also where one of many draws has all the weight, which happens by chance."""
    hits = np.random.default_rng(5).binomial(16, hit, size=2_000)
    above = [k > 0 and lower_limit(np.full(k, -np.log(hit)), 16) > 0 for k in hits.tolist()]
    assert np.mean(above) < 0.01


def test_base_draws_that_have_no_valid_rationale_count_as_nothing() -> None:
    log_w = np.zeros(8)
    assert lower_limit(log_w, 16) == pytest.approx(lower_limit(log_w, 8) - np.log(2))


def test_mass_that_one_rare_base_draw_finds_is_no_refusal_alone() -> None:
    """A sampler that misses 1.5% of the posterior is refused by no luck of a single draw; but it isn't good."""
    log_q = np.log(np.array([1e-9, 1.0]))
    log_r = np.log(np.array([0.015, 0.985]))
    q_draws = Draws(np.full(N, log_q[1]), np.full(N, log_r[1]), ((1,),) * N)
    base = Draws(log_q[[0] + [1] * 15], log_r[[0] + [1] * 15], ((0,), *((1,),) * 15))
    log_g = np.log(np.array([0.003] + [0.997] * 15))
    found = diagnose(q_draws, witness=Witness(base, log_g))
    assert found.witness is not None and found.witness.missed_mass > 0.1
    assert judge(found).verdict is Verdict.CORRECT
