"""What the machine has, and the precisions that follow from it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.adapter_files import can_merge
from common.config import LONG_RUN_STEPS
from common.errors import UserError

if TYPE_CHECKING:
    from common.config import ReferenceSection, RunConfig

REFERENCE_SHARE = 0.25
"""Of an actor's GPU, what a reference of its own may take: a learner and the sampling engine stand beside it."""
GAP_LIMITS = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.02}
"""`learner.max_sampler_gap` by precision, in nats a token. Measured on the mean: 8e-6 in float32; in bfloat16 0.02 to
0.04, on CPUs and GPUs, with rank 16 and rank 64 on all linear layers."""
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
    # More of them than cores hold each other up.
    return min(config.learner.threads or max(1, available_cores() - taken), available_cores())


def gpu_memory_bytes() -> int:
    """Memory of the smallest GPU of this machine; 0 without one. The driver's program is asked, as a process that asks
    CUDA holds memory on the GPU from then on."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return min((int(line) * 2**20 for line in listed.split()), default=0)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return 0


def resolve_devices(config: RunConfig, n_parameters: int | None = None) -> RunConfig:
    """Fill in what `auto` means on this machine: devices and precisions.

    On a CPU everything is float32: a reward in bfloat16 is off by 0.2 nats a sequence. On a GPU the engine samples in
    bfloat16, as its kernels for adapters have no float32; the learner stays in float32, and so does the reference where
    a model of `n_parameters` fits beside the others. Raises UserError where an engine can't have the wanted precision,
    or can't score by the reference.
    """
    gpu = has_gpu()
    num_gpus = config.actor.num_gpus
    if num_gpus is None:
        num_gpus = float(config.actor.tensor_parallel_size) if gpu else 0.0
    # By what the actors have: they may be on other machines, or leave this one's GPU to the learner.
    dtype = _chosen(config.actor.dtype, "bfloat16" if num_gpus else "float32")
    actor = config.actor.model_copy(update={"dtype": dtype, "num_gpus": num_gpus})
    learner = config.learner.model_copy(
        update={
            "dtype": _chosen(config.learner.dtype, "float32"),
            "device": _chosen(config.learner.device, "cuda" if gpu else "cpu"),
        }
    )
    if actor.num_gpus and actor.dtype == "float32":
        raise UserError(
            "actor.dtype",
            "float32",
            "vLLM's kernels for adapters take 16-bit numbers alone on a GPU",
            "leave it out: the reward is scored in float32 all the same (reference.dtype)",
        )
    if actor.enforce_eager == "auto" and config.learner.steps >= LONG_RUN_STEPS:
        actor = actor.model_copy(update={"enforce_eager": False})
    gap = learner.max_sampler_gap or max(GAP_LIMITS[actor.dtype], GAP_LIMITS[learner.dtype])
    learner = learner.model_copy(update={"max_sampler_gap": gap})
    resolved = config.model_copy(update={"actor": actor, "learner": learner})
    resolved = resolved.model_copy(update={"reference": _resolve_reference(resolved, n_parameters)})
    adapters = _resolve_adapters(resolved)
    return resolved.model_copy(update={"actor": actor.model_copy(update={"adapters": adapters})})


def _resolve_adapters(config: RunConfig) -> str:
    """How the engine samples through them."""
    actor = config.actor
    problems = {
        "its layers are of 16 bits (actor.dtype), which round most of an adapter away": actor.dtype != "float32",
        "its model is spread over processes (actor.tensor_parallel_size)": actor.tensor_parallel_size > 1,
        "it scores by the base model as well (reference.scorer isn't trees)": config.reference.scorer != "trees",
        "model.lora.target_modules has others than attention's and the feed-forward part's projections": not can_merge(
            config.model.lora.target_modules
        ),
    }
    problem = next((text for text, is_one in problems.items() if is_one), None)
    if actor.adapters == "auto":
        return "lora" if problem else "merged"
    if actor.adapters == "merged" and problem:
        raise UserError("actor.adapters", "merged", f"an engine can't: {problem}", "leave it out, or give lora")
    return actor.adapters


def _resolve_reference(config: RunConfig, n_parameters: int | None) -> ReferenceSection:
    """Its precision, and what scores by it, on the actor's devices."""
    actor, reference = config.actor, config.reference

    def fits(size_bytes: int) -> bool:
        room = REFERENCE_SHARE * min(1.0, actor.num_gpus or 0.0) * gpu_memory_bytes()
        return n_parameters is not None and size_bytes * n_parameters <= room

    if reference.dtype == "auto":
        dtype = "float32" if not actor.num_gpus or fits(4) else actor.dtype
        reference = reference.model_copy(update={"dtype": dtype})
    if reference.dtype != actor.dtype:
        if reference.scorer == "vllm":
            raise UserError(
                "reference.scorer",
                "vllm",
                f"the engine samples in {actor.dtype}, and has one precision for both",
                f"leave it out, or give reference.dtype: {actor.dtype}",
            )
        return reference.model_copy(update={"scorer": "trees"})
    if reference.scorer != "auto":
        return reference
    one_process = actor.tensor_parallel_size == 1
    size_bytes = 4 if reference.dtype == "float32" else 2
    trees = one_process and (not actor.num_gpus or fits(size_bytes))
    return reference.model_copy(update={"scorer": "trees" if trees else "vllm"})


def _chosen(value: str, auto: str) -> str:
    return auto if value == "auto" else value
