"""The objectives as pure functions: against the definition, at the exact policy, and with hostile padding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from learner.losses import (
    EXPONENTIAL_UP_TO,
    Residual,
    db_loss,
    penalty,
    subtb_loss,
    subtb_residuals,
    tb_loss,
    terminal_log_z,
    vargrad_loss,
)

BATCH, STEPS = 5, 7
LENGTHS = torch.tensor([0, 1, 4, 7, 7])


def random_batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(BATCH, STEPS, dtype=torch.float64, generator=generator),
        torch.randn(BATCH, STEPS + 1, dtype=torch.float64, generator=generator),
        torch.randn(BATCH, STEPS + 1, dtype=torch.float64, generator=generator),
    )


def subtb_by_definition(log_pf: Tensor, log_pterm: Tensor, log_reward: Tensor, lam: float, first: int = 0) -> Tensor:
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for b, k in enumerate(LENGTHS.tolist()):
        for i, j in itertools.combinations(range(first, k + 1), 2):
            f_i, f_j = log_reward[b, i] - log_pterm[b, i], log_reward[b, j] - log_pterm[b, j]
            total = total + lam ** (j - i - 1) * (f_i + log_pf[b, i:j].sum() - f_j) ** 2
            weight += lam ** (j - i - 1)
    return total / weight


@pytest.mark.parametrize("lam", [1.0, 0.9, 0.5, 0.0])
def test_subtb_equals_the_sum_over_all_pairs_of_states(lam: float) -> None:
    batch = random_batch()
    assert torch.isclose(subtb_loss(*batch, LENGTHS, lam=lam), subtb_by_definition(*batch, lam), rtol=1e-12)


def test_subtb_counts_ten_pairs_at_length_four_and_no_terminal_pair_twice() -> None:
    log_pf, log_pterm, log_reward = torch.zeros(1, 4), torch.zeros(1, 5), torch.zeros(1, 5)
    log_reward[0, 4] = 1.0
    loss = subtb_loss(log_pf, log_pterm, log_reward, torch.tensor([4]))
    assert float(loss) == pytest.approx(4 / 10)


def test_db_is_subtb_in_the_limit_of_small_lambda() -> None:
    batch = random_batch()
    assert torch.isclose(db_loss(*batch, LENGTHS), subtb_by_definition(*batch, 0.0))
    assert torch.isclose(db_loss(*batch, LENGTHS), subtb_loss(*batch, LENGTHS, lam=1e-9), rtol=1e-6)


def test_normalising_by_trajectory_weighs_long_and_short_alike() -> None:
    log_pf, log_pterm, log_reward = random_batch()
    rows = [
        subtb_loss(log_pf[b : b + 1], log_pterm[b : b + 1], log_reward[b : b + 1], LENGTHS[b : b + 1])
        for b in range(1, BATCH)
    ]
    by_trajectory = subtb_loss(log_pf, log_pterm, log_reward, LENGTHS, normalize="trajectory")
    assert torch.isclose(by_trajectory, torch.stack(rows).mean())


def test_subtb_of_long_trajectories_is_as_right_as_of_short_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    log_pf = torch.randn(2, 600, generator=generator, dtype=torch.float64) - 5
    flat = torch.zeros(2, 601, dtype=torch.float64)
    # With this reward every state implies log Z = 3, up to a residual of 0.01 at the last state.
    log_reward = 3 + torch.nn.functional.pad(log_pf.cumsum(1), (1, 0))
    log_reward[:, -1] += 0.01
    lengths = torch.tensor([600, 600])
    expected = 0.01**2 * 600 / (600 * 601 / 2)
    assert float(subtb_loss(log_pf, flat, log_reward, lengths)) == pytest.approx(expected, rel=1e-6)
    in_single = subtb_loss(log_pf.float(), flat.float(), log_reward.float(), lengths)
    assert float(in_single) == pytest.approx(expected, rel=0.1)


def call(name: str) -> Callable[..., Tensor]:
    """A loss by its objective, and the name of its residual where that isn't the square."""
    objective, *residual = name.split()
    loss = by_objective(objective)
    return partial(loss, residual=residual[0]) if residual else loss


