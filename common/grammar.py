"""A hard mask from a regular expression or a JSON schema: which tokens may follow, and where the rationale may end.

The expression becomes an automaton over tokens. On top of it stands a count of the tokens that are left: a token is
allowed only if the rationale can still end within its bounds, so that no sample is ever cut off in the middle. vLLM's
own structured outputs know no such bounds, which is why they are not used: the sampler and the learner ask this object.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError

COMPILE_LIMIT_S = 60.0
MAX_EDGES = 20_000_000
"""Of the automaton; each takes some 20 bytes."""
_REMEDY = "write it without counted repetitions such as {1,80}: task.max_len bounds the length"


@dataclass(frozen=True)
class Automaton:
    """States 0..n-1 with the tokens that lead on from each."""

    tokens: Sequence[NDArray[np.int64]]
    """In increasing order, by state."""
    next: Sequence[NDArray[np.int64]]
    """Where each of them leads."""
    initial: int
    final: NDArray[np.bool_]
    """Where the text may end."""


class Grammar:
    """An automaton over tokens, with bounds on how many are taken."""

    def __init__(
        self, automaton: Automaton, allowed: NDArray[np.int64], terminator_id: int, min_len: int, max_len: int
    ) -> None:
        """`allowed` are the mask's tokens in increasing order, ⊤ among them. Raises UserError if nothing fits within
        the bounds."""
        self._initial, self._can_stop, self._next = automaton.initial, automaton.final, automaton.next
        self._columns = [np.searchsorted(allowed, tokens) for tokens in automaton.tokens]
        self._allowed, self._min_len, self._max_len = allowed, min_len, max_len
        self._stop_column = int(np.searchsorted(allowed, terminator_id))
        # can_end[t, s]: from state s after t tokens the rationale can end within its bounds.
        self._can_end = np.zeros((max_len + 1, len(self._can_stop)), bool)
        for t in range(max_len, -1, -1):
            self._can_end[t] = self._can_stop if t >= min_len else False
            if t < max_len:
                later = self._can_end[t + 1]
                self._can_end[t] |= [bool(later[targets].any()) for targets in self._next]
        if not self._can_end[0, self._initial]:
            raise UserError(
                "task.max_len", max_len, f"no rationale of {min_len} to {max_len} tokens fits the grammar", "raise it"
            )
        self._rows = lru_cache(maxsize=512)(self._row)

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
    ) -> Grammar:
        """Compile a regular expression for the text before ⊤; `tokens` holds the allowed tokens' texts.

        Raises UserError naming `setting`.
        """
        kept = {token: text for token, text in sorted(tokens.items()) if text and token != terminator_id}
        automaton = _compile(setting, pattern, kept)
        if sum(map(len, automaton.tokens)) > MAX_EDGES:
            raise UserError(setting, pattern, "makes too large an automaton over this model's tokens", _REMEDY)
        return cls(automaton, allowed, terminator_id, min_len, max_len)

    def _states(self, action_ids: Sequence[int] | NDArray[np.int32]) -> list[int]:
        """The states s_0.. that these actions lead through, as far as they stay within the grammar."""
        found = [self._initial]
        for column in np.searchsorted(self._allowed, np.asarray(action_ids, np.int64)).tolist():
            columns = self._columns[found[-1]]
            place = int(np.searchsorted(columns, column))
            if place == len(columns) or columns[place] != column:
                break
            found.append(int(self._next[found[-1]][place]))
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
        return bool(self._can_stop[state]) and self._min_len <= t

    def _row(self, t: int, state: int) -> NDArray[np.bool_]:
        row = np.zeros(len(self._allowed), bool)
        if t < self._max_len:
            row[self._columns[state][self._can_end[t + 1][self._next[state]]]] = True
        row[self._stop_column] = self._stops(t, state)
        row.flags.writeable = False
        return row

    def __getstate__(self) -> dict[str, Any]:
        """Without what is kept for speed: vLLM hands the mask on to its workers."""
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = lru_cache(maxsize=512)(self._row)


def regex_of_schema(setting: str, schema: Mapping[str, Any]) -> str:
    """A regular expression for JSON texts that fit a schema; raises UserError naming `setting`."""
    from outlines_core.json_schema import build_regex_from_schema

    try:
        return str(build_regex_from_schema(json.dumps(schema)))
    except Exception as error:
        raise UserError(setting, schema, f"is no schema that can be used ({error})", "simplify it") from error


def _compile(setting: str, pattern: str, tokens: Mapping[int, str]) -> Automaton:
    """In a process of its own, as some expressions take hours and gigabytes."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_build, args=(sender, pattern, tokens), daemon=True)
    process.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(COMPILE_LIMIT_S) else f"takes longer than {COMPILE_LIMIT_S:g} s"
    except EOFError:
        found = "could not be compiled"
    finally:
        process.kill()
        process.join()
    if isinstance(found, str):
        raise UserError(setting, pattern, found, _REMEDY)
    automaton: Automaton = found
    return automaton


def _build(sender: Any, pattern: str, tokens: Mapping[int, str]) -> None:
    import interegular

    try:
        machine = interegular.parse_pattern(pattern).to_fsm()
    except Exception as error:
        sender.send(f"is no regular expression that can be used ({error})")
        return
    sender.send(_over_tokens(machine, tokens))


def _over_tokens(machine: Any, tokens: Mapping[int, str]) -> Automaton:
    """An automaton over characters walked along every token at once, from every state."""
    states = sorted(machine.states)
    number = {state: i for i, state in enumerate(states)}
    dead, symbols = len(states), sorted(machine.alphabet.by_transition)
    step = np.full((dead + 1, len(symbols) + 1), dead, np.int32)
    column = {symbol: i for i, symbol in enumerate(symbols)}
    for state, targets in machine.map.items():
        for symbol, to in targets.items():
            step[number[state], column[symbol]] = number[to]
    # Behind a token's end stands a symbol that leaves every state as it is.
    stay = len(symbols)
    step[:, stay] = np.arange(dead + 1)
    ids = np.fromiter(tokens, np.int64, len(tokens))
    spelled = np.full((len(ids), max(map(len, tokens.values()), default=0)), stay, np.int32)
    for row, text in zip(spelled, tokens.values(), strict=True):
        row[: len(text)] = [column[machine.alphabet[character]] for character in text]
    found = []
    for state in range(len(states)):
        ends = np.full(len(ids), state, np.int32)
        for place in range(spelled.shape[1]):
            ends = step[ends, spelled[:, place]]
        alive = ends != dead
        found.append((ids[alive], ends[alive].astype(np.int64)))
    final = np.isin(states, list(machine.finals))
    return Automaton([a for a, _ in found], [b for _, b in found], number[machine.initial], final)
