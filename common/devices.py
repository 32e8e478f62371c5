"""What the machine has, and the precisions that follow from it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.config import RunConfig


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return bool(torch.cuda.is_available())


def torch_dtype(name: str) -> Any:
    """The torch dtype of a resolved precision."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def resolve_devices(config: RunConfig) -> RunConfig:
    """Fill in what `auto` means on this machine: devices, precisions, cores.

    On a CPU everything is float32: a reward in bfloat16 is off by 0.2 nats a sequence. On a GPU the engine samples and
    scores in bfloat16, since its fast attention kernels have no float32, and the learner stays in float32.
    """
    gpu = has_gpu()
    actor = config.actor.model_copy(
        update={
            "dtype": _chosen(config.actor.dtype, "bfloat16" if gpu else "float32"),
            "num_gpus": (1.0 if gpu else 0.0) if config.actor.num_gpus is None else config.actor.num_gpus,
        }
    )
    cores = os.cpu_count() or 1
    # Actors on a cluster have cores of their own.
    taken = 0 if config.ray.address else int(actor.least_count * actor.num_cpus)
    left = max(1, cores - taken)
    learner = config.learner.model_copy(
        update={
            "dtype": _chosen(config.learner.dtype, "float32"),
            "device": _chosen(config.learner.device, "cuda" if gpu else "cpu"),
            "threads": config.learner.threads or left,
        }
    )
    gap = learner.max_sampler_gap or (0.01 if actor.dtype == learner.dtype == "float32" else 0.2)
    learner = learner.model_copy(update={"max_sampler_gap": gap})
    reference = config.reference.model_copy(update={"dtype": _chosen(config.reference.dtype, actor.dtype)})
    return config.model_copy(update={"actor": actor, "learner": learner, "reference": reference})


def _chosen(value: str, auto: str) -> str:
    return auto if value == "auto" else value