def by_objective(name: str) -> Callable[..., Tensor]:
    def tb(*arguments: Tensor, **options: Any) -> Tensor:
        return tb_loss(*arguments, log_z=options.pop("log_z"), **options)

    def without_log_z(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*arguments: Tensor, **options: Any) -> Tensor:
            options.pop("log_z")
            return loss(*arguments, **options)

        return run

    return {
        "tb": tb,
        "subtb": without_log_z(subtb_loss),
        "vargrad": without_log_z(vargrad_loss),
        "db": without_log_z(db_loss),
    }[name]


OBJECTIVES = ["subtb", "tb", "vargrad", "db"]
RESIDUALS: list[Residual] = ["square", "huber", "linex", "shifted_cosh"]
LOSSES = [f"{objective} {residual}" for objective in OBJECTIVES for residual in RESIDUALS]


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_any_residual_is_taken_of_later_less_earlier_states(lam: float) -> None:
    log_pf, log_pterm, log_reward = random_batch()
    total, weights = 0.0, 0.0
    for b, k in enumerate(LENGTHS.tolist()):
        h = [float(log_reward[b, t] - log_pterm[b, t] - log_pf[b, :t].sum()) for t in range(k + 1)]
        for i, j in itertools.combinations(range(k + 1), 2):
            weight, gap = (1.0 if j == i + 1 else lam ** (j - i - 1)), h[j] - h[i]
            bounded = min(gap, EXPONENTIAL_UP_TO)
            exponential = math.exp(bounded) * (1 + gap - bounded)
            total, weights = total + weight * 2 * (exponential - gap - 1), weights + weight
    found = subtb_loss(log_pf, log_pterm, log_reward, LENGTHS, lam=lam, residual="linex")
    assert float(found) == pytest.approx(total / weights, rel=1e-9)


@pytest.mark.parametrize("residual", RESIDUALS)
def test_a_residual_is_zero_at_zero_alone_curved_there_as_the_square_convex_and_finite_far_off(
    residual: Residual,
) -> None:
    gaps = torch.arange(-3000, 3001, dtype=torch.float64) / 100
    values = penalty(gaps, residual)
    assert float(values[3000]) == 0 and (values[torch.arange(6001) != 3000] > 0).all()
    assert (values.diff().diff() > -1e-9).all()
    step = torch.tensor([-1e-3, 0.0, 1e-3], dtype=torch.float64)
    assert float(penalty(step, residual).diff().diff()) / 1e-6 == pytest.approx(2, rel=1e-3)
    far = torch.tensor([-1e4, 1e4], requires_grad=True)
    penalty(far, residual).sum().backward()  # type: ignore[no-untyped-call]
    assert far.grad is not None and far.grad.isfinite().all()


def test_linex_minds_what_the_policy_misses_more_than_what_it_overrates() -> None:
    missed, overrated = penalty(torch.tensor([2.0, -2.0]), "linex").tolist()
    assert missed > 2 * overrated


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_is_ignored_whatever_it_holds(name: str, junk: float) -> None:
    clean = random_batch()
    dirty = [tensor.clone() for tensor in clean]
    for b, k in enumerate(LENGTHS.tolist()):
        dirty[0][b, k:] = junk
        dirty[1][b, k + 1 :] = junk
        dirty[2][b, k + 1 :] = junk
    for tensor in dirty:
        tensor.requires_grad_()
    log_z = torch.zeros(BATCH, dtype=torch.float64)
    loss = call(name)(*dirty, LENGTHS, log_z=log_z)
    loss.backward()
    assert torch.equal(loss, call(name)(*clean, LENGTHS, log_z=log_z))
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in dirty)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_wrong_shapes_and_lengths_are_refused(name: str) -> None:
    log_pf, log_pterm, log_reward = random_batch()
    log_z = torch.zeros(BATCH, dtype=torch.float64)
    with pytest.raises(ValueError, match="expected 8"):
        call(name)(log_pf, log_pterm[:, :-1], log_reward[:, :-1], LENGTHS, log_z=log_z)
    with pytest.raises(ValueError, match="n_actions"):
        call(name)(log_pf, log_pterm, log_reward, LENGTHS + 1, log_z=log_z)
    with pytest.raises(ValueError, match="min_len"):
        call(name)(log_pf, log_pterm, log_reward, LENGTHS, log_z=log_z, min_len=1)


