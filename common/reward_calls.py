"""A reward of the user's own: a function of a batch of texts that gives nats to add to log R.

It runs in processes of its own. Texts are handed over and their values fetched when they are there, so that whoever
asks goes on meanwhile. What the function does wrong costs the texts that it is about, and is told; only one that never
gives anything is `hopeless`.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from common.log import get_logger
from common.own_reward import OwnRewardSection
from common.user_process import UserCodeError, UserProcess, wait_for

log = get_logger("reward")
Outcome = Literal["valued", "raised", "timed_out", "ended", "unusable"]
FIRST_TEXTS = 20
"""So many texts without a value, and none with one before, end the run."""
FIRST_HANGS = 3
"""The same for calls of one text that take too long, each of which costs `timeout_s`, and for processes that can't be
started; so many of each process, as those of several fail at once."""
QUICK = 0.25
"""A batch that took less than this share of its limit may be followed by one of twice as many texts."""
FIRST_ROLLOUTS = 100
"""So many different rollouts, none with the values of all the texts that it needs, end the run too."""
UNFINISHED = (
    "learner.objective subtb and db need the reward of unfinished texts as well, wherever the policy may stop: give a "
    "value for them too, or choose vargrad or tb"
)
"""What to do where whole texts get values and not what leads to them."""
TRIED_S = 10.0
"""The check tries unfinished texts for so long; a slow function's others are left to the run."""
AGAIN_S = 60.0
"""A text that got no value isn't asked about again for so long: the policy may write it all the time."""
FAILURES_KEPT = 10_000
_KINDS: Mapping[str, Outcome] = {"raised": "raised", "timed_out": "timed_out", "too_long": "unusable"}


@dataclass(frozen=True)
class NoValue:
    """Why a text has no value."""

    kind: Outcome
    message: str


@dataclass(frozen=True)
class Valued:
    """The values of all texts of a ticket, or why there are none."""

    ticket: str
    found: list[float] | NoValue


@dataclass(frozen=True)
class Subject:
    """What texts are written for: a query's prompt as text and its row."""

    query_id: str
    prompt: str
    row: Mapping[str, Any]


Key = tuple[str, str]
"""Query and text, on which alone a value depends."""


@dataclass(frozen=True)
class _Ask:
    subject: Subject
    text: str

    @property
    def key(self) -> Key:
        return self.subject.query_id, self.text


@dataclass
class _Ticket:
    name: str
    keys: list[Key]
    missing: int
    aside: bool
    failure: NoValue | None = None
    values: dict[Key, float] = field(default_factory=dict)

    def done(self) -> Valued:
        return Valued(self.name, self.failure or [self.values[key] for key in self.keys])


