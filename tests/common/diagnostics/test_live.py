"""A diagnosis while a run trains: of several queries the worst, or the mean, in the figures that are shown."""

from __future__ import annotations

import math

import numpy as np
import pytest

from common.diagnostics.diagnosis import diagnose
from common.diagnostics.draws import Draws
from common.diagnostics.live import diagnose_live
from common.diagnostics.verdict import Verdict
from common.stop_rule import DIAGNOSED


def draws(seed: int, sharpened: float, n: int = 200) -> Draws:
    """Of q ∝ p^sharpened on 60 rationales of two tokens, where log Z is 2."""
    generator = np.random.default_rng(seed)
    p = np.random.default_rng(1).dirichlet(np.ones(60))
    q = p**sharpened / np.sum(p**sharpened)
    drawn = generator.choice(60, size=n, p=q)
    return Draws(np.log(q[drawn]), np.log(p[drawn]) + 2.0, tuple((int(i) // 8, int(i) % 8) for i in drawn))


def test_the_worst_query_stands_for_all_where_trust_is_concerned_and_the_mean_elsewhere() -> None:
    named = {"good": draws(3, 1.0), "bad": draws(4, 3.0), "fair": draws(5, 0.6)}
    found = diagnose_live(named)
    each = {name: diagnose(item) for name, item in named.items()}
    assert set(found.figures) == set(DIAGNOSED)
    assert found.figures["ess"] == each["bad"].ess < 0.2 < each["fair"].ess < each["good"].ess
    assert found.figures["ess_mean"] == pytest.approx(np.mean([item.ess for item in each.values()]))
    assert found.figures["pareto_k"] == each["bad"].pareto_k > (each["fair"].pareto_k or 0.0)  # type: ignore[operator]
    for name in ("log_z", "elbo", "length_bias"):
        values = [getattr(item, name).value for item in each.values()]
        assert found.figures[name] == pytest.approx(np.mean(values))
    # Of a mean of three independent estimates.
    errors = [item.log_z.se for item in each.values()]
    assert found.figures["log_z_se"] == pytest.approx(math.sqrt(sum(error**2 for error in errors)) / 3)
    # All are of two tokens, and ⊤ is the third.
    assert found.figures["distinct_prefixes"] == pytest.approx(np.mean([item.distinct for item in each.values()]))
    # A single heavy tail may be chance.
    assert found.judgement.worst == "bad" and found.judgement.verdict is Verdict.CORRECT
    assert (found.queries, found.draws, found.narrow, found.hidden) == (3, 600, 0, 0)


def test_a_log_z_below_what_the_untrained_sampler_s_draws_showed_is_not_to_be_trusted() -> None:
    named = {"a": draws(3, 1.0), "b": draws(4, 1.0)}
    assert diagnose_live(named, {"a": 1.9, "b": 2.05}).hidden == 0
    found = diagnose_live(named, {"a": 2.5})
    assert (found.hidden, found.judgement.verdict, found.judgement.worst) == (1, Verdict.REFUSE, "a")
    assert diagnose_live(named, left_out=1).judgement.verdict is Verdict.REFUSE


def test_a_figure_that_one_query_has_not_is_nobody_s() -> None:
    """k̂ of the worst is unknown where one is."""
    found = diagnose_live({"enough": draws(3, 1.0), "too few": draws(3, 1.0, n=20)})
    assert set(DIAGNOSED) - set(found.figures) == {"pareto_k"}


def test_a_sampler_that_is_the_posterior_is_good_and_knows_log_z() -> None:
    found = diagnose_live({"a": draws(3, 1.0), "b": draws(4, 1.0)})
    assert found.judgement.verdict is Verdict.GOOD
    assert found.figures["log_z"] == pytest.approx(2.0) and found.figures["ess"] == pytest.approx(1.0)


def test_a_query_with_one_rationale_alone_is_counted_and_not_trusted_for_its_equal_weights() -> None:
    collapsed = Draws(np.full(200, -0.01), np.full(200, -4.0), ((1, 2),) * 200)
    found = diagnose_live({"collapsed": collapsed, "good": draws(3, 1.0)})
    assert found.figures["ess"] == pytest.approx(1.0) and found.narrow == 1
    assert (found.judgement.verdict, found.judgement.worst) == (Verdict.REFUSE, "collapsed")


def test_nothing_is_diagnosed_without_draws() -> None:
    with pytest.raises(ValueError, match="no query"):
        diagnose_live({})