def test_vargrad_takes_the_mean_within_each_query() -> None:
    batch = random_batch()
    group = torch.tensor([3, 3, 0, 0, 9])
    estimates = terminal_log_z(*batch, LENGTHS)
    expected = torch.stack(
        [(part - part.mean()).square().sum() for part in (estimates[:2], estimates[2:4], estimates[4:])]
    ).sum()
    assert torch.isclose(vargrad_loss(*batch, LENGTHS, group=group), expected / BATCH)


Space = tuple[list[tuple[int, ...]], dict[tuple[int, ...], float]]


def reward_of_every_prefix(n_tokens: int, max_len: int, min_len: int, seed: int) -> Space:
    """All Z of an enumerable space that may end, and a random log-reward for each."""
    every = [z for k in range(max_len + 1) for z in itertools.product(range(n_tokens), repeat=k)]
    values = np.random.default_rng(seed).normal(scale=3.0, size=len(every))
    return [z for z in every if len(z) >= min_len], dict(zip(every, values.tolist(), strict=True))


def exact_policy(
    space: Space, n_tokens: int, max_len: int, min_len: int
) -> tuple[Callable[[tuple[int, ...]], float], float]:
    """log-flow of every state under the exact policy, by summing over everything that may follow it; and log Z."""
    _, log_reward = space

    def log_flow(state: tuple[int, ...]) -> float:
        terms = [log_reward[state]] if len(state) >= min_len else []
        if len(state) < max_len:
            terms += [log_flow((*state, token)) for token in range(n_tokens)]
        return float(np.logaddexp.reduce(terms))

    return log_flow, log_flow(())


def batch_of(
    sequences: Sequence[tuple[int, ...]],
    log_flow: Callable[[tuple[int, ...]], float],
    log_reward: dict[tuple[int, ...], float],
    max_len: int,
    min_len: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_pf = torch.full((len(sequences), max_len), math.nan, dtype=torch.float64)
    log_pterm = torch.full((len(sequences), max_len + 1), math.nan, dtype=torch.float64)
    rewards = torch.full((len(sequences), max_len + 1), math.nan, dtype=torch.float64)
    for b, z in enumerate(sequences):
        for t in range(len(z) + 1):
            rewards[b, t] = log_reward[z[:t]]
            if t >= min_len:
                log_pterm[b, t] = log_reward[z[:t]] - log_flow(z[:t])
            if t < len(z):
                log_pf[b, t] = log_flow(z[: t + 1]) - log_flow(z[:t])
    return log_pf, log_pterm, rewards, torch.tensor([len(z) for z in sequences])


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=40, deadline=None)
@given(
    n_tokens=st.integers(2, 3),
    max_len=st.integers(1, 4),
    data=st.data(),
    seed=st.integers(0, 2**20),
    shift=st.floats(-50, 50),
)
def test_loss_is_zero_at_the_exact_policy_for_every_batch_and_positive_off_it(
    name: str, n_tokens: int, max_len: int, data: st.DataObject, seed: int, shift: float
) -> None:
    min_len = data.draw(st.integers(0, min(2, max_len - 1)))
    sequences, log_reward = reward_of_every_prefix(n_tokens, max_len, min_len, seed)
    log_reward = {z: value + shift for z, value in log_reward.items()}
    log_flow, log_z = exact_policy((sequences, log_reward), n_tokens, max_len, min_len)
    # Any behaviour policy: trajectories are picked arbitrarily, repetitions included.
    picked = data.draw(st.lists(st.sampled_from(sequences), min_size=1, max_size=8))
    batch = batch_of(picked, log_flow, log_reward, max_len, min_len)
    constant = torch.full((len(picked),), log_z, dtype=torch.float64)
    assert 0 <= float(call(name)(*batch, log_z=constant, min_len=min_len)) + 1e-12 < 1e-8

    # Every trajectory at once, under a policy that is off at one state.
    everything = batch_of(sequences, log_flow, log_reward, max_len, min_len)
    off_state = data.draw(st.sampled_from([z for z in sequences if len(z) < max_len]))
    log_pf, log_pterm, rewards, lengths = everything
    shift_stop = math.log1p(-0.5 * math.exp(log_reward[off_state] - log_flow(off_state)))
    remaining = 1 - math.exp(log_reward[off_state] - log_flow(off_state))
    for b, z in enumerate(sequences):
        if z[: len(off_state)] == off_state:
            t = len(off_state)
            log_pterm[b, t] += math.log(0.5)
            if len(z) > t:
                log_pf[b, t] += shift_stop - math.log(remaining)
    constant = torch.full((len(sequences),), log_z, dtype=torch.float64)
    assert float(call(name)(log_pf, log_pterm, rewards, lengths, log_z=constant, min_len=min_len)) > 1e-9


