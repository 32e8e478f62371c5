"""The figures of a diagnosis, held against sums over all rationales."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from common.diagnostics.diagnosis import diagnose
from common.diagnostics.draws import Draws
from common.diagnostics.verdict import judge
from tests.common.diagnostics.enumerable import Enumerable, mediocre, posterior, sampler

REPEATS, N = 200, 256


def iwae_bound(problem: Enumerable, k: int) -> tuple[float, float]:
    """L_k by so many blocks that its error, the second, is far below that of one diagnosis."""
    indices = np.random.default_rng(99).choice(len(problem.q), (200_000, k), p=problem.q)
    blocks = np.logaddexp.reduce(problem.log_w[indices], axis=1) - np.log(k)
    return float(blocks.mean()), float(blocks.std() / len(blocks) ** 0.5)


def test_the_intervals_of_log_z_and_of_both_its_bounds_cover_the_truth_at_the_nominal_rate() -> None:
    problem, generator = mediocre(), np.random.default_rng(1)
    iwae, iwae_se = iwae_bound(problem, N // 16)
    truth = {
        "log_z": problem.log_z,
        "elbo": float(problem.q @ problem.log_w),
        "iwae": iwae,
        "log_z_upper": float(problem.p @ problem.log_w),
    }
    covered = dict.fromkeys([*truth, "kl_q_p", "kl_p_q", "sandwich"], 0)
    for _ in range(REPEATS):
        found = diagnose(problem.draw(N, generator), posterior_draws=problem.draw_posterior(N, generator))
        assert found.log_z_upper is not None and found.kl_p_q is not None
        for name, true in truth.items():
            low, high = getattr(found, name).interval(0.95)
            covered[name] += low <= true <= high
        kl_q_p, kl_p_q = truth["log_z"] - truth["elbo"], truth["log_z_upper"] - truth["log_z"]
        covered["kl_q_p"] += found.kl_q_p[0] <= kl_q_p <= found.kl_q_p[1]
        covered["kl_p_q"] += found.kl_p_q[0] <= kl_p_q <= found.kl_p_q[1]
        covered["sandwich"] += found.elbo.interval()[0] <= problem.log_z <= found.log_z_upper.interval()[1]
    assert iwae_se < 0.002
    # 99.9% of binomial counts of 200 at 0.95 lie in 178..198.
    assert all(178 <= covered[name] <= 198 for name in (*truth, "kl_p_q")), covered
    # One-sided by construction: its high end is a bound and no estimate.
    assert covered["kl_q_p"] >= 178 and covered["sandwich"] == REPEATS, covered


def test_the_bounds_stand_in_their_order() -> None:
    found = diagnose(
        mediocre().draw(4_000, np.random.default_rng(2)),
        posterior_draws=mediocre().draw_posterior(4_000, np.random.default_rng(3)),
    )
    assert found.log_z_upper is not None
    assert found.elbo.value < found.iwae.value < found.log_z.value < found.log_z_upper.value
    assert found.iwae_k == 250


def test_a_known_log_z_takes_its_error_out_of_both_divergences() -> None:
    problem, generator = mediocre(), np.random.default_rng(4)
    draws, of_posterior = problem.draw(N, generator), problem.draw_posterior(N, generator)
    known = diagnose(draws, posterior_draws=of_posterior, log_z_exact=problem.log_z)
    low, high = known.elbo.interval()
    assert known.kl_q_p == pytest.approx((problem.log_z - high, problem.log_z - low))
    assert known.log_z_upper is not None and known.kl_p_q is not None
    low, high = known.log_z_upper.interval()
    assert known.kl_p_q == pytest.approx((low - problem.log_z, high - problem.log_z))


def test_an_exact_sampler_s_figures_are_exact() -> None:
    problem = sampler(posterior(), 0.0)
    found = diagnose(problem.draw(N, np.random.default_rng(5)))
    assert found.log_z.value == pytest.approx(problem.log_z) and found.log_z.se == pytest.approx(0, abs=1e-9)
    assert (found.elbo.value, found.iwae.value) == pytest.approx((problem.log_z, problem.log_z))
    assert found.kl_q_p == pytest.approx((0, 0), abs=1e-6)
    assert (found.ess, found.max_weight_share) == pytest.approx((1, 1 / N))
    assert found.pareto_k == 0.0
    assert found.length_bias.value == pytest.approx(0, abs=1e-9)


def test_the_effective_share_tells_chi_square() -> None:
    problem = mediocre()
    found = diagnose(problem.draw(20_000, np.random.default_rng(6)))
    assert found.ess == pytest.approx(1 / float(problem.p @ (problem.p / problem.q)), abs=0.03)


def test_the_floor_is_what_was_drawn_and_what_is_known_and_never_above_log_z() -> None:
    problem = mediocre()
    draws = problem.of(np.array([0, 3, 3, 5]))
    assert diagnose(draws).log_z_floor == pytest.approx(np.logaddexp.reduce(problem.log_r[[0, 3, 5]]))
    with_known = diagnose(draws, modes=problem.of(np.array([3, 7])))
    assert with_known.log_z_floor == pytest.approx(np.logaddexp.reduce(problem.log_r[[0, 3, 5, 7]]))
    everything = diagnose(draws, modes=problem.of(np.arange(40)))
    assert everything.log_z_floor == pytest.approx(problem.log_z)


def test_known_rationales_are_weighed_under_the_sampler_and_the_posterior() -> None:
    problem = mediocre()
    known = np.array([1, 2, 2, 30])
    found = diagnose(problem.draw(N, np.random.default_rng(7)), modes=problem.of(known), log_z_exact=problem.log_z)
    assert found.modes is not None
    once = [1, 2, 30]
    assert found.modes.known == 3
    assert found.modes.mass_under_q == pytest.approx(problem.q[once].sum())
    assert found.modes.mass_under_posterior == pytest.approx(problem.p[once].sum())
    assert found.modes.log_known_mass == pytest.approx(np.logaddexp.reduce(problem.log_r[once]))
    assert found.modes.missed == (N * problem.q[once] < 1).sum() and found.modes.missed_mass == 0


def test_a_diagnosis_is_json_whatever_was_drawn() -> None:
    problem = mediocre()
    for indices in ([4, 4], [4] * 30, [0, 1], list(range(40)) * 3):
        found = diagnose(problem.of(np.array(indices)), modes=problem.of(np.array([1])))
        assert json.loads(json.dumps(asdict(found), allow_nan=False))["n"] == len(indices)


def test_draws_without_a_valid_rationale_count_as_r_of_0() -> None:
    """A sampler half of whose mass has no reward: log Z, its bounds and the effective share are of all draws."""
    problem, generator = mediocre(), np.random.default_rng(8)
    halved = Enumerable(problem.log_r, problem.log_q - np.log(2))
    covered, elbo = 0, float(problem.q @ problem.log_w)
    for _ in range(100):
        n = int(generator.binomial(N, 0.5))
        valid = halved.of(generator.choice(len(problem.q), n, p=problem.q))
        found = diagnose(replace(valid, missing=N - n))
        low, high = found.log_z.interval()
        covered += low <= problem.log_z <= high
        assert (found.n, found.missing) == (N, N - n)
        assert found.elbo.value == pytest.approx(elbo, abs=5 * found.elbo.se)
        assert found.elbo.value < found.log_z.value
        assert found.ess == pytest.approx(diagnose(valid).ess * n / N)
    assert 86 <= covered <= 100


def test_one_draw_is_no_diagnosis() -> None:
    with pytest.raises(ValueError, match="two draws at least"):
        diagnose(mediocre().of(np.array([1])))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [2, 24, 25, 226, 256])
@pytest.mark.parametrize("scale", [0.0, 1e-14, 1.0, 300.0, 3_000.0])
def test_whatever_the_weights_every_figure_is_finite_and_a_verdict_is_found(n: int, scale: float) -> None:
    generator = np.random.default_rng(n)
    for space in (1, 3, 100, 10**6):
        indices = generator.integers(space, size=n)
        log_r = np.random.default_rng(1).normal(size=1_000)[indices % 1_000] * scale
        draws = Draws(np.full(n, -np.log(space)), log_r, tuple((i % 3,) * (i % 4) + (i,) for i in indices.tolist()))
        found = diagnose(draws, posterior_draws=draws, modes=draws)
        json.dumps(asdict(found), allow_nan=False)
        assert 0 < found.ess <= 1 + 1e-12 and judge(found).reasons
