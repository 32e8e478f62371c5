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