@pytest.mark.parametrize("lam", [1.0, 0.7, 0.0])
def test_a_trajectory_s_residual_is_the_root_of_its_own_loss(lam: float) -> None:
    log_pf, log_pterm, log_reward = random_batch()
    found = subtb_residuals(log_pf, log_pterm, log_reward, LENGTHS, lam=lam)
    for b in range(BATCH):
        one = slice(b, b + 1)
        alone = subtb_loss(log_pf[one], log_pterm[one], log_reward[one], LENGTHS[one], lam=lam)
        assert float(found[b]) == pytest.approx(math.sqrt(float(alone)), abs=1e-9)


def test_residuals_say_which_trajectory_is_out_of_balance() -> None:
    log_pf, log_pterm, log_reward = torch.zeros(3, 2), torch.zeros(3, 3), torch.zeros(3, 3)
    log_reward[1, 2] = 5.0
    found = subtb_residuals(log_pf, log_pterm, log_reward, torch.tensor([2, 2, 2]))
    assert found.tolist() == [0.0, pytest.approx(5 * math.sqrt(2 / 3)), 0.0]


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_states_that_cannot_stop_are_passed_over_wherever_they_are(lam: float) -> None:
    # h of the states that can stop, 1 and 3, as if they were neighbours; the first of them is tied to its group's mean.
    log_pf = torch.tensor([[-0.3, -0.7, -0.2], [-0.1, -0.4, -0.6]])
    log_pterm = torch.tensor([[0.0, -0.5, 0.0, -0.9], [0.0, -1.5, 0.0, -0.2]])
    log_reward = torch.tensor([[float("nan"), 2.0, float("nan"), 1.0], [float("nan"), 0.5, float("nan"), 3.0]])
    can_stop = torch.tensor([[False, True, False, True]] * 2)
    h = log_reward - log_pterm - torch.nn.functional.pad(log_pf.cumsum(1), (1, 0))
    first, last = h[:, 1], h[:, 3]
    squares = (first - last).square() + (first - first.mean()).square()
    found = subtb_loss(
        log_pf, log_pterm, log_reward, torch.tensor([3, 3]), lam=lam, can_stop=can_stop, normalize="pairs"
    )
    # One pair and one tie in each of two trajectories.
    assert float(found) == pytest.approx(float(squares.sum() / 4), rel=1e-5)
