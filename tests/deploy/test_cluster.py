"""How many actors a cluster has room for, and which GPU is left for the learner."""

from __future__ import annotations

from typing import Any

import pytest

from common.config import ActorSection
from deploy.cluster import learner_gpu, room_for_actors


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "needs", "room"),
    [
        ([node(CPU=16, GPU=4), node(CPU=16, GPU=2)], {"num_cpus": 1, "num_gpus": 1}, 6),
        # A node's cores may end before its GPUs do.
        ([node(CPU=3, GPU=4)], {"num_cpus": 1, "num_gpus": 1}, 3),
        ([node(CPU=8, GPU=1)], {"num_cpus": 1, "num_gpus": 0.5}, 2),
        ([node(CPU=3), node(CPU=3)], {"num_cpus": 2, "num_gpus": 0}, 2),
        ([node(CPU=4), node(False, CPU=64)], {"num_cpus": 2, "num_gpus": 0}, 2),
        ([node(CPU=0), node(memory=1.0)], {"num_cpus": 1, "num_gpus": 0}, 0),
        # Thirds of a GPU: three fit, whatever the rounding of floats says.
        ([node(CPU=8, GPU=0.3)], {"num_cpus": 0, "num_gpus": 0.1}, 3),
        ([], {"num_cpus": 1, "num_gpus": 0}, 0),
    ],
)
def test_room_is_counted_node_by_node(nodes: list[dict[str, Any]], needs: dict[str, float], room: int) -> None:
    assert room_for_actors(nodes, ActorSection.model_validate({"count": "auto", **needs})) == room


def test_the_learner_has_the_last_gpu_where_actors_leave_one() -> None:
    assert learner_gpu(["0", "1", "2", "3"], 3) == "3"
    assert learner_gpu(["GPU-a", "GPU-b"], 0.5) == "GPU-b"
    assert learner_gpu(["0", "1"], 2) is None and learner_gpu(["0"], 1) is None and learner_gpu([], 0) is None
