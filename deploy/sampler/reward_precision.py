"""What the reference's precision does to the reward: log R as a run has it, against the same model in float32."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.config import RunConfig
from common.free_memory import free_memory_bytes
from common.reward import weighted_sum
from common.tasks import Task
from common.trajectory import Query, Trajectory

SEQUENCES = 32
"""That are scored again: the error of a mean over them is a sixth of the spread."""
ROOM, PASS_BYTES = 1.1, 2 * 2**30
"""Free memory of the place where a float32 model is put: a multiple of its weights, and what a pass takes besides."""
LIMIT_S = 60.0
"""After it no further pass is begun, as on a CPU each of a large model takes long: a figure on the side must not hold
up a run's end."""
EXACT = "float32"


@dataclass(frozen=True)
class RewardPrecision:
    """How far log R is off, in nats a sequence."""

    dtype: str
    """The reference's."""
    sequences: int
    """That were scored again in float32; none where that is what the reference is in, or none could be."""
    mean_nats: float
    """Of |log R − log R in float32|."""
    max_nats: float
    not_measured: str | None = None
    """Why nothing was scored again; None where something was, or the reference is in float32."""

    @property
    def is_known(self) -> bool:
        """Whether the figures mean anything."""
        return self.dtype == EXACT or self.sequences > 0

    def words(self) -> str:
        """In a line."""
        if self.dtype == EXACT:
            return "exact: the reference is in float32"
        if not self.sequences:
            return f"not measured: the reference is in {self.dtype}, and {self.not_measured or 'nothing was drawn'}"
        return (
            f"{self.dtype} moves log R by {self.mean_nats:.3g} nats a sequence on average, by {self.max_nats:.3g} at "
            f"most ({self.sequences} sequences against float32)"
        )


class _GivenUp(Exception):
    """Scoring was not begun, or broken off before any sequence was scored; the reason in words."""


def measured(
    config: RunConfig,
    task: Task[Any],
    queries: Mapping[str, Query],
    drawn: Sequence[Trajectory],
    tau: float,
    should_stop: Callable[[], bool] = lambda: False,
) -> RewardPrecision:
    """Score some of the scored trajectories once more in float32, by transformers; `queries` are theirs by id, `tau`
    is the temperature of log R.

    Nothing is loaded or scored where the reference is in float32 already, or where there is no room for the model in
    float32, which the words then say. When `should_stop` says so, or after `LIMIT_S`, no further pass is begun: what
    was scored by then counts.
    """
    dtype = config.reference.dtype
    distinct = list({item.id: item for item in drawn}.values())
    if dtype == EXACT or not distinct:
        return RewardPrecision(dtype, 0, 0.0, 0.0)
    n = min(SEQUENCES, len(distinct))
    chosen = [distinct[i * len(distinct) // n] for i in range(n)]
    weights = config.reward_weights
    from torch import OutOfMemoryError

    try:
        exact = _in_float32(config, task, [(queries[item.query_id], item) for item in chosen], should_stop)
    except (_GivenUp, MemoryError, OutOfMemoryError) as error:
        # Room that was there may be gone by now, and no draws are lost for that.
        why = str(error) if isinstance(error, _GivenUp) else "memory ran out while it was scored in float32"
        return RewardPrecision(dtype, 0, 0.0, 0.0, why)
    found = np.array([float(chosen[i].log_reward(weights)[-1]) for i in exact])
    off = np.abs(found - np.array([weighted_sum(*parts, weights) for parts in exact.values()])) / tau
    return RewardPrecision(dtype, len(exact), float(off.mean()), float(off.max()))


def _in_float32(
    config: RunConfig,
    task: Task[Any],
    pairs: Sequence[tuple[Query, Trajectory]],
    should_stop: Callable[[], bool],
) -> dict[int, tuple[float, float, float]]:
    """log_prior, log_likelihood and log_constraint of the whole rationale, the model's part computed in float32, by the
    pair's number. Raises _GivenUp if there are none."""
    from actors.reference import ReferenceScorer
    from actors.scoring import Rollout, TokenScores, reward_components, texts_to_score

    model, stop = config.model.name, task.action_space.terminator_id
    assert model is not None
    device = _device(model)
    if should_stop():
        raise _GivenUp("the run was interrupted")
    scorer = ReferenceScorer(model, EXACT, stop, device, config.reference.adapter)
    deadline = time.monotonic() + LIMIT_S
    found = {}
    for i, (query, item) in enumerate(pairs):
        rollout = Rollout(query, item.action_ids, item.input_ids, item.action_positions)
        last = np.arange(len(item.action_ids) + 1) == len(item.action_ids)
        texts = texts_to_score(rollout, stop, last, terminator_in_text=task.terminator_in_reward)
        # One sequence after the other: on a CPU a pass of many takes minutes, and can't be broken off.
        for j, text in enumerate(texts):
            scorer.submit_score(str(j), text)
        scores: dict[str, TokenScores] = {}
        while scorer.busy and not should_stop() and time.monotonic() < deadline:
            scores |= {scored.request_id: scored.scores for scored in scorer.step()}
        if len(scores) < len(texts):
            break
        parts = reward_components(
            rollout,
            [scores[str(j)] for j in range(len(texts))],
            terminator_in_reward=task.terminator_in_reward,
            stoppable=last,
            wanted=last,
            calibrated=task.calibrated_reward,
        )
        # Whether another target is likelier is a matter of precision too.
        misled = bool((item.log_alternatives > item.log_likelihood[-1]).any())
        penalty = task.misleading_penalty * (float(misled) - float(parts.misleads[-1]))
        constraint = float(item.log_constraint[-1]) + penalty
        found[i] = float(parts.log_prior[-1]), float(parts.log_likelihood[-1]), constraint
    if not found:
        raise _GivenUp("the run was interrupted" if should_stop() else f"scoring took longer than {LIMIT_S:.0f} s")
    return found


def _device(model: str) -> Any:
    """Where the model in float32 has room beside what is there. Raises _GivenUp where it has none."""
    import torch

    from common.models import causal_lm_without_weights, load_config

    n = sum(p.numel() for p in causal_lm_without_weights(model, load_config(model)).parameters())
    needed, gpus, memory = int(ROOM * 4 * n), _free_on_gpus(), free_memory_bytes()
    place = place_for(needed, gpus, memory)
    if place is None:
        free = f"main memory has {memory / 2**30:.1f} GiB free"
        free += f", the GPU with most {max(gpus) / 2**30:.1f} GiB" if gpus else ""
        passes = f"{PASS_BYTES / 2**30:.1f} GiB more to be scored with"
        raise _GivenUp(f"the model takes {needed / 2**30:.1f} GiB in float32, and {passes}: {free}")
    return torch.device(place)


def place_for(needed: int, gpus: Sequence[int], memory: int) -> str | None:
    """The GPU with most free memory, if a model of `needed` bytes and its passes fit there, else the CPU, if they fit
    into main memory, through which it is loaded in any case; None if they fit nowhere. `gpus` and `memory` are bytes
    that are free."""
    if gpus and max(gpus) >= needed + PASS_BYTES and memory >= needed:
        return f"cuda:{gpus.index(max(gpus))}"
    return "cpu" if memory >= needed + PASS_BYTES else None


def _free_on_gpus() -> list[int]:
    """Bytes, by the GPU's number; 0 for one that hasn't even the room to be asked."""
    import torch

    found = []
    for i in range(torch.cuda.device_count()):
        try:
            found.append(int(torch.cuda.mem_get_info(i)[0]))
        except RuntimeError:
            found.append(0)
    return found
