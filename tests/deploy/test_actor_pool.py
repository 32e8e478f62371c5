"""Which actors the pool lets go."""

from __future__ import annotations

from redis import Redis

from buffer.connection import Keys
from buffer.control import Control
from common.config import RunConfig
from deploy.actor_pool import ActorPool, _Member

CONFIG = RunConfig.model_validate(
    {"task": {"name": "rng"}, "run": {"name": "test"}, "actor": {"count": 3}, "ray": {"address": "auto"}}
)


def pool_of_three(control: Control) -> ActorPool:
    pool = ActorPool(CONFIG, "redis://unused", control)
    pool._members = [_Member(index, handle=None, group=None, loop=None) for index in range(3)]
    return pool


def retiring(pool: ActorPool) -> list[str]:
    return [member.id for member in pool._members if member.retiring]


def test_of_actors_that_are_too_many_the_latest_retires(redis_client: Redis, keys: Keys) -> None:
    control = Control(redis_client, keys)
    for index in range(3):
        control.heartbeat(f"actor-{index}", {"phase": "sampling"})
    pool = pool_of_three(control)
    pool.follow(2)
    assert retiring(pool) == ["actor-2"]


def test_an_actor_whose_node_is_lost_retires_before_those_that_work(redis_client: Redis, keys: Keys) -> None:
    control = Control(redis_client, keys)
    for index in (0, 2):
        control.heartbeat(f"actor-{index}", {"phase": "sampling"})
    pool = pool_of_three(control)
    pool.follow(2)
    assert retiring(pool) == ["actor-1"]
