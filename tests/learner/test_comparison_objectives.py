"""Comparison objectives: reward maximisation with and without its KL term, and maximum likelihood with tools."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.trajectory import Behaviour, Trajectory
from learner.losses import grpo_loss, reinforce_advantages, rloo_loss
from learner.policy import Actions
from tests.conftest import make_query
from tests.learner.test_exactness import TERMINATOR, make_policy
from tests.tiny import tiny_llama

REWARD = torch.tensor([0.0, 1.0, 2.0, 0.5])
LOG_PRIOR = torch.tensor([0.4, 0.3, 0.1, 0.2]).log()


def trained(objective: str, kl_coef: float) -> torch.Tensor:
    """Probabilities of four one-token rationales after on-policy training."""
    generator = torch.Generator().manual_seed(0)
    logits = LOG_PRIOR.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.02)
    group = torch.zeros(64, dtype=torch.long)
    for _ in range(800):
        log_q = logits.log_softmax(0)
        drawn = torch.multinomial(log_q.detach().exp(), 64, replacement=True, generator=generator)
        chosen, prior, reward = log_q[drawn], LOG_PRIOR[drawn], REWARD[drawn]
        if objective == "rloo":
            loss = rloo_loss(chosen, prior, reward, group=group, kl_coef=kl_coef)
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


def test_rloo_at_kl_coef_1_ends_at_the_posterior() -> None:
    posterior = (LOG_PRIOR + REWARD).softmax(0)
    assert float((trained("rloo", 1.0) - posterior).abs().sum()) / 2 < 0.05


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
