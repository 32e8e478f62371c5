"""From how many tokens on the gap between sampler and learner is judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common.config import LoraSection
from common.trajectory import NO_SHA256, Query, Trajectory
from learner.gap import ENOUGH_TOKENS, LEAST_TOKENS, Gap, GapMonitor
from learner.policy import Actions, LoraPolicy
from tests.actors.test_engine import SPACE
from tests.conftest import make_trajectory

LIMIT = 0.2
QUERY = Query(task="fixed", prompt_ids=[14, 15, 3, 7])


def bfloat16_like(n: int, mean: float, seed: int = 0) -> np.ndarray:
    """Gaps as they are in low precision: mostly small, some large."""
    return np.random.default_rng(seed).exponential(mean, n)


def test_a_handful_of_tokens_is_never_judged() -> None:
    eight = np.asarray([0.02, 0.01, 1.6, 0.9, 0.05, 0.2, 0.01, 0.01])
    assert eight.mean() > LIMIT and not Gap.of(1, eight).exceeds(LIMIT)
    assert not Gap.of(1, np.full(LEAST_TOKENS - 1, 5.0)).exceeds(LIMIT)


def test_enough_tokens_are_judged_by_their_mean() -> None:
    assert Gap.of(1, bfloat16_like(ENOUGH_TOKENS, 1.5 * LIMIT)).exceeds(LIMIT)
    assert not Gap.of(1, bfloat16_like(ENOUGH_TOKENS, 0.04)).exceeds(LIMIT)


def test_a_missing_adapter_is_judged_before_there_are_enough() -> None:
    assert Gap.of(1, bfloat16_like(LEAST_TOKENS, 20 * LIMIT)).exceeds(LIMIT)


def test_precision_alone_stops_hardly_any_run_early() -> None:
    stopped = sum(Gap.of(1, bfloat16_like(LEAST_TOKENS, 0.04, seed)).exceeds(LIMIT) for seed in range(2_000))
    assert stopped == 0


@pytest.fixture(scope="module")
def policy(digit_model: Path) -> LoraPolicy:
    lora = LoraSection(rank=4, target_modules=["q_proj", "v_proj"])
    return LoraPolicy.load(str(digit_model), lora, SPACE, dtype="float32", device=torch.device("cpu"))


def sampled(policy: LoraPolicy, off_by: float, version: int) -> Trajectory:
    """A trajectory of three actions whose sampler was off by so many nats a token."""
    actions = [3, 4, 5]
    with torch.no_grad():
        log_pf = policy.log_probs([Actions.plain(QUERY, actions)]).log_pf[0].numpy()
    item = make_trajectory(QUERY, actions, version=version)
    behaviour = item.behaviour.model_copy(update={"sampler_log_prob": (log_pf + off_by).astype(np.float32)})
    return item.model_copy(update={"behaviour": behaviour})


def test_checks_are_pooled_over_versions_until_they_are_enough_and_then_begin_anew(policy: LoraPolicy) -> None:
    monitor = GapMonitor(policy, keep=100)
    needed = -(-ENOUGH_TOKENS // 3)
    for check in range(needed):
        monitor.remember(check + 1, NO_SHA256)
        gap = monitor.compare([sampled(policy, 0.1 if check % 2 else 0.3, check + 1)], {QUERY.id: QUERY})
        assert gap is not None and gap.tokens == 3 * (check + 1) and gap.version == check + 1
        assert gap.enough == (check == needed - 1)
    assert gap.mean == pytest.approx(0.2, abs=0.01) and monitor.means == [gap.mean]
    fresh = monitor.compare([sampled(policy, 0.5, needed)], {QUERY.id: QUERY})
    assert fresh is not None and fresh.tokens == 3 and fresh.mean == pytest.approx(0.5, abs=1e-4)
    assert monitor.means == [gap.mean, fresh.mean]


def test_what_another_run_s_adapter_of_the_same_number_sampled_is_no_gap(policy: LoraPolicy) -> None:
    monitor, queries = GapMonitor(policy, keep=2), {QUERY.id: QUERY}
    own, foreign = sampled(policy, 0.0, 3), sampled(policy, 5.0, 3)
    behaviour = own.behaviour.model_copy(update={"adapter_sha256": "a" * 64})
    own = own.model_copy(update={"behaviour": behaviour})
    monitor.remember(3, "a" * 64)
    assert monitor.compare([foreign] * 100, queries) is None
    gap = monitor.compare([foreign] * 100 + [own], queries)
    assert gap is not None and gap.tokens == 3 and gap.mean < 1e-6
