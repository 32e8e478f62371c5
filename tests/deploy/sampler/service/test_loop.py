"""The thread that has the engine: what clients hear where the engine is slow, full, refuses, fails or is stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import numpy as np
import pytest

from actors.drafting import Draft, Listener, Origin
from common.errors import EngineFault, UserError
from common.metrics import ServiceMetrics, new_registry
from common.trajectory import Query
from deploy.sampler.service.errors import ApiError
from deploy.sampler.service.loop import Draw, EngineLoop, Update

QUERY = Query(task="fixed", prompt_ids=np.asarray([1, 2], np.int32))


class StandIn:
    """A sampler whose samples are of one token each and done at the step that `go` allows."""

    def __init__(self, fault: Exception | None = None, refuses: Exception | None = None) -> None:
        self.go = threading.Event()
        self.go.set()
        self.fault, self.refuses = fault, refuses
        self.waiting: list[Draft] = []
        self.aborted = 0
        self.closed = False
        self.queries: list[Query] = []

    @property
    def in_flight(self) -> int:
        return len(self.waiting)

    def submit(self, query: Query, n: int, *_: Any, tell: Listener, **__: Any) -> list[Draft]:
        if self.refuses is not None:
            raise self.refuses
        drafts = [Draft(Origin(query, None, 1.0, "policy", tell=tell), number) for number in range(n)]
        self.waiting += drafts
        self.queries.append(query)
        return drafts

    def abort(self, drafts: Collection[Draft]) -> None:
        self.aborted += len(drafts)
        self.waiting = [draft for draft in self.waiting if draft not in drafts]

    def close(self) -> None:
        self.closed = True

    def step(self) -> None:
        if not self.go.wait(0.01):
            return
        if self.fault is not None:
            raise self.fault
        for draft in self.waiting:
            draft.act(7, -0.5)
            draft.finish()
        self.waiting = []


def played(
    sampler: StandIn, play: Callable[[EngineLoop], Awaitable[None]], *, timeout_s: float = 60.0, start: Any = None
) -> EngineLoop:
    """The loop after a scene was played with it."""
    opened: Callable[[], Any] = start or (lambda: (sampler, None))
    loop = EngineLoop(
        opened, ServiceMetrics(new_registry()), 8, timeout_s, on_ready=lambda: None, on_failure=lambda: None
    )

    async def scene() -> None:
        loop.start()
        while loop.trouble is not None and loop.failure is None:
            await asyncio.sleep(0.001)
        try:
            async with asyncio.timeout(20):
                await play(loop)
        finally:
            sampler.go.set()
            await asyncio.to_thread(loop.stop, 10)

    asyncio.run(scene())
    return loop


async def answer(loop: EngineLoop, n: int) -> list[Update]:
    job = loop.submit([Draw(QUERY, n)])
    try:
        return [update async for update in job.updates() if update.done]
    finally:
        loop.close(job)


async def error_of(loop: EngineLoop, n: int) -> ApiError:
    with pytest.raises(ApiError) as found:
        await answer(loop, n)
    return found.value


def test_clients_at_once_share_the_batch_and_each_gets_its_own() -> None:
    sampler = StandIn()
    sampler.go.clear()

    async def play(loop: EngineLoop) -> None:
        answers = [asyncio.ensure_future(answer(loop, n)) for n in (1, 2, 3)]
        while sampler.in_flight < 6:
            await asyncio.sleep(0.001)
        sampler.go.set()
        assert [sorted(update.draft.number for update in await each) for each in answers] == [[0], [0, 1], [0, 1, 2]]

    played(sampler, play)


def test_what_is_beyond_the_bound_is_refused_at_once_and_taken_when_there_is_room() -> None:
    sampler = StandIn()
    sampler.go.clear()

    async def play(loop: EngineLoop) -> None:
        first = asyncio.ensure_future(answer(loop, 6))
        await asyncio.sleep(0)
        refused = await error_of(loop, 3)
        assert refused.status == 429 and refused.headers["Retry-After"]
        assert "6 samples are in flight, of 8" in str(refused)
        assert (await error_of(loop, 9)).status == 400
        sampler.go.set()
        assert len(await first) == 6 and len(await answer(loop, 8)) == 8

    played(sampler, play)


def test_a_client_that_leaves_takes_its_samples_with_it() -> None:
    sampler = StandIn()
    sampler.go.clear()

    async def play(loop: EngineLoop) -> None:
        leaving, staying = (asyncio.ensure_future(answer(loop, n)) for n in (5, 3))
        while sampler.in_flight < 8:
            await asyncio.sleep(0.001)
        leaving.cancel()
        while sampler.in_flight > 3:
            await asyncio.sleep(0.001)
        sampler.go.set()
        assert len(await staying) == 3 and sampler.aborted == 5

    played(sampler, play)


def test_a_request_that_takes_too_long_is_given_up() -> None:
    sampler = StandIn()
    sampler.go.clear()

    async def play(loop: EngineLoop) -> None:
        late = await error_of(loop, 2)
        assert late.status == 504 and "more than 0.05 s (--timeout)" in str(late)
        # Clients of OpenAI's would ask for the same again.
        assert late.headers["x-should-retry"] == "false"
        while sampler.in_flight:
            await asyncio.sleep(0.001)

    played(sampler, play, timeout_s=0.05)


def test_an_engine_that_fails_tells_all_who_wait_and_whoever_comes() -> None:
    sampler = StandIn(fault=EngineFault("vLLM failed in a step: no more memory"))
    sampler.go.clear()

    async def play(loop: EngineLoop) -> None:
        answers = [asyncio.ensure_future(error_of(loop, n)) for n in (1, 2)]
        await asyncio.sleep(0.01)
        sampler.go.set()
        for error in [*[await each for each in answers], await error_of(loop, 1)]:
            assert error.status == 503 and "the sampler failed" in str(error) and "no more memory" not in str(error)

    loop = played(sampler, play)
    assert loop.failure is sampler.fault


def test_a_request_that_the_engine_refuses_is_that_client_s_alone() -> None:
    sampler = StandIn(refuses=ValueError("no such prompt"))

    async def play(loop: EngineLoop) -> None:
        error = await error_of(loop, 2)
        assert error.status == 500 and "no such prompt" in str(error)
        sampler.refuses = None
        assert len(await answer(loop, 8)) == 8

    assert played(sampler, play).failure is None


def test_an_engine_that_cannot_start_says_so() -> None:
    problem = UserError("model.name", "x", "can't be served", "give another")

    def start() -> Any:
        raise problem

    async def play(loop: EngineLoop) -> None:
        assert (await error_of(loop, 1)).status == 503

    assert played(StandIn(), play, start=start).failure is problem


def test_a_step_that_never_ends_is_no_health(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = StandIn()
    monkeypatch.setattr("deploy.sampler.service.loop.STUCK_S", 0.02)

    def hang() -> None:
        threading.Event().wait(0.3)
        sampler.waiting = []

    monkeypatch.setattr(sampler, "step", hang)

    async def play(loop: EngineLoop) -> None:
        job = loop.submit([Draw(QUERY, 1)])
        await asyncio.sleep(0.15)
        assert loop.trouble is not None and "at one step for more than" in loop.trouble
        loop.close(job)

    played(sampler, play)


def test_a_service_that_stops_takes_no_more() -> None:
    async def play(loop: EngineLoop) -> None:
        await asyncio.to_thread(loop.stop, 5)
        assert "is stopping" in str(await error_of(loop, 1))

    sampler = StandIn()
    played(sampler, play)
    assert sampler.closed, "processes of the run's own reward would be left behind"
