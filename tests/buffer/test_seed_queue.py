"""Seeds that wait for an actor: none is lost with one that dies, and the learner knows when all are done."""

from __future__ import annotations

from redis import Redis

from buffer.connection import Keys
from buffer.seed_queue import SeedQueue
from common.seeds import SeedJob

JOBS = [SeedJob("00000000000000aa", action_ids=(token,)) for token in range(3)]


def test_all_are_done_when_each_was_pushed_or_set_aside_and_not_while_an_actor_has_one(
    redis_client: Redis, keys: Keys
) -> None:
    queue = SeedQueue(redis_client, keys)
    assert not queue.all_done, "nothing says that none will come"
    queue.put(JOBS)
    assert queue.take("actor-0", 2) == JOBS[:2] and queue.take("actor-1", 2) == JOBS[2:]
    assert not queue.all_done, "both actors have theirs still"
    queue.done("actor-1", 1)
    # One that died takes the same again.
    assert queue.take("actor-0", 2) == JOBS[:2] and not queue.all_done
    queue.done("actor-0", 2)
    assert queue.all_done and queue.take("actor-0", 2) == []
