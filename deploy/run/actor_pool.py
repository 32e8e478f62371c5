"""A run's Ray actors: as many as are wanted, placed, called, looked after and stopped; with Ray, if it started here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from buffer.control import Control
from common.config import RunConfig
from common.errors import EngineDisturbed, EngineFault, RunFault, UserError, last_line
from common.log import get_logger
from common.tasks import SampleRequest, Split
from deploy.run.cluster import room_for_actors

log = get_logger("actors")
RETRIES = 3
DISTURBANCES = 3
"""An engine's starts that others on its GPU may disturb, beyond the retries; each takes seconds."""
END_LIMIT_S = 15.0
"""Longest time that actors get at the end of a run to push what they have."""
CLOSE_LIMIT_S = 2.0
EVALUATION_LIMIT_S = 300.0
"""Longest wait for actors to start or to finish what they were at before the evaluation's samples are drawn."""
SILENT_LIMIT_S = 60.0
"""Longest wait for actors that are not heard of, as where memory runs short, before a fresh one takes the place of one:
its node may be lost."""
LOOK_S = 0.5
"""Between looks whether the evaluation is to stop."""


class EvaluationStopped(Exception):
    """The evaluation was given up because that was asked for."""


@dataclass
class _Member:
    """One actor: its handle and placement group, and the call of its loop."""

    index: int
    handle: Any
    group: Any
    loop: Any
    started_at: float
    """Unix time."""
    failures: int = 0
    disturbed: int = 0
    """Times that its engine could not start as a process beside it was in the way."""
    first_cause: str = ""
    """Of the failures."""
    retiring: bool = False
    done: bool = False
    """Whether its loop has returned."""
    silent: bool = False
    """Whether nothing was heard of it for a while, after its start."""

    @property
    def id(self) -> str:
        return f"actor-{self.index}"


