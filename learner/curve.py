"""The learner's part of the evaluation while it trains: which adapters are wanted, and the figures written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from redis.exceptions import ResponseError

from buffer.adapters import AdapterRegistry
from buffer.connection import is_out_of_memory
from buffer.evaluations import Evaluations, Wanted
from buffer.replay import ReplayBuffer
from common.config import RunConfig
from common.evaluation import PREFIX
from common.json_text import dumps
from common.log import get_logger
from common.shown import as_rows, shortened
from common.tasks import TokenCodec
from learner.tracking import Sink

log = get_logger("learner")
TEXTS = 5
"""Trajectories of each kind."""
PROMPT_LETTERS = 200
_POLL_S = 0.1


class Schedule:
    """Every how many steps, by the steps at which adapters are published."""

    def __init__(self, every: int) -> None:
        self._every, self._last = every, -1

    def is_due(self, step: int) -> bool:
        """Whether a multiple of `every` has been reached since the last one; step 0 is one."""
        return self._every > 0 and step // self._every > self._last // self._every

    def goes_on(self, step: int) -> bool:
        """Whether there was a step since the last one."""
        return step > self._last

    def done(self, step: int) -> None:
        """This step's is on its way, or was before."""
        self._last = step


class SampleTexts:
    """Some of the buffer's newest and best trajectories as text, for trackers."""

    def __init__(self, config: RunConfig, buffer: ReplayBuffer, codec: TokenCodec, sinks: Sequence[Sink]) -> None:
        self._buffer, self._codec, self._sinks, self._weights = buffer, codec, sinks, config.reward_weights
        self._schedule = Schedule(config.evaluation.every or config.learner.checkpoint_every)
        self._schedule.done(0)

    def write(self, step: int) -> None:
        """Look into the buffer, if there is a tracker and it is time."""
        if not self._sinks or not self._schedule.is_due(step):
            return
        self._schedule.done(step)
        for order in ("newest", "best"):
            items = self._buffer.top(TEXTS, order)
            queries = self._buffer.queries(sorted({item.query_id for item in items})) if items else {}
            rows = as_rows(items, queries, self._codec, self._weights)
            for row in rows:
                row["prompt"] = shortened(row["prompt"], PROMPT_LETTERS)
            for sink in self._sinks:
                sink.write_samples(step, order, rows)


class Curve:
    """What a run with `evaluation.every` has; nothing of it waits but `finish`."""

    def __init__(
        self, config: RunConfig, evaluations: Evaluations, registry: AdapterRegistry, sinks: Sequence[Sink]
    ) -> None:
        self.schedule = Schedule(config.evaluation.every or 0)
        self._evaluations, self._registry, self._sinks = evaluations, registry, sinks
        self._path, self._longest_wait_s = config.run_folder / "metrics.jsonl", config.learner.max_wait_s
        self._wanted: Wanted | None = None
        self._answered = 0

    def want(self, step: int, version: int, exact: Mapping[str, float], *, last: bool = False) -> None:
        """Have the newest version evaluated; one that waits for it still is left out instead."""
        self.schedule.done(step)
        wanted = Wanted(version, step, dict(exact), last)
        try:
            # Before the next is published, so that it can't have expired.
            self._registry.pin(version)
            left_out = self._evaluations.want(wanted)
        except ResponseError as error:
            if not is_out_of_memory(error):
                raise
            log.warning("adapter version %d is not evaluated, as Redis has no memory left", version)
            return
        self._wanted = wanted
        if left_out is not None:
            log.info("adapter version %d is not evaluated: version %d is newer", left_out, version)
            self._registry.unpin(left_out)

    def write_down(self, now: int) -> None:
        """What has come of evaluations by step `now`, into metrics.jsonl and the trackers, by the step they are of."""
        while (row := self._evaluations.next_figures()) is not None:
            self._answered = max(self._answered, int(row["adapter_version"]))
            append(self._path, row)
            figures = {name: float(value) for name, value in row.items() if name.startswith(PREFIX)}
            # None of a version that was left out.
            for sink in self._sinks if figures else ():
                sink.write_evaluation(int(row["step"]), now, figures)

    def finish(
        self, step: int, version: int, exact: Callable[[], Mapping[str, float]], may_go_on: Callable[[], bool]
    ) -> None:
        """End the curve with the last adapter, for which the actors' time is free by now; waits for its figures."""
        self.write_down(step)
        if self._wanted is None and not self.schedule.goes_on(step):
            # A run that was resumed at its end has this point already.
            return
        if self._wanted is None or self._wanted.step != step:
            self.want(step, version, exact(), last=True)
        elif self._answered < version:
            self.want(step, version, self._wanted.exact, last=True)
        deadline = time.monotonic() + self._longest_wait_s
        while self._answered < version and may_go_on():
            if time.monotonic() > deadline:
                log.warning("the last adapter was not evaluated within %g s", self._longest_wait_s)
                return
            time.sleep(_POLL_S)
            self.write_down(step)


def append(path: Path, row: Mapping[str, Any]) -> None:
    """One more line of metrics.jsonl."""
    with path.open("a", encoding="utf-8") as file:
        file.write(dumps(row) + "\n")
