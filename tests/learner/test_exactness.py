"""The project's first truth: on an enumerable problem the trained sampler reaches the enumerated posterior.

A tiny Llama is trained through the real policy code and the real losses, off-policy: its batches come from stale
versions of itself, tempered or not, and from replay. The posterior is enumerated independently of all of that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from actors.scoring import states_to_score
from common.action_space import ActionSpace
from common.config import LearnerSection, LoraSection
from common.trajectory import Query
from learner.objective import LogZTable, evaluate
from learner.policy import Actions, LoraPolicy
from tests.conftest import make_query, make_trajectory
from tests.tiny import VOCABULARY, tiny_llama

TOKENS = (4, 5, 6, 7)
TERMINATOR = 13
MAX_LEN = 3
TAU = 0.8
STEPS, SYNC_EVERY, BATCH = 300, 10, 24


def make_policy(min_len: int) -> LoraPolicy:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    lora = LoraSection(
        rank=16, alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head"]
    )
    model = get_peft_model(
        tiny_llama(), LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.target_modules)
    )
    space = ActionSpace(
        vocab_size=len(VOCABULARY),
        terminator_id=TERMINATOR,
        allowed_ids=(*TOKENS, TERMINATOR),
        min_len=min_len,
        max_len=MAX_LEN,
    )
    return LoraPolicy(model, space, torch.device("cpu"))


def every_sequence(min_len: int) -> list[tuple[int, ...]]:
    return [z for k in range(min_len, MAX_LEN + 1) for z in itertools.product(TOKENS, repeat=k)]


def reference_log_prior(query: Query) -> Callable[[tuple[int, ...]], float]:
    """log p(z⊤|X) of the base model."""
    model = tiny_llama()
    known: dict[tuple[int, ...], float] = {}

    def log_prior(z: tuple[int, ...]) -> float:
        if z not in known:
            ids = torch.tensor([[*query.prompt_ids.tolist(), *z, TERMINATOR]])
            with torch.no_grad():
                log_p = model(ids).logits[0].double().log_softmax(-1)
            first = len(query.prompt_ids)
            known[z] = sum(float(log_p[first - 1 + i, token]) for i, token in enumerate((*z, TERMINATOR)))
        return known[z]

    return log_prior


def repeats(z: tuple[int, ...]) -> float:
    """−2 for each repeated neighbour."""
    return -2.0 * sum(a == b for a, b in itertools.pairwise(z))


def reference_log_reward(query: Query) -> Callable[[tuple[int, ...]], float]:
    """Untempered log R of stopping after z."""
    log_prior = reference_log_prior(query)
    return lambda z: log_prior(z) + repeats(z)


def posterior(sequences: list[tuple[int, ...]], log_reward: Callable[[tuple[int, ...]], float]) -> NDArray[np.float64]:
    tempered = np.array([log_reward(z) for z in sequences]) / TAU
    return np.exp(tempered - np.logaddexp.reduce(tempered))


def total_variation(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    return 0.5 * float(np.abs(p - q).sum())


@pytest.mark.parametrize("min_len", [0, 1])
@pytest.mark.parametrize(
    ("objective", "every", "residual"),
    [
        *((objective, 1, "square") for objective in ("subtb", "tb", "vargrad", "db")),
        *((objective, 2, "square") for objective in ("subtb", "db")),
        ("subtb", 1, "huber"),
        ("vargrad", 1, "linex"),
        ("vargrad", 1, "shifted_cosh"),
    ],
)
def test_training_off_policy_reaches_the_enumerated_posterior(
    objective: str, every: int, residual: str, min_len: int
) -> None:
    queries = [make_query(14, 15, 3), make_query(0, 9)]
    policy, sequences = make_policy(min_len), every_sequence(min_len)
    rewards = {query.id: reference_log_reward(query) for query in queries}
    targets = {query.id: posterior(sequences, rewards[query.id]) for query in queries}
    before = {q.id: total_variation(targets[q.id], np.exp(policy.log_prob(q, sequences))) for q in queries}
    assert min(before.values()) > 0.15, "the problem must not be solved from the start"

    section = LearnerSection.model_validate({"objective": objective, "residual": residual, "steps": STEPS})
    log_z = LogZTable([query.id for query in queries])
    optimizer = torch.optim.AdamW(
        [{"params": list(policy.trainable().values()), "lr": 3e-3}, {"params": [log_z.values], "lr": 0.1}],
        weight_decay=0.0,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.02, 1 - step / STEPS))
    random = np.random.default_rng(1)
    stale: dict[str, NDArray[np.float64]] = {}
    replay: dict[str, list[tuple[int, ...]]] = {query.id: [] for query in queries}
    for step in range(STEPS):
        if step % SYNC_EVERY == 0:
            stale = {query.id: policy.log_prob(query, sequences) for query in queries}
        batch: list[tuple[Query, tuple[int, ...]]] = []
        for query in queries:
            temperature = 1.0 if random.random() < 0.5 else random.uniform(0.5, 2.0)
            behaviour = np.exp(stale[query.id] / temperature)
            picked = random.choice(len(sequences), BATCH // 4, p=behaviour / behaviour.sum())
            fresh = [sequences[i] for i in picked]
            old = replay[query.id]
            batch += [(query, z) for z in fresh]
            batch += [(query, old[i]) for i in random.integers(0, len(old), BATCH // 4)] if old else []
            old += fresh
        trajectories = [make_trajectory(query, list(z)) for query, z in batch]
        log_probs = policy.log_probs([Actions.plain(query, z) for query, z in batch])
        log_reward = torch.zeros_like(log_probs.log_pterm)
        for row, (query, z) in zip(log_reward, batch, strict=True):
            row[: len(z) + 1] = torch.tensor([rewards[query.id](z[:t]) / TAU for t in range(len(z) + 1)])
            scored = states_to_score(np.arange(len(z) + 1) >= min_len, every)
            row[: len(z) + 1][~torch.as_tensor(scored)] = torch.nan
        found = evaluate(section, log_probs, log_reward, log_z.rows(trajectories), log_z, min_len)
        optimizer.zero_grad()
        found.loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(policy.trainable().values()), 5.0)
        optimizer.step()
        scheduler.step()
    after = {q.id: total_variation(targets[q.id], np.exp(policy.log_prob(q, sequences))) for q in queries}
    assert max(after.values()) < 0.05, f"{objective}: total variation {before} -> {after}"


@pytest.mark.parametrize("min_len", [0, 1])
def test_the_policy_is_a_distribution_over_the_enumerated_space(min_len: int) -> None:
    policy = make_policy(min_len)
    total = np.exp(policy.log_prob(make_query(14, 15, 3), every_sequence(min_len))).sum()
    assert total == pytest.approx(1.0, abs=1e-5)
