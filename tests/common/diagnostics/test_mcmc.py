"""Metropolis-Hastings against a posterior that is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from common.diagnostics.mcmc import (
    Chains,
    Proposal,
    content_of,
    convergence,
    metropolis_hastings,
    n_cuts,
    suffix_log_ratio,
)
from tests.common.diagnostics.toy import LOG_R, MAX_LEN, SPACE, Drawn, draw, total_variation


def run(n_chains: int, steps: int, seed: int, *, with_ratio: bool = True) -> Chains[Drawn]:
    generator = np.random.default_rng(seed)

    def propose(states: Sequence[Drawn]) -> list[Proposal[Drawn]]:
        found = []
        for old in states:
            cut = int(generator.integers(n_cuts(len(old.z), MAX_LEN)))
            new = draw(generator, old.z[:cut], old.log_g[:cut])
            ratio = suffix_log_ratio(cut, old.log_g, new.log_g, MAX_LEN) if with_ratio else 0.0
            found.append(Proposal(new, LOG_R[new.z], ratio))
        return found

    start = [draw(generator) for _ in range(n_chains)]
    return metropolis_hastings(start, [LOG_R[item.z] for item in start], propose, steps, generator)


def drawn(chains: Chains[Drawn]) -> list[tuple[int, ...]]:
    return [state.z for chain in chains.states for state in chain]


def test_chains_that_redraw_a_suffix_follow_the_posterior_whatever_the_lengths() -> None:
    # Some 8,000 effective draws over 15 sequences: a total variation of 0.015 by chance.
    found = run(40, 600, seed=1).after(100)
    assert total_variation(drawn(found)) < 0.03
    assert {len(z) for z in drawn(found)} == {0, 1, 2, 3}


def test_without_the_ratio_of_the_proposals_they_follow_another() -> None:
    assert total_variation(drawn(run(40, 600, seed=1, with_ratio=False).after(100))) > 0.1


def test_chains_that_agree_are_told_from_those_that_do_not() -> None:
    chains = run(4, 1_000, seed=2).after(200)
    found = convergence([chains.log_r], chains.acceptance)
    assert found.r_hat < 1.01 and found.reached
    assert 0.05 * chains.log_r.size < found.effective_sample_size <= chains.log_r.size
    assert 0.1 < found.acceptance < 0.9
    apart = chains.log_r + 5.0 * np.arange(4)[:, None]
    assert convergence([apart], chains.acceptance).r_hat > 1.5
    assert not convergence([chains.log_r, apart], chains.acceptance).reached, "the worst quantity counts"


def test_chains_in_different_modes_of_the_same_laws_are_told_apart_by_their_content() -> None:
    # Four chains, each within a mode of its own, with one law of log R and of the length.
    generator = np.random.default_rng(3)
    log_r, lengths = generator.normal(size=(4, 1_000)), generator.integers(3, 6, size=(4, 1_000)).astype(float)
    moved = np.full(4, 0.5)
    blind = convergence([log_r, lengths], moved)
    assert blind.r_hat < 1.01 and blind.reached

    def chains(mode_of: Sequence[int], begins: int) -> list[list[tuple[int, ...]]]:
        return [
            [
                (7,) * begins + tuple(generator.integers(10 * mode, 10 * mode + 10, size=3).tolist())
                for _ in range(1_000)
            ]
            for mode in mode_of
        ]

    for begins in (0, 1):
        # The first token tells nothing where all begin alike: what follows does.
        apart = convergence([log_r, lengths, *content_of(chains((1, 2, 3, 4), begins))], moved)
        assert apart.r_hat > 1.05 and not apart.reached
        same = convergence([log_r, lengths, *content_of(chains((1, 1, 1, 1), begins))], moved)
        assert same.r_hat < 1.01 and same.reached
    # Two orders of the same tokens, of which each chain knows one.
    stuck = [[(7, 1, 2) if i % 2 else (7, 2, 1)] * 1_000 for i in range(4)]
    assert not convergence([log_r, lengths, *content_of(stuck)], moved).reached


def test_chains_agree_about_what_is_the_same_in_all_of_them() -> None:
    generator = np.random.default_rng(0)
    same, moved = np.zeros((4, 500)), np.full(4, 0.5)
    # A uniform R of one length: the content still tells.
    chains = [[(int(token),) for token in generator.integers(5, 15, size=500)] for _ in range(4)]
    assert convergence([same, same, *content_of(chains)], moved).reached
    # One rationale is all that there is, and is proposed and accepted again and again.
    one = convergence([same, same, *content_of([[(5,)] * 500] * 4)], moved)
    assert one.reached and one.r_hat == 1.0 and one.effective_sample_size == 1_000


def test_chains_of_a_few_steps_are_worth_no_more_than_their_starts_and_accepted_proposals() -> None:
    # Eight steps a chain, of which a quarter led somewhere: too few to see that states stay.
    generator = np.random.default_rng(0)
    moves = generator.random((4, 8)) < 0.25
    places = np.maximum.accumulate(np.where(moves, np.arange(8), 0), axis=1)
    log_r = np.take_along_axis(generator.normal(size=(4, 8)), places, axis=1)
    found = convergence([log_r], moves.mean(axis=1))
    assert found.effective_sample_size <= 4 + moves.sum()
    settled = convergence([generator.normal(size=(4, 8))], np.ones(4))
    assert found.effective_sample_size < settled.effective_sample_size


def test_chains_that_never_moved_are_not_called_converged() -> None:
    found = convergence([np.zeros((4, 100))], np.zeros(4))
    assert np.isnan(found.r_hat) and not found.reached


def test_what_has_no_reward_is_never_gone_to_and_no_start() -> None:
    generator = np.random.default_rng(0)

    def propose(states: Sequence[str]) -> list[Proposal[str]]:
        return [Proposal("nowhere", -np.inf, 1e9) for _ in states]

    found = metropolis_hastings(["here"], [-3.0], propose, 5, generator)
    assert found.states == [["here"] * 5] and found.acceptance.tolist() == [0.0]
    with pytest.raises(ValueError, match="log R is not finite"):
        metropolis_hastings(["nowhere"], [-np.inf], propose, 5, generator)


def test_a_proposal_of_the_old_state_is_accepted_as_any_other() -> None:
    found = metropolis_hastings(
        ["here"], [-3.0], lambda states: [Proposal("here", -3.0, 0.0) for _ in states], 5, np.random.default_rng(0)
    )
    assert found.states == [["here"] * 5] and found.acceptance.tolist() == [1.0]


def test_states_are_taken_evenly_from_all_chains_and_steps() -> None:
    chains = Chains([[1, 3, 5, 7], [2, 4, 6, 8]], np.zeros((2, 4)), np.zeros(2))
    assert chains.spread(8) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert chains.spread(4) == [1, 4, 5, 8] and chains.after(2).spread(2) == [5, 8]
    assert len(chains.spread(12)) == 12 and set(chains.spread(12)) == set(range(1, 9))


@pytest.mark.parametrize(("n_chains", "steps", "n"), [(4, 120, 10), (4, 1000, 100), (8, 1024, 512), (4, 60, 10)])
def test_no_chain_gives_more_than_its_share(n_chains: int, steps: int, n: int) -> None:
    states = [[(chain, step) for step in range(steps)] for chain in range(n_chains)]
    found = Chains(states, np.zeros((n_chains, steps)), np.zeros(n_chains)).spread(n)
    of_chains = [sum(chain == i for chain, _ in found) for i in range(n_chains)]
    assert max(of_chains) - min(of_chains) <= 1
    assert [step for _, step in found] == [(2 * i + 1) * steps // (2 * n) for i in range(n)]


def test_there_is_nothing_to_draw_anew_at_the_greatest_length() -> None:
    assert [n_cuts(k, 3) for k in range(4)] == [1, 2, 3, 3]
    assert len(SPACE) == 15
