"""Enumeration, rejection and sequential Monte Carlo against a posterior that is known."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import numpy as np
import pytest

from common.action_space import ActionSpace
from common.diagnostics.enumeration import Enumerated, every_rationale
from common.diagnostics.rejection import TOKEN_ERROR, AboveBound, Excess, accepted, rounding_of
from common.diagnostics.smc import Extended, Population, sequential_monte_carlo, systematic
from common.grammar import Grammar
from tests.common.diagnostics.toy import (
    LOG_R,
    LOG_Z,
    MAX_LEN,
    NEXT,
    POSTERIOR,
    SPACE,
    STOP,
    Z,
    draw,
    next_token,
    total_variation,
)


def space(n_tokens: int, min_len: int, max_len: int) -> ActionSpace:
    return ActionSpace(
        vocab_size=50,
        terminator_id=3,
        allowed_ids=(*range(10, 10 + n_tokens), 3),
        min_len=min_len,
        max_len=max_len,
    )


def test_a_walk_finds_every_rationale_within_the_bounds_once() -> None:
    found = every_rationale(space(3, 1, 3), limit=39)
    assert found is not None and len(found) == 39
    assert set(found) == {z for k in (1, 2, 3) for z in itertools.product((10, 11, 12), repeat=k)}


@pytest.mark.parametrize(("limit", "n"), [(39, 39), (38, None)])
def test_a_space_above_the_limit_is_not_walked_to_its_end(limit: int, n: int | None) -> None:
    found = every_rationale(space(3, 1, 3), limit)
    assert n == (None if found is None else len(found))
    # Of 20^60 nothing could be walked.
    assert every_rationale(space(20, 0, 60), limit=10_000) is None


def grammar_space(pattern: str, max_len: int) -> ActionSpace:
    texts = {3: ".", **{10 + i: letter for i, letter in enumerate("abc")}}
    allowed = np.array(sorted(texts))
    grammar = Grammar.of("task.regex", pattern, texts, allowed, 3, 0, max_len).narrowed()
    return ActionSpace(
        vocab_size=50, terminator_id=3, allowed_ids=grammar.allowed_ids, max_len=max_len, grammar=grammar
    )


def test_a_walk_keeps_to_a_grammar() -> None:
    pattern = "a(b|c)*a|b[abc]|c"
    found = every_rationale(grammar_space(pattern, 4), limit=100)
    letters = [z for k in range(5) for z in itertools.product("abc", repeat=k) if re.fullmatch(pattern, "".join(z))]
    assert found is not None and sorted(found) == sorted(tuple(10 + "abc".index(x) for x in z) for z in letters)


def test_a_grammar_without_end_is_given_up_at_the_limit() -> None:
    assert every_rationale(grammar_space("[abc]*", 40), limit=1_000) is None


def test_an_enumerated_posterior_has_its_log_z_and_exact_draws() -> None:
    exact = Enumerated(tuple(SPACE), np.array([LOG_R[z] for z in SPACE]))
    assert exact.log_z == pytest.approx(LOG_Z) and exact.probabilities == pytest.approx(POSTERIOR)
    drawn = [SPACE[i] for i in exact.draw(40_000, np.random.default_rng(0))]
    assert total_variation(drawn) < 0.015
    assert all(exact.index[z] == i for i, z in enumerate(SPACE))


def test_draws_that_are_kept_by_rejection_are_exact() -> None:
    generator = np.random.default_rng(3)
    drawn = [draw(generator) for _ in range(20_000)]
    log_weights = np.array([LOG_R[item.z] - item.log_g.sum() for item in drawn])
    kept = accepted(log_weights, float(log_weights.max()), generator)
    assert 1_000 < kept.sum() < 10_000
    # As many draws of 15 sequences are off by 1.5 / √n or so by chance.
    assert total_variation([drawn[i].z for i in np.flatnonzero(kept)]) < 3 / np.sqrt(kept.sum())


def test_a_weight_above_its_bound_is_an_error_but_for_rounding() -> None:
    generator = np.random.default_rng(0)
    assert accepted(np.array([0.01, -np.inf]), 0.0, generator).tolist() == [True, False]
    with pytest.raises(AboveBound, match=r"2\.000 nats is above its bound 1\.000"):
        accepted(np.array([0.0, 2.0]), 1.0, generator)


@pytest.mark.parametrize("length", [4, 16, 64])
def test_rounding_by_bfloat16_ends_no_rejection_and_its_bias_is_told(length: int) -> None:
    # Where the mask takes nothing and nothing is given, every weight lies at its bound, and half of them above.
    generator = np.random.default_rng(0)
    lengths = np.full(20_000, length)
    noise = generator.normal(0, TOKEN_ERROR["bfloat16"] * np.sqrt(length), len(lengths))
    kept = accepted(noise, 0.0, generator, rounding_of(lengths, TOKEN_ERROR["bfloat16"]))
    assert kept[noise > 0].all() and not kept.all()
    excess = Excess.of(noise[:5_000], 0.0) + Excess.of(noise[5_000:], 0.0)
    assert excess.share == pytest.approx(0.5, abs=0.02)
    # What is kept follows min(R, M g): its distance to ∝ R is what is lost, at most.
    r, taken = np.exp(noise), np.minimum(np.exp(noise), 1)
    distance = 0.5 * np.abs(r / r.sum() - taken / taken.sum()).sum()
    assert distance <= excess.bias == pytest.approx((r - taken).sum() / r.sum()) and excess.bias < 0.2
    with pytest.raises(AboveBound):
        accepted(noise, 0.0, generator, rounding_of(lengths, TOKEN_ERROR["float32"]))


def population(n: int, seed: int, guide: bool = True) -> Population[Z]:
    """One token a step; the intermediate target is R itself, or nothing but g."""
    generator = np.random.default_rng(seed)
    drawn = {}

    def extend(states: Sequence[tuple[Z, float]]) -> list[Extended[tuple[Z, float]]]:
        found = []
        for z, log_gamma in states:
            token = next_token(generator, z) if len(z) < MAX_LEN else STOP
            log_g = float(np.log(NEXT[z][token])) if len(z) < MAX_LEN else 0.0
            new = z if token == STOP else (*z, token)
            target = LOG_R[new] if guide or token == STOP else log_gamma + log_g
            found.append(Extended((new, target), target - log_gamma - log_g, token == STOP))
        return found

    found = sequential_monte_carlo([((), 0.0)] * n, extend, generator)
    drawn = [z for z, _ in found.states]
    return Population(drawn, found.log_weights, found.log_z, found.resamplings, found.ancestors)


@pytest.mark.parametrize(("guide", "limit"), [(True, 0.04), (False, 0.1)])
def test_particles_follow_the_posterior_and_estimate_z(guide: bool, limit: float) -> None:
    # A guide that is of no use costs particles, but leads to the same.
    found = population(20_000, seed=4, guide=guide)
    assert found.resamplings >= 1
    assert total_variation(found.states, found.shares()) < limit
    assert found.log_z == pytest.approx(LOG_Z, abs=limit)
    assert total_variation(found.draw(20_000, np.random.default_rng(0))) < limit


def test_the_estimate_of_z_is_unbiased_with_few_particles_that_are_resampled() -> None:
    found = [population(10, seed) for seed in range(1_000)]
    assert sum(each.resamplings > 0 for each in found) > 300
    ratios = np.exp([each.log_z - LOG_Z for each in found])
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / np.sqrt(len(ratios))


def test_particles_of_no_use_are_left_alone_and_die_out() -> None:
    asked: list[int] = []

    def extend(states: Sequence[int]) -> list[Extended[int]]:
        asked.extend(states)
        return [Extended(state + 2, -np.inf if state == 1 else 0.0, state + 2 >= 6) for state in states]

    found = sequential_monte_carlo([0, 1, 2, 1], extend, np.random.default_rng(0))
    assert 3 not in asked and found.log_z == pytest.approx(np.log(0.5))
    assert set(found.draw(50, np.random.default_rng(0))) == {6}
    nothing = sequential_monte_carlo([1, 1], extend, np.random.default_rng(0))
    assert nothing.log_z == -np.inf
    with pytest.raises(ValueError, match="no particle is left"):
        nothing.draw(1, np.random.default_rng(0))


def test_particles_of_one_ancestor_are_worth_one() -> None:
    def extend(states: Sequence[tuple[int, int]]) -> list[Extended[tuple[int, int]]]:
        # Of eight particles only two are of any use after a step, and nothing tells them apart afterwards.
        return [
            Extended((i, step + 1), -9.0 if step == 0 and i not in (2, 5) else 0.0, step == 3) for i, step in states
        ]

    found = sequential_monte_carlo([(i, 0) for i in range(8)], extend, np.random.default_rng(0))
    assert found.resamplings == 1 and found.shares() == pytest.approx(np.full(8, 1 / 8))
    assert [i for i, _ in found.states] == found.ancestors.tolist() and set(found.ancestors.tolist()) == {2, 5}
    assert found.effective_families == pytest.approx(2.0)
    # Never resampled they are worth what their weights say.
    weights = np.log([0.5, 0.25, 0.25])
    apart = Population([0, 1, 2], weights, 0.0, 0, np.arange(3))
    assert apart.effective_families == pytest.approx(1 / (0.25 + 2 * 0.0625))
    assert Population([0], np.array([-np.inf]), -np.inf, 0, np.arange(1)).effective_families == 0.0


def test_what_particles_are_worth_is_what_their_means_vary_by() -> None:
    # Of the toy posterior, by hundreds of populations that were resampled: as many independent draws as families would
    # vary by as much, and as many as the weights say by far less.
    found = [each for each in (population(40, seed) for seed in range(600)) if each.resamplings]
    starts = np.array([float(each.shares() @ [z[:1] == (1,) for z in each.states]) for each in found])
    p = float(sum(p for z, p in zip(SPACE, POSTERIOR, strict=True) if z[:1] == (1,)))
    worth = p * (1 - p) / np.var(starts)
    families = np.mean([each.effective_families for each in found])
    weights = np.mean([1 / np.square(each.shares()).sum() for each in found])
    assert families < weights
    assert abs(np.log(families / worth)) < abs(np.log(weights / worth))


def test_systematic_draws_are_as_many_as_the_shares_say() -> None:
    shares = np.array([0.5, 0.0, 0.25, 0.25])
    assert np.bincount(systematic(shares, 8, np.random.default_rng(0)), minlength=4).tolist() == [4, 0, 2, 2]
