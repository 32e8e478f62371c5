"""Which actors the pool lets go, and which it waits for."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis

from buffer.connection import Keys
from buffer.control import ALIVE_S, STARTING, Control
from buffer.seed_queue import SeedQueue
from common.config import RunConfig
from common.errors import EngineDisturbed, EngineFault, RunFault, UserError
from common.seeds import SeedJob
from deploy.run.actor_pool import DISTURBANCES, RETRIES, SILENT_LIMIT_S, ActorPool, EvaluationStopped, _Member

CONFIG = RunConfig.model_validate(
    {"task": {"name": "rng"}, "run": {"name": "test"}, "actor": {"count": 3}, "ray": {"address": "auto"}}
)


def pool_of_three(control: Control) -> ActorPool:
    pool = ActorPool(CONFIG, "redis://unused", control)
    pool._members = [_Member(index, handle=None, group=None, loop=None, started_at=time.time()) for index in range(3)]
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


def test_an_actor_that_retires_leaves_the_seeds_it_has_not_finished_to_the_others(
    redis_client: Redis, keys: Keys
) -> None:
    queue, jobs = SeedQueue(redis_client, keys), [SeedJob("00000000000000aa", action_ids=(3,))]
    queue.put(jobs)
    assert queue.take("actor-2", 1) == jobs and queue.take("actor-0", 1) == []
    pool = pool_of_three(Control(redis_client, keys))
    pool._ray = SimpleNamespace(kill=lambda handle: None)
    for member in pool._members:
        member.done, member.retiring = True, member.index == 2
    assert pool.look_after({}) is None and [member.index for member in pool._members] == [0, 1]
    assert queue.take("actor-0", 1) == jobs


def test_what_a_silent_actor_had_taken_goes_to_the_others_once_and_not_what_a_starting_one_has(
    redis_client: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, queue = Control(redis_client, keys), SeedQueue(redis_client, keys)
    jobs = [SeedJob("00000000000000aa", action_ids=(token,)) for token in range(3)]
    queue.put(jobs)
    for index, phase in enumerate(("scoring seeds", "scoring seeds", f"{STARTING}, compiling")):
        control.heartbeat(f"actor-{index}", {"phase": phase})
        assert queue.take(f"actor-{index}", 1) == [jobs[index]]
    pool = pool_of_three(control)
    for member in pool._members:
        member.done = True
    assert pool.look_after(control.actors()) is None and queue.take("another", 3) == []
    later = time.time() + ALIVE_S + 1
    monkeypatch.setattr("time.time", lambda: later)
    control.heartbeat("actor-0", {"phase": "scoring seeds"})
    assert pool.look_after(control.actors()) is None and queue.take("another", 3) == [jobs[1]]
    # It was slow, and not dead: what it says of them now counts for nothing, and the other's word does.
    queue.done("actor-1", [jobs[1]])
    assert pool.look_after(control.actors()) is None and queue.take("a third", 3) == []
    for actor, job in (("actor-0", jobs[0]), ("actor-2", jobs[2]), ("another", jobs[1])):
        assert not queue.all_done
        queue.done(actor, [job])
    assert queue.all_done


class _Loops:
    """Ray's `wait` on loops that have returned where this says so; what is asked of it is counted."""

    def __init__(self) -> None:
        self.returned: list[Any] = []
        self.asked = 0

    def wait(self, loops: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        self.asked += 1
        return [loop for loop in loops if loop in self.returned], []


@pytest.fixture
def starting(redis_client: Redis, keys: Keys) -> tuple[ActorPool, _Loops]:
    """A pool of three actors of which nothing has been heard."""
    control = Control(redis_client, keys)
    pool = pool_of_three(control)
    for member in pool._members:
        member.loop = member.id
    loops = _Loops()
    pool._ray = loops
    return pool, loops


def test_an_evaluation_waits_for_an_actor_that_still_starts(starting: tuple[ActorPool, _Loops]) -> None:
    pool, loops = starting

    def start() -> None:
        while loops.asked < 3:
            time.sleep(0.01)
        loops.returned.append("actor-1")

    thread = threading.Thread(target=start)
    thread.start()
    pool._wait_for_loops(30.0, for_one=True)
    thread.join()
    assert [member.done for member in pool._members] == [False, True, False] and loops.asked >= 3


def test_an_evaluation_waits_for_an_actor_that_is_silent_while_its_engine_starts(
    starting: tuple[ActorPool, _Loops], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, loops = starting
    pool._members = pool._members[:1]
    pool._control.heartbeat("actor-0", {"phase": STARTING})
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 10 * ALIVE_S)
    with pytest.raises(EvaluationStopped):
        pool._wait_for_loops(30.0, for_one=True, should_stop=lambda: loops.asked >= 3)


def test_an_evaluation_stops_when_it_is_asked_to(starting: tuple[ActorPool, _Loops]) -> None:
    pool, loops = starting
    with pytest.raises(EvaluationStopped):
        pool.evaluate([], should_stop=lambda: loops.asked >= 2)
    assert loops.asked == 2


def test_the_end_of_a_run_waits_for_no_actor_that_was_never_heard(starting: tuple[ActorPool, _Loops]) -> None:
    pool, loops = starting
    pool._wait_for_loops(30.0)
    assert loops.asked == 1 and not any(member.done for member in pool._members)


DISTURBED = EngineDisturbed("actor.gpu_memory_utilization", 0.9, "memory came and went", "try again")


class _FailedLoops:
    """Ray where every actor's loop ends with an error, the next of these."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.killed: list[Any] = []

    def wait(self, loops: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return list(loops), []

    def get(self, loop: Any) -> None:
        raise self.errors.pop(0)

    def kill(self, handle: Any) -> None:
        self.killed.append(handle)


def failing_pool(redis_client: Redis, keys: Keys, *errors: Exception) -> tuple[ActorPool, list[str]]:
    """A pool of one actor, and the handles of those that were started."""
    pool = ActorPool(CONFIG, "redis://unused", Control(redis_client, keys))
    started: list[str] = []

    def start(index: int) -> _Member:
        started.append(f"process {len(started)}")
        return _Member(index, handle=started[-1], group=None, loop=started[-1], started_at=time.time())

    pool._start = start  # type: ignore[method-assign]
    pool._ray = _FailedLoops(*errors)
    pool._members = [start(0)]
    return pool, started


def test_a_process_whose_loop_failed_is_never_used_again_and_the_first_cause_is_named(
    redis_client: Redis, keys: Keys
) -> None:
    errors = [EngineFault("Too many allowed token IDs: 47116"), KeyError("sample-7"), KeyError("sample-8")]
    pool, started = failing_pool(redis_client, keys, *errors)
    assert pool.look_after({}) is None and pool.look_after({}) is None
    problem = pool.look_after({})
    assert problem is not None and "first: Too many allowed token IDs: 47116; last: 'sample-8'" in problem
    assert started == ["process 0", "process 1", "process 2"]
    assert pool._ray.killed == ["process 0", "process 1"]


def test_an_engine_whose_start_was_disturbed_is_started_again_without_a_failure(
    redis_client: Redis, keys: Keys
) -> None:
    pool, started = failing_pool(redis_client, keys, *[DISTURBED] * DISTURBANCES)
    for _ in range(DISTURBANCES):
        assert pool.look_after({}) is None
    assert len(started) == DISTURBANCES + 1 and pool._members[0].failures == 0


def test_an_engine_that_is_always_disturbed_ends_the_run(redis_client: Redis, keys: Keys) -> None:
    n = DISTURBANCES + RETRIES
    pool, _ = failing_pool(redis_client, keys, *[DISTURBED] * n)
    assert [pool.look_after({}) for _ in range(n - 1)] == [None] * (n - 1)
    assert "first: actor.gpu_memory_utilization = 0.9" in (pool.look_after({}) or "")


def test_a_wrong_setting_and_a_fault_of_the_run_end_it_at_once(redis_client: Redis, keys: Keys) -> None:
    for error in (UserError("model.name", "x", "is no model", "give one"), RunFault("an adapter changes nothing")):
        pool, started = failing_pool(redis_client, keys, error)
        assert pool.look_after({}) == str(error) and len(started) == 1


class _Call:
    """A call of an actor's method in Ray, and what comes of it."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def remote(self, *_: Any) -> _Call:
        return self


class _Evaluating:
    """Ray where loops have returned, and evaluations come out as they are told to."""

    class exceptions:
        RayError = RuntimeError

    def wait(self, calls: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return [call for call in calls if call.outcome != "silent"], []

    def get(self, call: _Call) -> Any:
        if isinstance(call.outcome, Exception):
            raise call.outcome
        return call.outcome

    def kill(self, handle: Any) -> None:
        pass


@pytest.mark.parametrize("fresh", [{"trained": {}}, RuntimeError("vLLM failed again")])
def test_an_evaluation_that_failed_is_taken_over_by_one_fresh_actor(
    redis_client: Redis, keys: Keys, fresh: Any
) -> None:
    pool = ActorPool(CONFIG, "redis://unused", Control(redis_client, keys))
    outcomes = [RuntimeError("vLLM failed in a step"), fresh, {"never": {}}]

    def start(index: int) -> _Member:
        handle = SimpleNamespace(evaluate=_Call(outcomes.pop(0)))
        return _Member(index, handle=handle, group=None, loop=_Call(None), started_at=time.time())

    pool._start = start  # type: ignore[method-assign]
    pool._ray = _Evaluating()
    pool._members = [start(0)]
    if isinstance(fresh, dict):
        assert pool.evaluate([]) == fresh
    else:
        with pytest.raises(RunFault, match="vLLM failed again"):
            pool.evaluate([])
    assert outcomes == [{"never": {}}]


def test_an_actor_that_is_silent_is_waited_for_and_then_a_fresh_one_evaluates(
    redis_client: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, found = Control(redis_client, keys), {"trained": {}}
    loops = [_Call("silent"), _Call(None)]

    def start(index: int) -> _Member:
        handle = SimpleNamespace(evaluate=_Call(found))
        return _Member(index, handle=handle, group=None, loop=loops.pop(0), started_at=time.time() - 2 * ALIVE_S)

    pool = ActorPool(CONFIG, "redis://unused", control)
    pool._start, pool._ray = start, _Evaluating()  # type: ignore[method-assign]
    pool._members = [start(0)]
    now, slept = time.time(), list[float]()
    monkeypatch.setattr(time, "time", lambda: now - 1.5 * ALIVE_S)
    control.heartbeat("actor-0", {"phase": "sampling"})
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    monkeypatch.setattr(time, "sleep", slept.append)
    assert pool.evaluate([]) == found and not loops
    assert sum(slept) == pytest.approx(SILENT_LIMIT_S, abs=0.2), "it had time to be heard of again"
