"""Where Ray places actors: one placement group each, on nodes that join, and elsewhere when their node is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from actors.ray_actor import start_actor
from common.config import RunConfig
from deploy.run.cluster import room_for_actors

pytestmark = pytest.mark.integration
LIMIT_S = 120
CONFIG = RunConfig.model_validate({"task": {"name": "rng"}, "run": {"name": "placed"}, "actor": {"num_gpus": 0}})


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A real Ray cluster on this machine whose head has no room for actors."""
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def wait_for(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)


def nodes_of_groups() -> set[str]:
    """Where the placement groups are that have a node."""
    import ray

    table = ray.util.placement_group_table().values()
    return {node for entry in table if entry["state"] == "CREATED" for node in entry["bundles_to_node_id"].values()}


def test_actors_start_by_themselves_on_nodes_that_join_and_move_when_theirs_is_lost(cluster: Any) -> None:
    import ray

    assert room_for_actors(ray.nodes(), CONFIG.actor) == 0
    started = [start_actor(CONFIG, index, "redis://127.0.0.1:1/0", generation=0) for index in range(2)]
    ready = [handle.__ray_ready__.remote() for handle, _ in started]
    assert ray.wait(ready, num_returns=1, timeout=2)[0] == [], "there is no room yet, and nobody waited for it"
    first = cluster.add_node(num_cpus=1)
    assert len(ray.wait(ready, num_returns=1, timeout=LIMIT_S)[0]) == 1, "the first node takes one actor, not both"
    second = cluster.add_node(num_cpus=1)
    assert len(ray.wait(ready, num_returns=2, timeout=LIMIT_S)[0]) == 2
    assert nodes_of_groups() == {first.node_id, second.node_id}
    assert room_for_actors(ray.nodes(), CONFIG.actor) == 2

    cluster.remove_node(second, allow_graceful=False)
    wait_for(lambda: room_for_actors(ray.nodes(), CONFIG.actor) == 1, "the lost node to be noticed")
    third = cluster.add_node(num_cpus=1)
    wait_for(lambda: nodes_of_groups() == {first.node_id, third.node_id}, "the actor to be placed anew")
    alive = [handle.__ray_ready__.remote() for handle, _ in started]
    assert len(ray.wait(alive, num_returns=2, timeout=LIMIT_S)[0]) == 2

    for handle, group in started:
        ray.kill(handle)
        ray.util.remove_placement_group(group)
    wait_for(lambda: ray.available_resources().get("CPU", 0) == 2, "the room to be free again")
