"""Exactness again, with every batch drawn from the real buffer: what is looked at changes, not what is learned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from redis import Redis

from buffer.connection import Keys
from buffer.replay import ReplayBuffer
from common.config import BufferSection, LearnerSection
from common.reward import RewardWeights
from common.trajectory import Query, Source, Trajectory
from learner.objective import LogZTable, evaluate, stack_rewards
from learner.policy import Actions
from tests.conftest import make_query, make_trajectory
from tests.learner.test_exactness import (
    STEPS,
    SYNC_EVERY,
    TAU,
    every_sequence,
    make_policy,
    posterior,
    reference_log_reward,
    total_variation,
)

WEIGHTS = RewardWeights(prior=0, likelihood=0)
SEEDED: dict[str, object] = {"replay_priority": "uniform", "fresh": 0.25}


@pytest.mark.parametrize(
    ("settings", "seeds"),
    [
        ({"replay_priority": "loss", "query_selection": "loss"}, 0),
        (
            {
                "replay_priority": "uniform",
                "query_selection": "least_recently_trained",
                "replacement": True,
                "evict": "stalest",
                "capacity_per_query": 60,
                "max_staleness": 6,
            },
            0,
        ),
        ({"replay_priority": "reward", "replay_temperature": 2.0, "capacity_per_query": 20}, 0),
        (SEEDED, 200),
        ({"replay_choice": "submodular", "fresh": 0.25}, 0),
    ],
    ids=["loss", "stalest", "reward", "seeds", "submodular"],
)
def test_training_from_the_buffer_reaches_the_enumerated_posterior(
    redis_client: Redis, keys: Keys, settings: dict[str, object], seeds: int
) -> None:
    queries = {query.id: query for query in (make_query(14, 15, 3), make_query(0, 9))}
    policy, sequences = make_policy(0), every_sequence(0)
    rewards = {key: reference_log_reward(query) for key, query in queries.items()}
    targets = {key: posterior(sequences, rewards[key]) for key in queries}
    before = {key: total_variation(targets[key], np.exp(policy.log_prob(q, sequences))) for key, q in queries.items()}
    assert min(before.values()) > 0.15, "the problem must not be solved from the start"
    buffer = ReplayBuffer(redis_client, keys, BufferSection.model_validate(settings), WEIGHTS)
    buffer.open()
    random = np.random.default_rng(2)

    def made(query: Query, z: tuple[int, ...], version: int, source: Source = "policy") -> Trajectory:
        states = np.array([rewards[query.id](z[:t]) for t in range(len(z) + 1)], np.float32)
        plain = make_trajectory(query, list(z), version=version, source=source)
        return plain.model_copy(update={"log_constraint": states})

    for query in queries.values():
        # Far from the posterior on purpose: half of the space, and that uniformly.
        chosen = random.integers(0, len(sequences) // 2, seeds)
        buffer.push([made(query, sequences[i], 0, "seed") for i in chosen], from_actor=False)
    section = LearnerSection.model_validate({"steps": STEPS})
    log_z = LogZTable(list(queries))
    optimizer = torch.optim.AdamW(list(policy.trainable().values()), lr=3e-3, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.02, 1 - step / STEPS))
    stale = {}
    for step in range(STEPS):
        version = 1 + step // SYNC_EVERY
        if step % SYNC_EVERY == 0:
            stale = {key: policy.log_prob(query, sequences) for key, query in queries.items()}
        for key, query in queries.items():
            temperature = 1.0 if random.random() < 0.5 else random.uniform(0.5, 2.0)
            behaviour = np.exp(stale[key] / temperature)
            picked = random.choice(len(sequences), 8, p=behaviour / behaviour.sum())
            buffer.push([made(query, sequences[i], version) for i in picked])
        batch = buffer.sample(2, 12, seed=step, version=version)
        log_probs = policy.log_probs([Actions.of(item, queries[item.query_id]) for item in batch])
        log_reward = stack_rewards(batch, WEIGHTS, TAU, policy.device)
        found = evaluate(section, log_probs, log_reward, log_z.rows(batch), log_z, 0)
        optimizer.zero_grad()
        found.loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(policy.trainable().values()), 5.0)
        optimizer.step()
        scheduler.step()
        buffer.update_priorities(batch, found.residuals.tolist())
    after = {key: total_variation(targets[key], np.exp(policy.log_prob(q, sequences))) for key, q in queries.items()}
    assert max(after.values()) < 0.05, f"total variation {before} -> {after}"
    assert seeds == 0 or buffer.stats().seeded == 2 * seeds
