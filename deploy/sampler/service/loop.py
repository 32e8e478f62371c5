"""The one thread that has the engine: requests come to it from the event loop, and what is drawn goes back there.

All requests share one continuous batch. vLLM's engine is of one thread, so that nothing else ever touches it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from actors.drafting import Draft
from actors.engine import LoadedAdapter
from actors.sampler import TrajectorySampler
from common.errors import EngineFault
from common.log import get_logger
from common.metrics import ServiceMetrics
from common.trajectory import Query
from deploy.sampler.service.errors import ApiError, refused, try_later

log = get_logger("service")
STUCK_S = 120.0
"""A step of the engine that takes longer will hardly end."""


@dataclass(frozen=True)
class Draw:
    """Samples of one query."""

    query: Query
    n: int
    trained: bool = True
    """False: of the base model under the same mask."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_len: int | None = None
    seed: str | None = None
    score: bool = False
    """Whether its trajectory is wanted, and not the rationale alone."""
    follow: bool = False
    """Whether it is wanted as it grows."""


class Update(NamedTuple):
    """How far a sample is: the draft grows on in the engine's thread, so that no more of it may be read than this."""

    draw: int
    """Which of the job's."""
    draft: Draft
    inputs: int
    done: bool


@dataclass
class Job:
    """Samples that one client waits for."""

    draws: Sequence[Draw]
    left: int
    """Samples that are not done."""
    news: asyncio.Queue[Update | Exception] = field(default_factory=asyncio.Queue)
    deadline: asyncio.TimerHandle | None = None
    drafts: list[Draft] = field(default_factory=list)
    """Of the engine's thread."""

    async def updates(self) -> AsyncIterator[Update]:
        """Until all are done; raises what went wrong."""
        missing = sum(draw.n for draw in self.draws)
        while missing:
            found = await self.news.get()
            if isinstance(found, Exception):
                raise found
            missing -= found.done
            yield found


