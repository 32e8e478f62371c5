"""What the reference's precision does to the reward: log R as a run has it, against the same model in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.config import RunConfig
from common.reward import weighted_sum
from common.tasks import Task
from common.trajectory import Query, Trajectory

SEQUENCES = 32
"""That are scored again: the error of a mean over them is a sixth of the spread."""
ROOM = 1.3
"""Free memory of a GPU that a float32 model is put on, as a multiple of its weights."""
EXACT = "float32"


@dataclass(frozen=True)
class RewardPrecision:
    """How far log R is off, in nats a sequence."""

    dtype: str
    """The reference's."""
    sequences: int
    """That were scored again in float32; none where that is what the reference is in."""
    mean_nats: float
    """Of |log R − log R in float32|."""
    max_nats: float

    def words(self) -> str:
        """In a line."""
        if self.dtype == EXACT:
            return "exact: the reference is in float32"
        if not self.sequences:
            return f"not measured: the reference is in {self.dtype}, and nothing was drawn"
        return (
            f"{self.dtype} moves log R by {self.mean_nats:.3g} nats a sequence on average, by {self.max_nats:.3g} at "
            f"most ({self.sequences} sequences against float32)"
        )


def measured(
    config: RunConfig, task: Task[Any], queries: Mapping[str, Query], drawn: Sequence[Trajectory], tau: float
) -> RewardPrecision:
    """Score some of the scored trajectories once more in float32, by transformers; `queries` are theirs by id, `tau`
    is the temperature of log R.

    Nothing is loaded or scored where the reference is in float32 already.
    """
    dtype = config.reference.dtype
    distinct = list({item.id: item for item in drawn}.values())
    if dtype == EXACT or not distinct:
        return RewardPrecision(dtype, 0, 0.0, 0.0)
    n = min(SEQUENCES, len(distinct))
    chosen = [distinct[i * len(distinct) // n] for i in range(n)]
    weights = config.reward_weights
    exact = _in_float32(config, task, [(queries[item.query_id], item) for item in chosen])
    found = np.array([float(item.log_reward(weights)[-1]) for item in chosen])
    off = np.abs(found - np.array([weighted_sum(*parts, weights) for parts in exact])) / tau
    return RewardPrecision(dtype, n, float(off.mean()), float(off.max()))


def _in_float32(
    config: RunConfig, task: Task[Any], pairs: Sequence[tuple[Query, Trajectory]]
) -> list[tuple[float, float, float]]:
    """log_prior, log_likelihood and log_constraint of the whole rationale, the model's part computed in float32."""
    from actors.reference import ReferenceScorer
    from actors.scoring import Rollout, TokenScores, reward_components, texts_to_score

    model, stop = config.model.name, task.action_space.terminator_id
    assert model is not None
    scorer = ReferenceScorer(model, EXACT, stop, _device(model), config.reference.adapter)
    rollouts, masks, wanted_texts = [], [], []
    for i, (query, item) in enumerate(pairs):
        rollout = Rollout(query, item.action_ids, item.input_ids, item.action_positions)
        last = np.arange(len(item.action_ids) + 1) == len(item.action_ids)
        texts = texts_to_score(rollout, stop, last, terminator_in_text=task.terminator_in_reward)
        for j, text in enumerate(texts):
            scorer.submit_score(f"{i}/{j}", text)
        rollouts.append(rollout)
        masks.append(last)
        wanted_texts.append(len(texts))
    scores: dict[str, TokenScores] = {}
    while scorer.busy:
        scores |= {scored.request_id: scored.scores for scored in scorer.step()}
    found = []
    for i, (_, item) in enumerate(pairs):
        parts = reward_components(
            rollouts[i],
            [scores[f"{i}/{j}"] for j in range(wanted_texts[i])],
            terminator_in_reward=task.terminator_in_reward,
            stoppable=masks[i],
            wanted=masks[i],
        )
        # Whether another target is likelier is a matter of precision too.
        misled = bool((item.log_alternatives > item.log_likelihood[-1]).any())
        penalty = task.misleading_penalty * (float(misled) - float(parts.misleads[-1]))
        constraint = float(item.log_constraint[-1]) + penalty
        found.append((float(parts.log_prior[-1]), float(parts.log_likelihood[-1]), constraint))
    return found


def _device(model: str) -> Any:
    """A GPU with room for the model in float32 beside what is on it, else the CPU."""
    import torch

    from common.models import causal_lm_without_weights, load_config

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        n = sum(p.numel() for p in causal_lm_without_weights(model, load_config(model)).parameters())
        if free > ROOM * 4 * n:
            return torch.device("cuda")
    return torch.device("cpu")
