"""The Ray cluster that a run's actors are in, what it has room for, and which of a machine's GPUs are the learner's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from common.config import ActorSection, RunConfig
from common.devices import available_cores
from common.errors import UserError, last_line
from common.log import get_logger
from deploy.run.local_ray import start_local_ray

log = get_logger("actors")


@contextmanager
def joined(config: RunConfig) -> Iterator[None]:
    """This process in the cluster of ray.address, or in one of this machine that ends with it. Raises UserError."""
    import ray

    # Ray lowers its workers' priority: on few cores the learner would then starve the actors.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    section, address = config.actor, config.ray.address
    try:
        if address is None:
            start_local_ray(**_resources(config))
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        if address is None:
            remedy = "look at /tmp/ray/session_latest/logs, run `amortis doctor`, or set ray.address"
            raise UserError("ray", None, f"could not be started ({last_line(error)})", remedy) from error
        raise UserError(
            "ray.address",
            address,
            f"no Ray cluster can be joined there ({last_line(error)})",
            "start Ray on this machine first, look at RAY_AUTH_TOKEN, or leave ray.address out",
        ) from error
    try:
        if address is not None and not room_for_actors(ray.nodes(), section):
            needs = f"{section.num_cpus:g} cores and {section.num_gpus or 0:g} GPUs"
            log.warning("no node of the cluster has the %s that an actor needs; waiting for one that joins", needs)
        yield
    finally:
        ray.shutdown()


def _resources(config: RunConfig) -> dict[str, Any]:
    """What Ray is to count on this machine."""
    section = config.actor
    # Cores are shared with the learner: what Ray counts is not what the machine has.
    needed = int(section.least_count * section.num_cpus + 0.999)
    found: dict[str, Any] = {"num_cpus": max(available_cores(), needed), "include_dashboard": False}
    learners = own_gpus(config)
    if learners:
        import torch

        # All but the last.
        found["num_gpus"] = torch.cuda.device_count() - len(learners)
    return found


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
