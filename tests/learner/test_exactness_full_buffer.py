"""What is learned from a query's buffer that holds far less than there is: as much as from one that holds all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from redis import Redis

from buffer.connection import Keys
from buffer.replay import ReplayBuffer
from common.config import BufferSection
from common.reward import RewardWeights
from learner.losses import vargrad_loss
from tests.conftest import make_query, make_trajectory

N_TEXTS, STEPS = 80, 400


@pytest.mark.parametrize("evict", ["lowest_reward", "oldest"])
def test_what_is_sampled_is_trained_on_even_where_the_buffer_is_full_of_better(
    redis_client: Redis, keys: Keys, evict: str
) -> None:
    random = np.random.default_rng(5)
    log_reward = random.normal(0, 1, N_TEXTS)
    posterior = np.exp(log_reward - np.logaddexp.reduce(log_reward))
    # A policy of texts of one action, from uniform.
    logits = torch.zeros(N_TEXTS, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.03)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.03, 1 - step / STEPS))
    section = BufferSection.model_validate({"evict": evict, "capacity_per_query": N_TEXTS // 4})
    buffer = ReplayBuffer(redis_client, keys, section, RewardWeights(prior=0, likelihood=0))
    buffer.open()

    def policy() -> np.ndarray:
        return logits.detach().double().softmax(-1).numpy()

    def distance() -> float:
        return float(0.5 * np.abs(policy() - posterior).sum())

    assert distance() > 0.3, "the problem must not be solved from the start"
    for step in range(STEPS):
        if step % 2 == 0:
            picked = random.choice(N_TEXTS, 8, p=policy() / policy().sum())
            buffer.push([make_trajectory(make_query(), [i], log_reward[i], version=step) for i in picked])
        batch = buffer.sample(1, 16, seed=step)
        texts = torch.tensor([int(item.action_ids[0]) for item in batch])
        rewards = torch.tensor(log_reward, dtype=torch.float32)[texts]
        log_probs = logits.log_softmax(-1)[texts].unsqueeze(1)
        nothing = torch.zeros(len(batch), 2)
        loss = vargrad_loss(
            log_probs, nothing, nothing + rewards.unsqueeze(1), torch.ones(len(batch), dtype=torch.long)
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
    assert distance() < 0.05
