"""Comparison objectives: reward maximisation with and without its KL term, and maximum likelihood with tools."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq

from common.config import LearnerSection
from common.reward import RewardWeights
from common.trajectory import Behaviour, Trajectory
from learner.comparison_losses import (
    absorbed_targets,
    grpo_loss,
    importance_weights,
    raptb_loss,
    reinforce_advantages,
    rloo_loss,
)
from learner.losses import tb_loss
from learner.objective import LogZTable, evaluate_comparison
from learner.policy import Actions
from tests.conftest import make_query
from tests.learner.test_exactness import (
    BATCH,
    STEPS,
    TAU,
    TERMINATOR,
    every_sequence,
    make_policy,
    posterior,
    reference_log_prior,
    repeats,
    total_variation,
)
from tests.tiny import tiny_llama

REWARD = torch.tensor([0.0, 1.0, 2.0, 0.5])
LOG_PRIOR = torch.tensor([0.4, 0.3, 0.1, 0.2]).log()


QUERY = make_query(14, 15, 3)
WEIGHTS = RewardWeights(prior=1.0, likelihood=0.0)
Floats = NDArray[np.float64]


@dataclass
class Ended:
    """A policy after training on a problem that can be enumerated."""

    sequences: list[tuple[int, ...]]
    log_prior: Floats
    reward: Floats
    """Tempered, without the prior."""
    posterior: Floats
    q: Floats


def ended(reward: Callable[[tuple[int, ...]], float] = repeats, **settings: object) -> Ended:
    """On-policy training of a tiny policy by an objective."""
    policy, sequences = make_policy(0), every_sequence(0)
    log_prior = reference_log_prior(QUERY)
    known = {z: log_prior(z) for z in sequences}
    section = LearnerSection.model_validate({"steps": STEPS, **settings})
    log_z = LogZTable([QUERY.id])
    optimizer = torch.optim.AdamW(
        [{"params": list(policy.trainable().values()), "lr": 3e-3}, {"params": [log_z.values], "lr": 0.1}],
        weight_decay=0.0,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.02, 1 - step / STEPS))
    random = np.random.default_rng(1)
    for _ in range(STEPS):
        q = np.exp(policy.log_prob(QUERY, sequences))
        batch = [sequences[i] for i in random.choice(len(sequences), 2 * BATCH, p=q / q.sum())]
        log_q = dict(zip(sequences, np.log(q), strict=True))
        items = [_scored(z, known, reward, log_q[z]) for z in batch]
        log_probs, rows = policy.log_probs([Actions.plain(QUERY, z) for z in batch]), log_z.rows(items)
        found = evaluate_comparison(section, log_probs, items, WEIGHTS, TAU, rows, log_z, 0)
        optimizer.zero_grad()
        found.loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(policy.trainable().values()), 5.0)
        optimizer.step()
        scheduler.step()
    return Ended(
        sequences,
        np.array([known[z] for z in sequences]),
        np.array([reward(z) for z in sequences]) / TAU,
        posterior(sequences, lambda z: known[z] + reward(z)),
        np.exp(policy.log_prob(QUERY, sequences)),
    )


def _scored(
    z: tuple[int, ...],
    log_prior: dict[tuple[int, ...], float],
    reward: Callable[[tuple[int, ...]], float],
    log_behaviour: float,
) -> Trajectory:
    states = [z[:t] for t in range(len(z) + 1)]
    return Trajectory.without_tools(
        query_id=QUERY.id,
        task=QUERY.task,
        action_ids=list(z),
        log_prior=np.array([log_prior[state] for state in states]),
        log_likelihood=np.zeros(len(z) + 1),
        log_constraint=np.array([reward(state) for state in states]),
        behaviour=Behaviour(adapter_version=1, sampler_log_prob=np.zeros(len(z)), stop_log_prob=log_behaviour),
        source="policy",
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_alpha_dpg_ends_at_the_enumerated_posterior_for_every_divergence(alpha: float) -> None:
    found = ended(objective="alpha_dpg", alpha=alpha)
    assert total_variation(found.posterior, found.q) < 0.05


def test_flowrl_ends_at_a_target_that_is_sharper_the_longer_and_not_at_the_posterior() -> None:
    found = ended(objective="flowrl")
    decisions = np.array([len(z) + 1 for z in found.sequences])

    def target(log_z: float) -> Floats:
        return np.asarray(np.exp(found.log_prior + decisions * (found.reward - log_z)))

    own = target(brentq(lambda log_z: target(log_z).sum() - 1, -20, 20))
    assert total_variation(own, found.q) < 0.05
    assert total_variation(own, found.posterior) > 0.1


def whole(z: tuple[int, ...]) -> float:
    """−4 but for three tokens: a prefix earns less than what follows."""
    return 0.0 if len(z) == 3 else -4.0


def test_raptb_ends_off_the_posterior_where_a_prefix_earns_less_than_what_follows_and_tb_at_it() -> None:
    distances = {}
    for weight in (0.0, 0.25):
        found = ended(whole, objective="raptb", raptb_weight=weight)
        distances[weight] = total_variation(found.posterior, found.q)
    assert distances[0.0] < 0.05 < distances[0.25] < 0.25


def test_absorbed_targets_are_between_maximum_and_soft_maximum_of_what_follows() -> None:
    reward = torch.tensor([[-3.0, 0.0, -3.0, -1.0, torch.nan]])
    valid = torch.tensor([[True, True, True, True, False]])
    soft = [torch.logsumexp(5 * reward[0, t:4], 0).item() / 5 for t in range(4)]
    expected = [0.5 * (highest + found) for highest, found in zip([0.0, 0.0, -1.0, -1.0], soft, strict=True)]
    assert absorbed_targets(reward, valid)[0, :4].tolist() == pytest.approx(expected, abs=1e-6)


def test_raptb_is_tb_and_the_mean_square_of_its_rooted_prefixes() -> None:
    log_pf, log_pterm = torch.tensor([[-1.0, -2.0, -0.5]]), torch.tensor([[-3.0, -2.5, -2.0, -0.1]])
    task, log_z, last = torch.tensor([[-4.0, -3.0, -2.0, -1.0]]), torch.tensor([0.5]), torch.tensor([3])
    log_reward = task + torch.tensor([[-1.0, -2.0, -4.0, -4.5]])
    h = log_reward - log_pterm - torch.tensor([[0.0, -1.0, -3.0, -3.5]])
    # The target of state 2 is all but that of state 3, one state from the end; state 1 is too short to count.
    soft = torch.logsumexp(torch.tensor([-10.0, -5.0]), 0) / 5
    raised = h[0, 2] + 0.99 * (0.5 * (-1.0 + soft) + 2.0)
    prefixes = ((raised - h[0, 0]) ** 2 + (h[0, 3] - h[0, 0]) ** 2) / 2
    arguments = (log_pf, log_pterm, log_reward, task, last)
    anchor = tb_loss(log_pf, log_pterm, log_reward, last, log_z=log_z)
    assert torch.isclose(raptb_loss(*arguments, log_z=log_z, weight=0.0), anchor)
    assert torch.isclose(raptb_loss(*arguments, log_z=log_z, weight=0.5), anchor + 0.5 * prefixes)


def test_raptb_s_prefixes_teach_nobody_when_to_stop() -> None:
    generator = torch.Generator().manual_seed(0)
    log_pf, log_pterm, task = (torch.randn(2, n, generator=generator) for n in (4, 5, 5))
    log_pterm.requires_grad_()
    loss = raptb_loss(log_pf, log_pterm, task, task, torch.tensor([4, 2]), log_z=torch.zeros(2), weight=1.0, min_len=1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert log_pterm.grad is not None
    assert log_pterm.grad.nonzero().tolist() == [[0, 4], [1, 2]]


def trained(objective: str, kl_coef: float, sampler: torch.Tensor | None = None) -> torch.Tensor:
    """Probabilities of four one-token rationales after training on the policy's own draws, or a sampler's."""
    generator = torch.Generator().manual_seed(0)
    logits = LOG_PRIOR.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.02)
    group = torch.zeros(64, dtype=torch.long)
    for _ in range(800):
        log_q = logits.log_softmax(0)
        behaviour = log_q.detach() if sampler is None else sampler.log()
        drawn = torch.multinomial(behaviour.exp(), 64, replacement=True, generator=generator)
        chosen, prior, reward = log_q[drawn], LOG_PRIOR[drawn], REWARD[drawn]
        if objective == "rloo":
            importance = importance_weights(chosen, behaviour[drawn], cap=10.0)
            loss = rloo_loss(chosen, prior, reward, importance, group=group, kl_coef=kl_coef)
        else:
            valid = torch.ones(64, 1, dtype=torch.bool)
            loss = grpo_loss(
                chosen[:, None],
                chosen.detach()[:, None],
                valid,
                prior,
                reward,
                group=group,
                kl_coef=kl_coef,
                clip_ratio=0.2,
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return logits.detach().softmax(0)


@pytest.mark.parametrize("sampler", [None, torch.full((4,), 0.25)])
def test_rloo_at_kl_coef_1_ends_at_the_posterior_whatever_drew_the_batch(sampler: torch.Tensor | None) -> None:
    posterior = (LOG_PRIOR + REWARD).softmax(0)
    assert float((trained("rloo", 1.0, sampler) - posterior).abs().sum()) / 2 < 0.05


def test_importance_weights_are_truncated_and_1_where_nobody_sampled() -> None:
    log_q = torch.tensor([-1.0, -2.0, -12.0, -3.0], requires_grad=True)
    found = importance_weights(log_q, torch.tensor([-1.0, -9.0, -2.0, torch.nan]), cap=2.0)
    assert found.tolist() == pytest.approx([1.0, 2.0, math.exp(-10.0), 1.0]) and not found.requires_grad


@pytest.mark.parametrize("objective", ["rloo", "alpha_dpg"])
def test_what_the_policy_hardly_draws_any_more_is_not_made_ever_less_likely(objective: str) -> None:
    policy = make_policy(0)
    batch = [(4,), (5,), (6,)]
    behaved = policy.log_prob(QUERY, batch)
    # Of the first the policy's probability has fallen to e⁻³⁰ of its sampler's, and it earns less than the others.
    stale = [behaved[0] + 30.0, *behaved[1:]]
    rewards = {(4,): -20.0, (5,): 0.0, (6,): 1.0}
    log_prior = reference_log_prior(QUERY)
    known = {z: log_prior(z) for z in [(), *batch]}

    def weight_of_the_first(log_behaviour: Sequence[float]) -> float:
        items = [
            _scored(z, known, lambda z: rewards.get(z, 0.0), float(b))
            for z, b in zip(batch, log_behaviour, strict=True)
        ]
        log_probs = policy.log_probs([Actions.plain(QUERY, z) for z in batch])
        log_probs.log_pf.retain_grad()
        log_z = LogZTable([QUERY.id])
        section = LearnerSection.model_validate({"objective": objective})
        loss = evaluate_comparison(section, log_probs, items, WEIGHTS, 1.0, log_z.rows(items), log_z, 0).loss
        loss.backward()  # type: ignore[no-untyped-call]
        assert log_probs.log_pf.grad is not None
        return abs(float(log_probs.log_pf.grad[0, 0]))

    assert weight_of_the_first(stale) < 1e-6 < 1e-2 < weight_of_the_first(behaved)


@pytest.mark.parametrize("objective", ["rloo", "grpo"])
def test_reward_maximisation_with_little_kl_collapses_to_the_best(objective: str) -> None:
    assert float(trained(objective, 0.01)[2]) > 0.9


def test_a_strong_kl_term_keeps_grpo_at_the_reference() -> None:
    assert float((trained("grpo", 50.0) - LOG_PRIOR.exp()).abs().sum()) / 2 < 0.05


def test_advantages_compare_within_a_query_and_a_single_trajectory_has_none() -> None:
    rewards, group = torch.tensor([1.0, 3.0, 10.0]), torch.tensor([0, 0, 1])
    assert reinforce_advantages(rewards, group, standardize=False).tolist() == [-2.0, 2.0, 0.0]
    assert reinforce_advantages(rewards, group, standardize=True).tolist() == pytest.approx([-1.0, 1.0, 0.0], abs=1e-3)


def test_grpo_clips_the_ratio_and_takes_an_unknown_sampler_for_the_policy() -> None:
    log_pf = torch.tensor([[0.0, -1.0], [0.0, -1.0]], requires_grad=True)
    behaviour = torch.tensor([[-2.0, torch.nan], [-2.0, torch.nan]])
    valid, zeros = torch.ones(2, 2, dtype=torch.bool), torch.zeros(2)
    reward, group = torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.long)
    loss = grpo_loss(log_pf, behaviour, valid, zeros, reward, group=group, kl_coef=0.0, clip_ratio=0.2)
    loss.backward()  # type: ignore[no-untyped-call]
    assert log_pf.grad is not None
    # The good one's first token is e² times likelier than sampled: clipped, no gradient. Its second is counted.
    assert log_pf.grad[0, 0] == 0.0 and log_pf.grad[0, 1] < 0.0
    assert log_pf.grad[1, 0] > 0.0 and log_pf.grad[1, 1] > 0.0


def test_sft_sums_the_plain_models_log_probs_of_rationale_terminator_and_target_but_not_of_tools() -> None:
    policy, query = make_policy(0), make_query(14, 15, 3)
    query = query.model_copy(update={"target_ids": np.array([8, 9], np.int32)})
    # Actions 4 and 5; a tool wrote 10 11 after the first.
    item = Trajectory(
        query_id=query.id,
        task=query.task,
        action_ids=[4, 5],
        input_ids=[4, 10, 11, 5],
        action_positions=[0, 3],
        log_prior=np.zeros(3),
        log_likelihood=np.zeros(3),
        log_constraint=np.zeros(3),
        behaviour=Behaviour(sampler_log_prob=np.full(2, np.nan)),
        source="seed",
    )
    ids = [14, 15, 3, 4, 10, 11, 5, TERMINATOR, 8, 9]
    with torch.no_grad():
        table = tiny_llama()(torch.tensor([ids])).logits[0].log_softmax(-1)
        found = policy.unmasked_log_prob([Actions.with_target(item, query, TERMINATOR)])
    expected = sum(float(table[i - 1, ids[i]]) for i in (3, 6, 7, 8, 9))
    assert float(found[0]) == pytest.approx(expected, abs=1e-4)