class EngineLoop:
    """Draws for all jobs at once. Its public methods are the event loop's to call."""

    def __init__(
        self,
        open_sampler: Callable[[], tuple[TrajectorySampler, LoadedAdapter]],
        metrics: ServiceMetrics,
        max_samples: int,
        timeout_s: float,
        on_ready: Callable[[], None],
        on_failure: Callable[[], None],
    ) -> None:
        """`on_ready` and `on_failure` are called in the event loop."""
        self._open, self._metrics = open_sampler, metrics
        self.max_samples, self._timeout_s = max_samples, timeout_s
        self._on_ready, self._on_failure = on_ready, on_failure
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="amortis-engine", daemon=True)
        self._jobs: dict[int, Job] = {}
        self._ready = self._stopping = False
        self._step_began = math.inf
        self._news: list[tuple[Job, Update]] = []
        self.failure: BaseException | None = None
        """What ended it."""
        metrics.max_samples.set(max_samples)

    def start(self) -> None:
        """Start the engine, in its thread."""
        self._event_loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, limit_s: float) -> None:
        """End the thread, whatever is in flight; one that is in the middle of a start is left to the process' end."""
        self._stopping = True
        self._commands.put(None)
        self._thread.join(limit_s)

    @property
    def trouble(self) -> str | None:
        """Why nothing can be drawn now; None if it can."""
        if self.failure is not None:
            # How is the last line of the service's log, and no client's business.
            return "the sampler failed, and the service's log says how; it ends, and whoever watches it starts it again"
        if self._stopping:
            return "the service is stopping; ask again when it is back"
        if not self._ready:
            return "the engine is starting; ask again in a moment"
        if time.monotonic() - self._step_began > STUCK_S:
            return f"the engine has been at one step for more than {STUCK_S:g} s; start the service again"
        return None

    def submit(self, draws: Sequence[Draw]) -> Job:
        """Have samples drawn. Raises ApiError where that can't be, or not now."""
        wanted = sum(draw.n for draw in draws)
        if wanted > self.max_samples:
            problem = f"makes {wanted} samples, more than the service takes at a time"
            raise refused("n", wanted, problem, f"ask for {self.max_samples} or fewer (--max-samples)")
        if self.trouble is not None:
            raise try_later(self.trouble)
        waiting = sum(job.left for job in self._jobs.values())
        if waiting + wanted > self.max_samples:
            message = f"{waiting} samples are in flight, of {self.max_samples} (--max-samples); ask again later"
            raise try_later(message, status=429)
        job = Job(draws, wanted)
        late = ApiError(
            504,
            f"the samples took more than {self._timeout_s:g} s (--timeout); ask for fewer at a time",
            # To ask for the same again would only add to what there is to do.
            headers={"x-should-retry": "false"},
        )
        job.deadline = self._event_loop.call_later(self._timeout_s, job.news.put_nowait, late)
        self._jobs[id(job)] = job
        self._metrics.samples.inc(wanted)
        self._commands.put(lambda: self._begin(job))
        return job

    def close(self, job: Job) -> None:
        """Nobody waits for this any more; what is not done of it is taken out of the batch."""
        if self._jobs.pop(id(job), None) is None:
            return
        if job.deadline is not None:
            job.deadline.cancel()
        if job.left:
            self._metrics.abandoned.inc(job.left)
            self._metrics.samples.dec(job.left)
            self._commands.put(lambda: self._abort(job))

    def _deliver(self, news: Sequence[tuple[Job, Update | Exception]]) -> None:
        for job, found in news:
            if id(job) not in self._jobs:
                continue
            if isinstance(found, Update) and found.done:
                job.left -= 1
                self._metrics.samples.dec()
            job.news.put_nowait(found)

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        try:
            self._sampler, self._adapter = self._open()
            with contextlib.closing(self._sampler):
                self._call(self._become_ready)
                while self._obey():
                    self._step_began = time.monotonic()
                    self._sampler.step()
                    self._step_began = math.inf
                    self._send_news()
        # Whatever it is: whoever waits must hear of it, and the process end with it.
        except BaseException as error:
            self._call(partial(self._fail, error))

    def _obey(self) -> bool:
        """Do what was asked meanwhile, and wait where there is nothing to draw; False: stop."""
        while True:
            try:
                command = self._commands.get(block=not self._sampler.in_flight)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()

    def _begin(self, job: Job) -> None:
        try:
            for i, draw in enumerate(job.draws):
                job.drafts += self._sampler.submit(
                    draw.query,
                    draw.n,
                    draw.temperature,
                    self._adapter if draw.trained else None,
                    "policy" if draw.temperature == 1.0 else "tempered",
                    every_state=False,
                    top_p=draw.top_p,
                    max_len=draw.max_len,
                    seed=draw.seed,
                    score=draw.score,
                    follow=draw.follow,
                    tell=partial(self._note, job, i),
                )
        except EngineFault:
            raise
        # A request that vLLM refuses is that client's alone.
        except Exception as error:
            log.exception("a request was refused by the engine")
            failed = ApiError(500, f"the engine refused the request: {error}")
            self._abort(job)
            self._call(lambda: self._deliver([(job, failed)]))

    def _abort(self, job: Job) -> None:
        self._sampler.abort([draft for draft in job.drafts if not draft.done])

    def _note(self, job: Job, draw: int, draft: Draft) -> None:
        self._news.append((job, Update(draw, draft, len(draft.inputs), draft.done)))

    def _send_news(self) -> None:
        if self._news:
            news, self._news = self._news, []
            self._call(lambda: self._deliver(news))

    def _call(self, function: Callable[[], None]) -> None:
        try:
            self._event_loop.call_soon_threadsafe(function)
        except RuntimeError:
            # The event loop is closed: nobody is there to hear of it.
            log.info("the service is over")

    def _become_ready(self) -> None:
        self._ready = True
        self._on_ready()

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self._deliver([(job, try_later(str(self.trouble))) for job in self._jobs.values()])
        self._on_failure()