class ActorPool:
    """Keeps as many actors as are wanted; nothing here waits for a node that is not there."""

    def __init__(self, config: RunConfig, redis_url: str, control: Control) -> None:
        self._config, self._redis_url, self._control = config, redis_url, control
        self._members: list[_Member] = []
        self.wanted = config.actor.least_count
        self._told = self._capped = 0

    def __enter__(self) -> ActorPool:
        """Start them in the Ray cluster that this process has joined."""
        import ray

        self._ray = ray
        self.follow(None)
        return self

    def follow(self, asked: int | None) -> None:
        """Have `asked` actors, or as many as the configuration says: start what lacks, retire what is too many."""
        self.wanted = asked or self._configured()
        section = self._config.actor
        if asked and self._config.ray.address is None and (section.num_cpus or section.num_gpus):
            # More than Ray was started for would wait for ever.
            self.wanted = min(asked, max(1, room_for_actors(self._ray.nodes(), section)))
            if self.wanted < asked != self._capped:
                log.warning("%d actors were asked for; this machine has room for %d", asked, self.wanted)
                self._capped = asked
        if self._told != self.wanted:
            self._told = self.wanted
            self._control.tell_actors_wanted(self.wanted)
        kept = [member for member in self._members if not member.retiring]
        for member in self._too_many(kept):
            log.info("retiring %s", member.id)
            member.retiring = True
            self._control.retire(member.id)
        taken = {member.index for member in self._members}
        free = (index for index in range(len(taken) + self.wanted) if index not in taken)
        for _ in range(self.wanted - len(kept)):
            self._members.append(self._start(next(free)))

    def _too_many(self, kept: list[_Member]) -> list[_Member]:
        """Those beyond the wanted number: first who isn't heard of, as its node may be lost, then the latest."""
        if len(kept) <= self.wanted:
            return []
        heard = self._control.actors()
        return sorted(kept, key=lambda member: not heard.get(member.id, {}).get("alive"))[self.wanted :]

    def _configured(self) -> int:
        section = self._config.actor
        if section.count != "auto":
            return section.count
        return max(1, room_for_actors(self._ray.nodes(), section))

    def _start(self, index: int) -> _Member:
        from actors.ray_actor import start_actor

        # An actor that takes the place of a retired one draws other samples, and so do those of a resumed run.
        started_at = time.time()
        handle, group = start_actor(self._config, index, self._redis_url, generation=self._control.count_start(index))
        return _Member(index, handle, group, handle.run.remote(), started_at)

    def look_after(self, last_heard: Mapping[str, Any]) -> str | None:
        """Take away who retired, call actors again whose loop failed, give others the seeds of who is silent; what
        makes going on pointless, or None. `last_heard` are actors' last words, as of the last look at Redis."""
        heard = self._control.actors() if any(member.retiring for member in self._members) else {}
        for member in self._finished():
            problem = self._ended(member)
            if problem is not None:
                return problem
        self._share_seeds(last_heard)
        for member in [member for member in self._members if member.retiring]:
            # One on a lost node never answers.
            if member.done or not heard.get(member.id, {}).get("alive"):
                self._remove(member)
        return None

    def _share_seeds(self, heard: Mapping[str, Any]) -> None:
        """Give the others what a silent actor had taken: its node may be lost, and no other have room for it."""
        for member in self._members:
            word = heard.get(member.id, {"alive": True})
            silent = not word["alive"] and not word["starting"]
            if silent and not member.silent:
                self._control.give_back_seeds(member.id)
            member.silent = silent

    def _finished(self) -> list[_Member]:
        open_loops = {member.loop: member for member in self._members if not member.done}
        if not open_loops:
            return []
        done, _ = self._ray.wait(list(open_loops), num_returns=len(open_loops), timeout=0)
        return [open_loops[loop] for loop in done]

    def _ended(self, member: _Member) -> str | None:
        member.done = True
        try:
            self._ray.get(member.loop)
            return None
        except Exception as error:
            cause = getattr(error, "cause", None) or error
            log.error("%s failed: %s", member.id, last_line(error))
            ends_all = isinstance(cause, UserError | RunFault)
            if ends_all and not isinstance(cause, EngineFault | EngineDisturbed):
                return str(cause)
            if isinstance(cause, EngineDisturbed) and member.disturbed < DISTURBANCES:
                member.disturbed += 1
            else:
                member.failures += 1
                member.first_cause = member.first_cause or last_line(error)
            if member.failures >= RETRIES:
                return (
                    f"an actor failed {member.failures} times, first: {member.first_cause}; last: {last_line(error)}; "
                    "see logs/actor-*.log"
                )
            if not member.retiring:
                self._replace(member)
            return None

    def _replace(self, member: _Member) -> None:
        """Another process takes the place of an actor that failed: what its engine holds may be in no good state."""
        self._release(member)
        fresh = self._start(member.index)
        fresh.failures, fresh.disturbed, fresh.first_cause = member.failures, member.disturbed, member.first_cause
        self._members[self._members.index(member)] = fresh

    def _remove(self, member: _Member) -> None:
        self._members.remove(member)
        self._release(member)
        self._control.forget_actor(member.id)

    def _release(self, member: _Member) -> None:
        if member.done:
            with contextlib.suppress(Exception):
                self._ray.get(member.handle.close.remote(), timeout=CLOSE_LIMIT_S)
        with contextlib.suppress(Exception):
            self._ray.kill(member.handle)
        if member.group is not None:
            with contextlib.suppress(Exception):
                self._ray.util.remove_placement_group(member.group)

    def evaluate(
        self,
        requests: Sequence[SampleRequest],
        split: Split = "test",
        should_stop: Callable[[], bool] = lambda: False,
        most: int | None = None,
    ) -> dict[str, dict[str, list[bytes]]]:
        """Samples for the task's evaluation, drawn by the first actor that can; a fresh one is tried where none can, or
        none is heard of.

        They are of all queries, or of `most` that are spread evenly over them.
        Raises RunFault if that can't either, EvaluationStopped soon after `should_stop` says so.
        """
        self._wait_for_loops(EVALUATION_LIMIT_S, for_one=True, should_stop=should_stop)
        found, last = self._evaluate_by_one(requests, split, should_stop, most)
        if found is None and self._members:
            gone = next((member for member in self._members if member.done), self._members[0])
            why = "is not heard of" if last is None else "could not evaluate"
            log.warning("%s %s: a fresh actor takes the evaluation over", gone.id, why)
            self._replace(gone)
            self._wait_for_loops(EVALUATION_LIMIT_S, for_one=True, should_stop=should_stop)
            found, last = self._evaluate_by_one(requests, split, should_stop, most)
        if found is None:
            why = "none is heard of" if last is None else last_line(last)
            raise RunFault(f"no actor could sample for the evaluation: {why}")
        return found

    def _evaluate_by_one(
        self, requests: Sequence[SampleRequest], split: Split, should_stop: Callable[[], bool], most: int | None
    ) -> tuple[dict[str, dict[str, list[bytes]]] | None, Exception | None]:
        """The samples of the first actor that can, or why the last one that was tried could not."""
        last: Exception | None = None
        for member in self._members:
            if not member.done:
                continue
            try:
                call = member.handle.evaluate.remote(requests, split, most)
                while not self._ray.wait([call], timeout=LOOK_S)[0]:
                    if should_stop():
                        raise EvaluationStopped
                return self._ray.get(call), None
            except self._ray.exceptions.RayError as error:
                log.error("%s could not evaluate: %s", member.id, last_line(error))
                last = error
        return None, last

    def _wait_for_loops(
        self, limit_s: float, *, for_one: bool = False, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Until all loops of actors that live have returned. With `for_one`, until there is one: an actor that still
        starts will do, and one that is silent for a while."""
        deadline, patience = time.monotonic() + limit_s, time.monotonic() + SILENT_LIMIT_S
        while time.monotonic() < deadline:
            if should_stop():
                raise EvaluationStopped
            for member in self._finished():
                member.done = True
            heard = self._control.actors()
            open_ = [member for member in self._members if not member.done]
            alive = any(heard.get(member.id, {}).get("alive") for member in open_)
            # A resumed run's last steps may need no new samples, and be over before an actor is there.
            starting = any(_starts(member, heard.get(member.id, {})) for member in open_)
            lost = not open_ or (not starting and time.monotonic() > patience)
            enough = not for_one or lost or any(member.done for member in self._members)
            if not alive and enough:
                return
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self._wait_for_loops(END_LIMIT_S)
        for member in self._members:
            self._release(member)


def _starts(member: _Member, word: Mapping[str, Any]) -> bool:
    """Whether an actor is still on its way: not heard of since its start, or silent while its engine starts."""
    return float(word.get("at", 0.0)) < member.started_at or bool(word.get("starting"))
