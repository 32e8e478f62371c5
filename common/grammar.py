"""A hard mask from a regular expression: which tokens may follow, and where the rationale may end.

The expression becomes an automaton over tokens. On top of it stands a count of the tokens that are left: a token is
allowed only if the rationale can still end within its bounds, so that no sample is ever cut off in the middle. vLLM's
own structured outputs know no such bounds, which is why they are not used: the sampler and the learner ask this object.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.automata import Unusable, too_large
from common.errors import UserError
from common.expressions import automaton_of
from common.token_automata import TokenAutomaton, over_tokens

COMPILE_LIMIT_S = 60
"""Of processor time, so that what else the machine does decides nothing, in the checks before a run."""
_SLACK = 4
"""Each process of a run compiles anew what the checks let through, and may be slower at it: it may take so many times
as long. So much more than its processor time it may wait for a processor."""
_limit_s: ContextVar[int | None] = ContextVar("limit_s", default=None)


@contextlib.contextmanager
def compile_limit(seconds: int) -> Iterator[None]:
    """Within it expressions that take more processor time to compile are refused."""
    token = _limit_s.set(seconds)
    try:
        yield
    finally:
        _limit_s.reset(token)


class Grammar:
    """An automaton over tokens, with bounds on how many are taken."""

    def __init__(
        self, automaton: TokenAutomaton, allowed: NDArray[np.int64], terminator_id: int, min_len: int, max_len: int
    ) -> None:
        """`allowed` are the mask's tokens in increasing order, ⊤ among them. Raises UserError if nothing fits within
        the bounds."""
        self._automaton, self._allowed, self._terminator_id = automaton, allowed, terminator_id
        self._min_len, self._max_len = min_len, max_len
        columns = {id(fan): np.searchsorted(allowed, fan.tokens).astype(np.int32) for fan in automaton.fans}
        self._columns = [columns[id(fan)] for fan in automaton.fans]
        self._stop_column = int(np.searchsorted(allowed, terminator_id))
        # can_end[t, s]: from state s after t tokens the rationale can end within its bounds.
        self._can_end = np.zeros((max_len + 1, len(automaton.final)), bool)
        for t in range(max_len, -1, -1):
            self._can_end[t] = automaton.final if t >= min_len else False
            if t < max_len:
                self._can_end[t, automaton.sources[self._can_end[t + 1, automaton.ends]]] = True
        if not self._can_end[0, 0]:
            raise self._nothing_fits()
        self._rows = lru_cache(maxsize=512)(self._row)

    def _nothing_fits(self) -> UserError:
        problem = f"no rationale of {self._min_len} to {self._max_len} tokens fits the grammar"
        automaton, shortest = self._automaton, 0
        reached = np.arange(len(automaton.final)) == 0
        while not (reached & automaton.final).any():
            reached[automaton.ends[reached[automaton.sources]]] = True
            shortest += 1
        if shortest > self._max_len:
            return UserError("task.max_len", self._max_len, problem, f"give {shortest} at least")
        return UserError("task.min_len", self._min_len, problem, f"lower it: {shortest} tokens are enough for one")

    @classmethod
    def of(
        cls,
        setting: str,
        pattern: str,
        tokens: Mapping[int, str],
        allowed: NDArray[np.int64],
        terminator_id: int,
        min_len: int,
        max_len: int,
        shown: object = None,
    ) -> Grammar:
        """Compile a regular expression for the text before ⊤; `tokens` holds the allowed tokens' texts, ⊤'s as well.

        Raises UserError naming `setting`, with `shown` for its value, or else the expression.
        """
        try:
            automaton = _compile(pattern, {t: text for t, text in sorted(tokens.items()) if text}, terminator_id)
        except Unusable as error:
            raise UserError(setting, pattern if shown is None else shown, error.problem, error.remedy) from error
        return cls(automaton, allowed, terminator_id, min_len, max_len)

    def narrowed(self) -> Grammar:
        """The same over those tokens alone that a rationale can take, and ⊤."""
        automaton, reached = self._automaton, np.arange(len(self._automaton.final)) == 0
        taken = np.zeros(len(automaton.ends), bool)
        for t in range(self._max_len):
            ways = reached[automaton.sources] & self._can_end[t + 1, automaton.ends]
            taken |= ways
            reached = np.zeros_like(reached)
            reached[automaton.ends[ways]] = True
        narrow = automaton.along(taken)
        fans = {id(fan): fan.tokens for fan in narrow.fans}
        allowed = np.unique(np.concatenate([*fans.values(), [self._terminator_id]])).astype(np.int64)
        return Grammar(narrow, allowed, self._terminator_id, self._min_len, self._max_len)

    @property
    def misses_terminator(self) -> bool:
        """Whether the expression would let ⊤'s own text stand within the rationale."""
        return self._automaton.misses_terminator

    @property
    def allowed_ids(self) -> tuple[int, ...]:
        """The mask's tokens in increasing order, ⊤ among them."""
        return tuple(self._allowed.tolist())

    def _states(self, action_ids: Sequence[int] | NDArray[np.int32]) -> list[int]:
        """The states s_0.. that these actions lead through, as far as they stay within the grammar."""
        found = [0]
        for token in np.asarray(action_ids, np.int32):
            fan = self._automaton.fans[found[-1]]
            place = int(np.searchsorted(fan.tokens, token))
            if place == len(fan.tokens) or fan.tokens[place] != token:
                break
            found.append(int(self._automaton.targets[found[-1]][fan.way[place]]))
        return found

    def _whole(self, action_ids: Sequence[int] | NDArray[np.int32]) -> list[int]:
        states = self._states(action_ids)
        if len(states) <= len(action_ids):
            raise ValueError("the actions leave the grammar")
        return states

    def accepts(self, action_ids: NDArray[np.int32]) -> bool:
        """Whether the grammar lets these actions through, and then stop."""
        states = self._states(action_ids)
        return len(states) > len(action_ids) and self._stops(len(action_ids), states[-1])

    def mask(self, action_ids: Sequence[int] | NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which of the allowed tokens, ⊤ among them, may follow these actions; shape (n_allowed,).

        Raises ValueError where the actions leave the grammar, as do `allowed` and `stoppable`.
        """
        return self._rows(len(action_ids), self._whole(action_ids)[-1])

    def allowed(self, action_ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """`mask` at every decision state s_0..s_K, shape (K+1, n_allowed)."""
        return np.stack([self._rows(t, state) for t, state in enumerate(self._whole(action_ids))])

    def stoppable(self, action_ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Where ⊤ is allowed among s_0..s_K, shape (K+1,)."""
        return np.array([self._stops(t, state) for t, state in enumerate(self._whole(action_ids))])

    def _stops(self, t: int, state: int) -> bool:
        return bool(self._automaton.final[state]) and self._min_len <= t

    def _row(self, t: int, state: int) -> NDArray[np.bool_]:
        row = np.zeros(len(self._allowed), bool)
        if t < self._max_len:
            open_ways = self._can_end[t + 1, self._automaton.targets[state]]
            row[self._columns[state][open_ways[self._automaton.fans[state].way]]] = True
        row[self._stop_column] = self._stops(t, state)
        row.flags.writeable = False
        return row

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept for speed: vLLM hands the mask on to its workers."""
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = lru_cache(maxsize=512)(self._row)


def _compile(pattern: str, tokens: Mapping[int, str], terminator_id: int) -> TokenAutomaton:
    """In a process of its own, as some expressions take hours; raises Unusable."""
    limit = _limit_s.get() or COMPILE_LIMIT_S * _SLACK
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_build, args=(sender, limit, pattern, tokens, terminator_id), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(limit * _SLACK):
            raise too_large(f"takes longer than {limit * _SLACK} s, though less of a processor's time")
        found: TokenAutomaton | Unusable = receiver.recv()
    except EOFError as error:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            raise too_large(f"takes longer than {limit} s") from error
        raise Unusable("could not be compiled", "see the messages above, or simplify it") from error
    finally:
        process.kill()
        process.join()
    if isinstance(found, Unusable):
        raise found
    return found


def _build(sender: Any, limit_s: int, pattern: str, tokens: Mapping[int, str], terminator_id: int) -> None:
    # Whatever the parent does on this signal, here it ends the process, and leaves no core.
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    most = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s if most == resource.RLIM_INFINITY else min(limit_s, most), most))
    try:
        sender.send(over_tokens(automaton_of(pattern, "".join(tokens.values())), tokens, terminator_id))
    except Unusable as error:
        sender.send(error)
