"""The one file of the actors that touches Ray: an `Actor` placed, restarted and called by Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from common.config import RunConfig
from common.config_loading import as_data
from common.tasks import SampleRequest, Split

MAX_RESTARTS = 10
"""An actor may die at any instant; Ray starts it again, and it takes the newest adapter."""


class RayActor:
    """What Ray runs: the actor is made with the first call of `run`, so that a failing engine is reported by it."""

    def __init__(self, settings: dict[str, Any], index: int, redis_url: str, generation: int) -> None:
        """`settings` are plain values: what a task of the user's own is made of must be imported here first."""
        self._arguments = (settings, index, redis_url)
        self._generation = generation
        self._actor: Any = None

    def run(self) -> None:
        """Sample until the run stops."""
        if self._actor is None:
            import ray

            from actors.actor import Actor

            settings, index, redis_url = self._arguments
            config = RunConfig.model_validate(settings)
            _limit_threads(config)
            restarted = ray.get_runtime_context().was_current_actor_reconstructed
            # A restarted actor draws other samples than the dead one did.
            generation = os.getpid() if restarted else self._generation
            self._actor = Actor(config, index, redis_url, generation=generation)
        self._actor.run()

    def evaluate(
        self, requests: Sequence[SampleRequest], split: Split, most: int | None
    ) -> dict[str, dict[str, list[bytes]]]:
        """Samples for a task's evaluation; only after `run` has returned."""
        found: dict[str, dict[str, list[bytes]]] = self._actor.evaluate(requests, split, most)
        return found

    def close(self) -> None:
        """Delete temporary files, end processes."""
        if self._actor is not None:
            self._actor.close()


def start_actor(config: RunConfig, index: int, redis_url: str, generation: int) -> tuple[Any, Any]:
    """Ask Ray for an actor; its handle, and its placement group if it needs any resource.

    Nothing waits here. An actor starts by itself once a node has room for its group, and an autoscaler adds nodes for
    groups that wait; when its node is lost, Ray places group and actor anew. The group is one bundle, which never spans
    two nodes, so that a model spread over several GPUs has them all on one.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    section = config.actor
    needs = {name: value for name, value in (("CPU", section.num_cpus), ("GPU", section.num_gpus)) if value}
    options: dict[str, Any] = {"num_cpus": section.num_cpus, "num_gpus": section.num_gpus or 0}
    group = None
    if needs:
        group = ray.util.placement_group([needs], strategy="SPREAD", name=f"amortis-{config.run.name}-{index}")
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group)
    remote = ray.remote(max_restarts=MAX_RESTARTS, max_task_retries=-1, **options)(RayActor)
    return remote.remote(as_data(config), index, redis_url, generation), group


def _limit_threads(config: RunConfig) -> None:
    """An actor computes with as many threads as Ray reserved cores for it, all of its processes together."""
    import torch

    threads = max(1, int(config.actor.num_cpus) // config.actor.tensor_parallel_size)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
