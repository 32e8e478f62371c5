"""What the machine has, and the precisions that follow from it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.config import RunConfig

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""A container's limit as cgroup v2 has it: microseconds of CPU time, or `max`, a period of so many microseconds."""


def has_gpu() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return bool(torch.cuda.is_available())


def available_cores() -> int:
    """Cores that this process may use: the machine's, fewer by its affinity and by a container's limit.

    A fraction of a core is not counted: with more threads than the limit allows, all of them are held back.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Without a limit there is no file, or `max` in it.
    with contextlib.suppress(OSError, ValueError):
        quota, period = map(int, CPU_LIMIT.read_text().split())
        cores = min(cores, quota // period)
    return max(1, cores)


def torch_dtype(name: str) -> Any:
    """The torch dtype of a resolved precision."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def learner_threads(config: RunConfig) -> int:
    """CPU threads of a learner on this machine: those wanted, or the cores that the actors leave."""
    # Actors on a cluster have cores of their own.
    taken = 0 if config.ray.address else int(config.actor.least_count * config.actor.num_cpus)
    return config.learner.threads or max(1, available_cores() - taken)


def resolve_devices(config: RunConfig) -> RunConfig:
    """Fill in what `auto` means on this machine: devices and precisions.

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
    learner = config.learner.model_copy(
        update={
            "dtype": _chosen(config.learner.dtype, "float32"),
            "device": _chosen(config.learner.device, "cuda" if gpu else "cpu"),
        }
    )
    gap = learner.max_sampler_gap or (0.01 if actor.dtype == learner.dtype == "float32" else 0.2)
    learner = learner.model_copy(update={"max_sampler_gap": gap})
    reference = config.reference.model_copy(update={"dtype": _chosen(config.reference.dtype, actor.dtype)})
    return config.model_copy(update={"actor": actor, "learner": learner, "reference": reference})


def _chosen(value: str, auto: str) -> str:
    return auto if value == "auto" else value
