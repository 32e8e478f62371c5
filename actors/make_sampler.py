"""A task's sampler from a run's configuration: the engine that samples, what scores, and what beam search needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from actors.beam import BeamSearch
from actors.engine import Engine
from actors.reference import ReferenceScorer
from actors.sampler import TrajectorySampler
from common.action_space import ActionSpace
from common.config import RunConfig
from common.metrics import ActorMetrics, new_registry
from common.tasks import Task


def make_sampler(
    config: RunConfig,
    task: Task[Any],
    seed: int,
    *,
    metrics: ActorMetrics | None = None,
    actor_id: str = "",
    on_compiling: Callable[[], None] = lambda: None,
    on_rejected: Callable[[bytes, str], None] = lambda payload, reason: None,
) -> TrajectorySampler:
    """Start the engine, and a copy of the model beside it where that one scores (`reference.scorer`).

    `on_compiling` is called before the model is compiled, if it is; `on_rejected` of samples that make no valid
    trajectory. Raises UserError if vLLM refuses.
    """
    section, space = config.actor, task.action_space
    assert config.model.name is not None
    engine, reference = _engines(config, space, seed, on_compiling)
    return TrajectorySampler(
        task,
        engine,
        reference,
        metrics or ActorMetrics(new_registry()),
        actor_id,
        section.score_cache,
        section.max_model_len,
        config.learner.reward.every,
        partial(BeamSearch, config.model.name, section, space),
        on_rejected,
    )


def _engines(
    config: RunConfig, space: ActionSpace, seed: int, on_compiling: Callable[[], None]
) -> tuple[Engine, Engine | ReferenceScorer]:
    """The policy's engine and the reference, which is the same engine where `reference.scorer` says so."""
    section, lora, reference = config.actor, config.model.lora, config.reference
    name, holds_one = config.model.name, bool(config.looks)
    assert name is not None
    if reference.scorer == "vllm":
        engine = Engine(
            name, section, section.dtype, space, lora, seed, reference.adapter, on_compiling, holds_one=holds_one
        )
        return engine, engine
    engine = Engine(name, section, section.dtype, space, lora, seed, on_compiling=on_compiling, holds_one=holds_one)
    device = torch.device("cuda" if section.num_gpus else "cpu")
    return engine, ReferenceScorer(name, reference.dtype, space.terminator_id, device, reference.adapter)
