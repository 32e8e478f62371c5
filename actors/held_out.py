"""An actor's part of evaluation and diagnosis while a run trains: samples of held-out queries among its others.

They are in the same continuous batch, or take turns with it where adapters are merged, within a share of the actor's
time, and never reach the replay buffer.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from functools import partial

from redis.exceptions import RedisError, ResponseError

from actors.adapters import AdapterFollower
from actors.drafting import Draft
from actors.engine import LoadedAdapter
from actors.sampler import TrajectorySampler
from actors.time_share import TimeShare
from buffer.connection import is_out_of_memory
from buffer.evaluations import Drawn, Evaluations, Wanted
from common.config import RunConfig
from common.errors import EngineFault
from common.evaluation import requests_of
from common.held_out import Part, Planned, plan
from common.log import get_logger
from common.terminal import visible
from common.trajectory import NO_SHA256, Query, Trajectory

log = get_logger("actor")


class HeldOutSampler:
    """Takes what is to be looked at, one version at a time, if no other actor has it."""

    def __init__(
        self, config: RunConfig, evaluations: Evaluations, adapters: AdapterFollower, sampler: TrajectorySampler
    ) -> None:
        self._section, self._max_in_flight = config.evaluation, config.actor.max_in_flight
        self._evaluations, self._adapters, self._sampler = evaluations, adapters, sampler
        self._requests = requests_of(config, sampler.task)
        # A restarted actor has its name anew, but nothing of what the dead one had taken.
        self._owner = f"{sampler.actor_id}:{uuid.uuid4().hex}"
        self._time: TimeShare | None = None
        self._queries: list[tuple[Query, Part]] = []
        self._wanted: Wanted | None = None
        self._adapter: LoadedAdapter | None = None
        self._waiting: list[Planned] = []
        self._planned: Counter[Part] = Counter()
        """How many samples serve each part."""
        self._open = 0
        self._done: list[tuple[int, Part, Trajectory]] = []
        self._last_failure: str | None = None
        self._is_lost = False
        self._training_is_over = False

    @property
    def training_is_over(self) -> bool:
        """Whether the last adapter is looked at: nothing else is wanted of any actor."""
        return self._training_is_over

    @property
    def version(self) -> int | None:
        """What is being looked at."""
        return self._wanted.version if self._wanted else None

    def housekeep(self) -> None:
        """Take what is wanted, show that one is still at it, hand over what is done."""
        if self._adapters.current is None:
            # Training's own adapter comes first.
            return
        if self._time is None:
            self._time = TimeShare(self._section.share, self._at_once(), time.monotonic())
        newest = self._evaluations.wanted()
        if newest is not None:
            # Also while the last one's figures are made, when nothing is wanted any more.
            self._training_is_over = newest.last
        if self._wanted is None:
            self._begin()
            return
        if self._training_is_over:
            self._time.lift(self._max_in_flight)
        self.renew()
        if not self._waiting and not self._open:
            self._end()

    def _at_once(self) -> int:
        """How many requests; sampling always goes on beside them, unless they have the engine in turns with it: then
        few at a time would but change turns the more often."""
        share = 1.0 if self._sampler.policy.takes_turns else self._section.share
        return max(1, int(share * self._max_in_flight))

    def renew(self) -> None:
        """Show that one is still at it; also wherever the actor's loop may be held up for longer than a lease."""
        if self._wanted is None or self._is_lost or self._evaluations.renew(self._owner):
            return
        log.warning("the samples of adapter version %d were taken over by another actor", self._wanted.version)
        self._is_lost = True
        self._waiting.clear()

    def feed(self) -> None:
        """Add samples of held-out queries to the batch, as far as their share goes."""
        if self._time is None:
            return
        while self._waiting and self._time.may_begin(self._sampler.aside_in_flight, time.monotonic()):
            query, request, parts = self._waiting.pop()
            self._sampler.submit(
                query,
                1,
                request.temperature,
                self._adapter,
                "policy" if request.temperature == 1.0 else "tempered",
                every_state=request.every_state,
                top_p=request.top_p,
                top_k=request.top_k,
                tell=partial(self._take, len(self._waiting), parts),
                aside=True,
            )
            self._open += 1

    def _take(self, left: int, parts: Part, draft: Draft) -> None:
        """One is done, which so many were to be asked for after; the sampler gives it to nobody else, so that none of
        them can be pushed."""
        self._open -= 1
        if draft.trajectory is not None:
            self._done.append((left, parts, draft.trajectory))
        else:
            self._last_failure = visible(draft.rejected or "it makes no trajectory")

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Around a step of the engine: the held-out queries' part of its time."""
        whole, began = self._sampler.in_flight, time.monotonic()
        part = self._part_of(whole) if self._open else 0
        yield
        if self._time is not None and part:
            took = time.monotonic() - began
            self._time.spend(took, part, whole)
            self._sampler.metrics.evaluation.inc(took * part / whole)

    def _part_of(self, whole: int) -> int:
        """Of so many requests in flight, how many this step's time goes to held-out queries for, as a share of all."""
        aside, policy = self._sampler.aside_in_flight, self._sampler.policy
        if not policy.takes_turns or self._adapter == self._adapters.current:
            return aside
        # It is theirs alone, or training's.
        return whole if aside and policy.serves_alone(self._adapter) else 0

    def give_back(self) -> None:
        """The actor leaves: another may begin anew with what this one was at."""
        if self._wanted is not None and not self._is_lost:
            self._evaluations.give_back(self._owner)

    def _begin(self) -> None:
        wanted = self._evaluations.take(self._owner)
        if wanted is None:
            return
        assert self._time is not None
        began = time.monotonic()
        try:
            self._adapter = self._adapters.hold(wanted.version)
            self._time.spend(time.monotonic() - began, 1, 1)
        except (RedisError, EngineFault):
            # Says nothing of the version.
            raise
        # Also whatever vLLM raises for an adapter that it can't serve: a restarted actor would take the same again.
        except Exception as error:
            self._finish_without(wanted, str(error) or type(error).__name__)
            return
        self._queries = self._queries or self._evaluations.queries()
        self._wanted, self._is_lost = wanted, False
        planned = plan(wanted.parts, self._requests, self._queries)
        self._planned = Counter(part for _, _, parts in planned for part in parts)
        # Popped from its end.
        self._waiting = planned[::-1]
        self._last_failure = None

    def _end(self) -> None:
        assert self._wanted is not None and self._time is not None and self._adapter is not None
        done, self._done = self._done, []
        if not self._is_lost:
            # In the order in which they were asked for: the first to end are the shortest.
            done.sort(key=lambda each: -each[0])
            samples = {part: tuple(item.to_bytes() for _, parts, item in done if part in parts) for part in Part}
            self._hand_over(
                Drawn(
                    self._wanted,
                    self._adapter.sha256,
                    self._sampler.actor_id,
                    self._time.used(time.monotonic()),
                    samples[Part.EVALUATION],
                    self._planned[Part.EVALUATION] - len(samples[Part.EVALUATION]),
                    self._last_failure,
                    samples[Part.DIAGNOSIS],
                    self._planned[Part.DIAGNOSIS] - len(samples[Part.DIAGNOSIS]),
                )
            )
        self._adapters.release()
        self._wanted = self._adapter = None

    def _hand_over(self, drawn: Drawn) -> None:
        version = drawn.wanted.version
        try:
            if not self._evaluations.finish(self._owner, drawn):
                log.warning("the samples of adapter version %d came too late", version)
        except ResponseError as error:
            if not is_out_of_memory(error):
                raise
            self._finish_without(drawn.wanted, "its samples are lost, as Redis has no memory left")

    def _finish_without(self, wanted: Wanted, reason: str) -> None:
        """A version that can't be looked at; said to whoever waits for it."""
        assert self._time is not None
        log.warning("adapter version %d is not looked at: %s", wanted.version, reason)
        share = self._time.used(time.monotonic())
        self._evaluations.finish(
            self._owner, Drawn(wanted, NO_SHA256, self._sampler.actor_id, share, reason=visible(reason))
        )
