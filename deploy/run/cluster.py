"""What a Ray cluster has room for, and which of a machine's GPUs are the learner's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from common.config import ActorSection, RunConfig


def room_for_actors(nodes: Sequence[Mapping[str, Any]], section: ActorSection) -> int:
    """How many actors fit onto the living nodes, as `ray.nodes()` lists them; an actor never spans two of them."""
    return sum(_room(node["Resources"], section) for node in nodes if node["Alive"])


def _room(resources: Mapping[str, float], section: ActorSection) -> int:
    needs = {"CPU": section.num_cpus, "GPU": section.num_gpus or 0.0}
    room = [int(resources.get(name, 0.0) / need + 1e-9) for name, need in needs.items() if need]
    return min(room, default=0)


def own_gpus(config: RunConfig) -> list[str]:
    """`learner_gpus` of this machine, where one machine is all there is; none where the learner uses none."""
    if config.ray.address is not None or config.learner.device != "cuda":
        return []
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    section, n = config.actor, config.learner.num_processes
    each = section.num_gpus or 0.0
    # As many actors as there is room for are one at least.
    wanted = max(each, float(len(visible) - n)) if section.count == "auto" else section.count * each
    return learner_gpus(visible, wanted, n)


def learner_gpus(visible: Sequence[str], actor_gpus: float, n: int = 1) -> list[str]:
    """The `n` GPUs that one machine's learner has for itself, the last, where the actors leave it so many; else none.

    `visible` are the machine's GPUs as in CUDA_VISIBLE_DEVICES; Ray gives actors the first ones.
    """
    return list(visible[-n:]) if len(visible) >= n and actor_gpus <= len(visible) - n else []
