"""The engine that samples and what scores: one and the same, or a reference in a precision of its own beside it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from actors.engine import Engine
from actors.reference import ReferenceScorer
from common.action_space import ActionSpace
from common.config import RunConfig


def make_engines(
    config: RunConfig, space: ActionSpace, seed: int, on_compiling: Callable[[], None] = lambda: None
) -> tuple[Engine, Engine | ReferenceScorer]:
    """The policy's engine and the reference: the engine itself, unless the reward has a precision of its own.

    `on_compiling` is called before the model is compiled, if it is.
    """
    section, lora, reference = config.actor, config.model.lora, config.reference
    name = config.model.name
    assert name is not None
    if reference.dtype == section.dtype:
        engine = Engine(name, section, section.dtype, space, lora, seed, reference.adapter, on_compiling)
        return engine, engine
    engine = Engine(name, section, section.dtype, space, lora, seed, on_compiling=on_compiling)
    device = torch.device("cuda" if section.num_gpus else "cpu")
    return engine, ReferenceScorer(name, reference.dtype, space.terminator_id, device, reference.adapter)
