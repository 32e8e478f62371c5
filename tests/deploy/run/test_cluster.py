"""How many actors a cluster has room for, and which GPU is left for the learner."""

from __future__ import annotations

from typing import Any

import pytest

from common.config import ActorSection, RunConfig
from deploy.run.cluster import learner_gpus, own_gpus, room_for_actors


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
        # A model's parts are all on one node: of three and of one GPU none has room for a second actor.
        ([node(CPU=16, GPU=3), node(CPU=16, GPU=1)], {"num_cpus": 1, "num_gpus": 2, "tensor_parallel_size": 2}, 1),
        ([], {"num_cpus": 1, "num_gpus": 0}, 0),
    ],
)
def test_room_is_counted_node_by_node(nodes: list[dict[str, Any]], needs: dict[str, float], room: int) -> None:
    assert room_for_actors(nodes, ActorSection.model_validate({"count": "auto", **needs})) == room


def test_the_learner_has_the_last_gpus_where_actors_leave_so_many() -> None:
    assert learner_gpus(["0", "1", "2", "3"], 3) == ["3"]
    assert learner_gpus(["0", "1", "2", "3"], 2, 2) == ["2", "3"] and learner_gpus(["0", "1", "2", "3"], 3, 2) == []
    assert learner_gpus(["GPU-a", "GPU-b"], 0.5) == ["GPU-b"]
    assert learner_gpus(["0", "1"], 2) == [] and learner_gpus(["0"], 1) == [] and learner_gpus([], 0) == []


@pytest.mark.parametrize(
    ("count", "num_gpus", "num_processes", "own"),
    [
        ("auto", 1, 1, ["3"]),
        ("auto", 1, 3, ["1", "2", "3"]),
        # An actor needs one, so that the learner shares all of them with it.
        ("auto", 1, 4, []),
        ("auto", 0, 4, ["0", "1", "2", "3"]),
        ("auto", 2, 2, ["2", "3"]),
        (2, 1, 2, ["2", "3"]),
        (2, 1, 3, []),
    ],
)
def test_actors_that_follow_the_machine_leave_the_learner_its_gpus_and_keep_one(
    monkeypatch: pytest.MonkeyPatch, count: int | str, num_gpus: float, num_processes: int, own: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    config = RunConfig.model_validate(
        {
            "task": {"name": "rng"},
            "actor": {"count": count, "num_gpus": num_gpus},
            "learner": {"device": "cuda", "num_processes": num_processes},
        }
    )
    assert own_gpus(config) == own
