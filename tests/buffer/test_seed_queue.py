"""Seeds that wait for an actor: none is lost with one that dies, and the learner knows when all are done."""

from __future__ import annotations

from redis import Redis

from buffer.connection import Keys, forget
from buffer.control import Control
from buffer.seed_queue import SeedQueue
from common.seeds import SeedJob
from tests.buffer.lost_answers import sent_again

JOBS = [SeedJob("00000000000000aa", action_ids=(token,)) for token in range(3)]


def test_all_are_done_when_each_was_pushed_or_set_aside_and_not_while_an_actor_has_one(
    redis_client: Redis, keys: Keys
) -> None:
    queue = SeedQueue(redis_client, keys)
    assert not queue.all_done, "nothing says that none will come"
    queue.put(JOBS)
    assert queue.take("actor-0", 2) == JOBS[:2] and queue.take("actor-1", 2) == JOBS[2:]
    assert not queue.all_done, "both actors have theirs still"
    queue.done("actor-1", JOBS[2:])
    # One that died takes the same again.
    assert queue.take("actor-0", 2) == JOBS[:2] and not queue.all_done
    queue.done("actor-0", JOBS[:2])
    assert queue.all_done and queue.take("actor-0", 2) == []


def test_a_command_whose_answer_was_lost_counts_once(redis_client: Redis, keys: Keys) -> None:
    queue = SeedQueue(redis_client, keys)
    queue.put(JOBS)
    for name in ("_take", "_done", "_give_back"):
        sent_again(queue, name)
    assert queue.take("actor-0", 2) == JOBS[:2] and redis_client.llen(keys.seeds) == 1
    queue.done("actor-0", JOBS[:2])
    assert not queue.all_done and queue.take("actor-1", 2) == JOBS[2:]
    queue.give_back("actor-1")
    assert queue.take("actor-0", 2) == JOBS[2:]
    queue.done("actor-0", JOBS[2:])
    assert queue.all_done


def test_what_an_actor_that_is_gone_had_taken_comes_first_for_the_others(redis_client: Redis, keys: Keys) -> None:
    queue = SeedQueue(redis_client, keys)
    queue.put(JOBS)
    assert queue.take("actor-0", 1) == JOBS[:1] and queue.take("actor-1", 1) == JOBS[1:2]
    Control(redis_client, keys).forget_actor("actor-0")
    # One that was taken for gone and still works counts for nothing.
    queue.done("actor-0", JOBS[:1])
    assert queue.take("actor-1", 3) == [JOBS[1], JOBS[0], JOBS[2]]
    queue.done("actor-1", JOBS)
    assert queue.all_done


def test_a_resumed_run_s_actors_find_what_all_of_the_earlier_part_had_taken(redis_client: Redis, keys: Keys) -> None:
    queue = SeedQueue(redis_client, keys)
    queue.put(JOBS)
    for index in range(3):
        queue.take(f"actor-{index}", 1)
    SeedQueue(redis_client, Keys("another")).put(JOBS[:1])
    assert SeedQueue(redis_client, Keys("another")).take("actor-7", 1) == JOBS[:1]
    Control(redis_client, keys).reset()
    assert not queue.all_done and sorted(queue.take("actor-0", 9), key=JOBS.index) == JOBS
    assert redis_client.llen(Keys("another").seeds_of("actor-7")) == 1


def test_seeds_are_taken_done_and_given_back_where_redis_has_no_memory_left(redis_client: Redis, keys: Keys) -> None:
    queue = SeedQueue(redis_client, keys)
    assert queue.take("actor-0", 1) == []
    queue.put(JOBS)
    redis_client.config_set("maxmemory", 1)
    try:
        assert queue.take("actor-0", 2) == JOBS[:2]
        queue.give_back("actor-0")
        assert queue.take("actor-1", 3) == JOBS
        queue.done("actor-1", JOBS)
    finally:
        redis_client.config_set("maxmemory", 0)
    assert queue.all_done


def test_a_queue_was_filled_once_there_were_jobs_and_stays_so(redis_client: Redis, keys: Keys) -> None:
    queue = SeedQueue(redis_client, keys)
    assert not queue.was_filled
    queue.put(JOBS)
    queue.done("actor-0", queue.take("actor-0", 3))
    assert queue.was_filled and queue.all_done
    forget(redis_client, keys)
    assert not queue.was_filled