class OwnReward:
    """Tickets of texts in, tickets of values out; each text is asked about once, in batches of what is waiting."""

    def __init__(
        self,
        section: OwnRewardSection,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
        cache: int = 100_000,
    ) -> None:
        """`on_outcome` is told of every text that was asked about; `cache` is how many values are kept."""
        self._section, self._on_outcome, self._cache = section, on_outcome, cache
        self._processes = [UserProcess(section.user_function) for _ in range(section.processes)]
        self._under_way: dict[int, tuple[list[_Ask], float]] = {}
        """Batches by the process that has them, and since when."""
        self._size = section.batch_size
        """Of the next batch: a slow function's are smaller, so that not each of them takes too long as a whole."""
        self._waiting: deque[_Ask] = deque()
        self._again: deque[list[_Ask]] = deque()
        """Parts of batches that went wrong as a whole."""
        self._open: dict[Key, list[_Ticket]] = {}
        """Tickets by the texts that they wait for."""
        self._done: list[Valued] = []
        self._values: OrderedDict[Key, float] = OrderedDict()
        self._failures: OrderedDict[Key, tuple[NoValue, float]] = OrderedDict()
        """With the time until which each is remembered."""
        self._hangs = 0
        self._incomplete: set[Key] = set()
        """Rollouts, by their whole texts, that lack a value; kept until one is complete."""
        self._any_complete = False
        self.outcomes: Counter[Outcome] = Counter()
        """Texts by what came of them."""
        self.last_failure: str | None = None
        self.hopeless: str | None = None
        """What to end a run with, as the function has given nothing of use by now: field, value, problem, remedy."""
        self._next_word = 0.0

    def submit(self, ticket: str, subject: Subject, texts: Sequence[str], *, aside: bool = False) -> None:
        """Ask for the values of a rollout's texts, the whole one last; `poll` gives them.

        What is `aside`, for an evaluation, is asked about as a whole alone, and says nothing of what training gets.
        """
        opened = _Ticket(ticket, [(subject.query_id, text) for text in texts], 0, aside)
        for key in dict.fromkeys(opened.keys):
            known = self._known(key)
            if isinstance(known, NoValue):
                opened.failure = known
            elif known is not None:
                opened.values[key] = known
            else:
                opened.missing += 1
                if key not in self._open:
                    self._open[key] = []
                    self._waiting.append(_Ask(subject, key[1]))
                self._open[key].append(opened)
        if not opened.missing:
            self._finish(opened)

    def poll(self, wait_s: float = 0.0) -> list[Valued]:
        """Tickets that are settled, waiting up to `wait_s` for one; hands on what waits."""
        self._collect()
        self._hand_on()
        if wait_s and not self._done and self._under_way:
            waits = [self._processes[index].waits_for for index in self._under_way]
            wait_for([read for read, _ in waits], [write for _, write in waits if write is not None], wait_s)
            self._collect()
            self._hand_on()
        done, self._done = self._done, []
        return done

    def withdraw(self, tickets: Collection[str]) -> None:
        """Nobody waits for these any more. What the processes have already is kept for whoever asks next; what no other
        ticket waits for isn't asked about."""
        gone, at_work = set(tickets), {ask.key for batch, _ in self._under_way.values() for ask in batch}
        for key, waiting in list(self._open.items()):
            self._open[key] = [ticket for ticket in waiting if ticket.name not in gone]
            if not self._open[key] and key not in at_work:
                del self._open[key]
        self._waiting = deque(ask for ask in self._waiting if ask.key in self._open)
        parts = ([ask for ask in batch if ask.key in self._open] for batch in self._again)
        self._again = deque(batch for batch in parts if batch)
        self._done = [valued for valued in self._done if valued.ticket not in gone]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()

    def _known(self, key: Key) -> float | NoValue | None:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        failure, until = self._failures.get(key, (None, 0.0))
        return failure if time.monotonic() < until else None

    def _hand_on(self) -> None:
        for index, process in enumerate(self._processes):
            while index not in self._under_way and (self._again or self._waiting):
                batch = self._again.popleft() if self._again else self._next_batch()
                try:
                    process.submit(_request(batch), self._section.timeout_s)
                    self._under_way[index] = batch, time.monotonic()
                except UserCodeError as error:
                    self._went_wrong(batch, error)

    def _next_batch(self) -> list[_Ask]:
        n = min(len(self._waiting), self._size)
        return [self._waiting.popleft() for _ in range(n)]

    def _collect(self) -> None:
        for index, (batch, since) in list(self._under_way.items()):
            try:
                answer = self._processes[index].poll()
            except UserCodeError as error:
                del self._under_way[index]
                self._went_wrong(batch, error)
                continue
            if answer is not None:
                del self._under_way[index]
                if len(batch) >= self._size and time.monotonic() - since < QUICK * self._section.timeout_s:
                    self._size = min(2 * self._size, self._section.batch_size)
                self._answered(batch, answer.value)

    def _answered(self, batch: list[_Ask], values: Any) -> None:
        if not isinstance(values, list) or len(values) != len(batch):
            # Then it is the message that says why there are none.
            self._no_values(batch, NoValue("unusable", str(values)))
            return
        for ask, value in zip(batch, values, strict=True):
            self._settle(ask, value if isinstance(value, float) else NoValue("unusable", str(value)))

    def _went_wrong(self, batch: list[_Ask], error: UserCodeError) -> None:
        if error.kind == "timed_out" and len(batch) > 1:
            self._size = min(self._size, len(batch) // 2)
        elif error.kind in ("timed_out", "unloadable"):
            self._hangs += 1
        self._no_values(batch, NoValue(_KINDS.get(error.kind, "ended"), str(error)), error.remedy)

    def _no_values(self, batch: list[_Ask], failure: NoValue, remedy: str = "") -> None:
        """A batch went wrong as a whole: ask about its parts, so that it costs the others no value."""
        if self._hangs >= FIRST_HANGS * len(self._processes):
            self._give_up(f"each of its first {self._hangs} calls failed, the last: {failure.message}", remedy)
        if len(batch) == 1:
            self._settle(batch[0], failure)
            return
        self._say("no values for %d texts, which are tried in parts: %s", len(batch), failure.message)
        for ask in batch:
            if not self._open[ask.key]:
                # Withdrawn meanwhile.
                del self._open[ask.key]
        batch = [ask for ask in batch if ask.key in self._open]
        # Halves find one bad text among many with few calls. Each call that hangs costs its whole limit, though.
        size = 1 if failure.kind == "timed_out" else max(1, math.ceil(len(batch) / 2))
        self._again.extend(batch[start : start + size] for start in range(0, len(batch), size))

    def _settle(self, ask: _Ask, found: float | NoValue) -> None:
        outcome: Outcome = found.kind if isinstance(found, NoValue) else "valued"
        self.outcomes[outcome] += 1
        self._on_outcome(outcome)
        if isinstance(found, NoValue):
            self.last_failure = found.message
            self._say("no value for %r: %s", ask.text[:80], found.message)
            _keep(self._failures, ask.key, (found, time.monotonic() + AGAIN_S), FAILURES_KEPT)
        else:
            _keep(self._values, ask.key, found, self._cache)
        for ticket in self._open.pop(ask.key):
            ticket.missing -= 1
            if isinstance(found, NoValue):
                ticket.failure = found
            else:
                ticket.values[ask.key] = found
            if not ticket.missing:
                self._finish(ticket)
        if isinstance(found, NoValue) and self.outcomes.total() >= FIRST_TEXTS:
            self._give_up(f"gave no value for any of its first {FIRST_TEXTS} texts, the last: {found.message}")

    def _finish(self, ticket: _Ticket) -> None:
        self._done.append(ticket.done())
        if ticket.aside or self._any_complete:
            return
        if ticket.failure is None:
            self._any_complete = True
            self._incomplete.clear()
            return
        self._incomplete.add(ticket.keys[-1])
        if self.hopeless is None and len(self._incomplete) >= FIRST_ROLLOUTS:
            problem = f"gave all values that it takes for none of the first {FIRST_ROLLOUTS} rollouts, the last: "
            remedy = UNFINISHED if len(ticket.keys) > 1 else "mend it"
            self.hopeless = str(self._section.user_function.error(problem + ticket.failure.message, remedy))

    def _give_up(self, problem: str, remedy: str = "") -> None:
        """Say what there is no hope for, if there was no value yet."""
        if self.hopeless is None and not self.outcomes["valued"]:
            remedy = remedy or "mend it, and try it by hand first"
            self.hopeless = str(self._section.user_function.error(problem, remedy))

    def _say(self, message: str, *arguments: object) -> None:
        """Log a failure; of many within a second the first."""
        if time.monotonic() >= self._next_word:
            self._next_word = time.monotonic() + 1.0
            log.warning(message, *arguments)


ValueT = TypeVar("ValueT")


def _keep(kept: OrderedDict[Key, ValueT], key: Key, value: ValueT, limit: int) -> None:
    kept[key] = value
    if len(kept) > limit:
        kept.popitem(last=False)


def _request(batch: Sequence[_Ask]) -> Any:
    """As `common.user_code.answer_reward` reads it: each query once, then the texts with their query's place."""
    places: dict[Hashable, int] = {}
    subjects: list[tuple[str, Mapping[str, Any]]] = []
    for ask in batch:
        if ask.subject.query_id not in places:
            places[ask.subject.query_id] = len(subjects)
            subjects.append((ask.subject.prompt, ask.subject.row))
    return [subjects, [(places[ask.subject.query_id], ask.text) for ask in batch]]


def load_own_reward(section: OwnRewardSection) -> None:
    """Raises UserError for a function that can't be loaded, before something slow starts that would need it."""
    process = UserProcess(section.user_function)
    try:
        process.load()
    finally:
        process.close()


def check_own_reward(section: OwnRewardSection, subject: Subject, rollouts: Sequence[Sequence[str]]) -> None:
    """Load the function and try it on some rollouts, until the whole text of one gets a value; raises UserError.

    A rollout's whole text is its last. Where those before it, unfinished ones, are asked about as well, every rollout
    is tried, and a whole text with a value must not have an unfinished one without.
    """
    process, first, valued = UserProcess(section.user_function), "", False
    try:
        process.load()
        for *unfinished, whole in rollouts:
            failure = _try(process, section, subject, whole)
            if failure is not None:
                first = first or f"tried on the text {_short(whole)}: {failure.message}"
                if failure.kind == "timed_out":
                    break
                continue
            valued = True
            if not unfinished:
                return
            _try_unfinished(process, section, subject, unfinished)
        if not valued:
            remedy = "mend it: it must give a finite number of nats for whatever the policy may write"
            raise section.user_function.error(first, remedy)
    finally:
        process.close()


def _try_unfinished(process: UserProcess, section: OwnRewardSection, subject: Subject, texts: Sequence[str]) -> None:
    until = time.monotonic() + TRIED_S
    for text in dict.fromkeys(texts):
        failure = _try(process, section, subject, text)
        if failure is not None:
            problem = f"tried on the unfinished text {_short(text)}: {failure.message}"
            raise section.user_function.error(problem, UNFINISHED)
        if time.monotonic() > until:
            return


def _try(process: UserProcess, section: OwnRewardSection, subject: Subject, text: str) -> NoValue | None:
    """Why a text has no value, None where it has one."""
    try:
        found = process.ask(_request([_Ask(subject, text)]), section.timeout_s)
    except UserCodeError as error:
        return NoValue(_KINDS.get(error.kind, "ended"), str(error))
    if isinstance(found, list) and isinstance(found[0], float):
        return None
    return NoValue("unusable", found if isinstance(found, str) else str(found[0]))


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:59]}…")
