"""The learner's part of evaluation and diagnosis while it trains: which adapters are wanted, and the figures written
down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from redis.exceptions import ResponseError

from buffer.adapters import AdapterRegistry
from buffer.connection import is_out_of_memory
from buffer.evaluations import Evaluations, Wanted
from buffer.replay import ReplayBuffer
from common.config import RunConfig
from common.held_out import DIAGNOSIS_PREFIX, EVALUATION_PREFIX, Part
from common.json_text import dumps
from common.log import get_logger
from common.shown import as_rows, shortened
from common.stop_rule import StopCount
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
    """What a run with `evaluation.every` or `diagnose.every` has; nothing of it waits but `finish`."""

    def __init__(
        self, config: RunConfig, evaluations: Evaluations, registry: AdapterRegistry, sinks: Sequence[Sink]
    ) -> None:
        self._config = config
        every = {Part.EVALUATION: config.evaluation.every or 0, Part.DIAGNOSIS: config.diagnose.every}
        self._schedules = {part: Schedule(every[part]) for part in config.looks}
        self._at_the_end = config.looks
        if config.diagnose.final and config.run.evaluate_samples:
            # The diagnosis at the end of the run is the last adapter's: the same queries need not be sampled twice.
            self._at_the_end &= ~Part.DIAGNOSIS
        self._steps = config.learner.steps
        self._evaluations, self._registry, self._sinks = evaluations, registry, sinks
        self._path, self._longest_wait_s = config.run_folder / "metrics.jsonl", config.learner.max_wait_s
        rule = config.learner.stop_rule
        self._stop = None if rule is None else StopCount(rule)
        self._wanted: Wanted | None = None
        self._answered: dict[int, Part] = {}
        """By adapter version, what was made of what it was wanted for, or left out."""

    def due(self, step: int) -> Part:
        """What is to be made of the adapter that is published at this step."""
        due = _joined(part for part, schedule in self._schedules.items() if schedule.is_due(step))
        return due & self._at_the_end if step >= self._steps else due

    def go_on(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """A run that is resumed has these lines: what has none yet is looked at again. Its count for
        `learner.stop_when` goes on too, but for those of another reward."""
        for row in rows:
            if self._config.is_of_final_reward(row):
                self._count(row)
            for part in _parts_of(row) if "of" in row else Part(0):
                if part in self._schedules:
                    self._schedules[part].done(int(row["step"]))

    @property
    def stop_reason(self) -> str | None:
        """Why training is to end before its last step by `learner.stop_when`, in words."""
        return None if self._stop is None else self._stop.reason

    @property
    def stop_state(self) -> str | None:
        """How far `learner.stop_when` is from that, where it is set."""
        return None if self._stop is None else str(self._stop)

    def want(
        self, step: int, version: int, exact: Mapping[str, float], parts: Part = Part.EVALUATION, *, last: bool = False
    ) -> None:
        """Have the newest version looked at; one that waits for it still is left out instead."""
        for part in parts & _joined(self._schedules):
            self._schedules[part].done(step)
        wanted = Wanted(version, step, dict(exact), last, parts)
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
        """What has come of looks by step `now`, into metrics.jsonl and the trackers, by the step they are of."""
        while (row := self._evaluations.next_figures()) is not None:
            version = int(row["adapter_version"])
            self._answered = {version: self._answered.get(version, Part(0)) | _parts_of(row)}
            append(self._path, row)
            self._count(row)
            prefixes = (EVALUATION_PREFIX, DIAGNOSIS_PREFIX)
            figures = {name: float(value) for name, value in row.items() if name.startswith(prefixes)}
            # None of a version that was left out.
            for sink in self._sinks if figures else ():
                sink.write_evaluation(int(row["step"]), now, figures)

    def finish(
        self, step: int, version: int, exact: Callable[[], Mapping[str, float]], may_go_on: Callable[[], bool]
    ) -> None:
        """End the curve with the last adapter, for which the actors' time is free by now; waits for its figures.

        A run that was resumed at its end has this point already.
        """
        self.write_down(step)
        before = self._wanted if self._wanted is not None and self._wanted.step == step else None
        asked = Part(0) if before is None else before.parts
        more = _joined(part for part in self._at_the_end & ~asked if self._schedules[part].goes_on(step))
        expected = asked | more
        waits = self._evaluations.wanted() if asked else None
        if waits is not None and waits.version == version:
            # Asked for once more, so that nothing bounds it from now on.
            more |= asked & ~self._answered.get(version, Part(0))
        if more:
            self.want(step, version, exact() if before is None else before.exact, more, last=True)
        deadline = time.monotonic() + self._longest_wait_s
        while expected & ~self._answered.get(version, Part(0)) and may_go_on():
            if time.monotonic() > deadline:
                log.warning("the last adapter was not looked at within %g s", self._longest_wait_s)
                return
            time.sleep(_POLL_S)
            self.write_down(step)

    def _count(self, row: Mapping[str, Any]) -> None:
        if self._stop is not None:
            self._stop.take(row)


def _joined(parts: Iterable[Part]) -> Part:
    return reduce(or_, parts, Part(0))


def _parts_of(row: Mapping[str, Any]) -> Part:
    return _joined(Part[str(name).upper()] for name in row["of"])


def append(path: Path, row: Mapping[str, Any]) -> None:
    """One more line of metrics.jsonl."""
    with path.open("a", encoding="utf-8") as file:
        file.write(dumps(row) + "\n")
