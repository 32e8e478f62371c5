"""A hard mask from a regular expression: which tokens may follow, and where the rationale may end.

The expression becomes an automaton over tokens. On top of it stands a count of the tokens that are left: a token is
allowed only if the rationale can still end within its bounds, so that no sample is ever cut off in the middle. vLLM's
own structured outputs know no such bounds, which is why they are not used: the sampler and the learner ask this object.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.automata import CharacterAutomaton, Unusable, too_large
from common.errors import UserError
from common.expressions import automaton_of

COMPILE_LIMIT_S = 60.0
MAX_EDGES = 20_000_000
"""Of the automaton; each takes some 12 bytes."""


@dataclass(frozen=True)
class Automaton:
    """States 0..n-1 with the tokens that lead on from each; 0 is the first."""

    tokens: Sequence[NDArray[np.int32]]
    """In increasing order, by state."""
    next: Sequence[NDArray[np.int32]]
    """Where each of them leads."""
    final: NDArray[np.bool_]
    """Where the text may end."""


class Grammar:
    """An automaton over tokens, with bounds on how many are taken."""

    def __init__(
        self, automaton: Automaton, allowed: NDArray[np.int64], terminator_id: int, min_len: int, max_len: int
    ) -> None:
        """`allowed` are the mask's tokens in increasing order, ⊤ among them. Raises UserError if nothing fits within
        the bounds."""
        self._automaton, self._allowed, self._terminator_id = automaton, allowed, terminator_id
        self._min_len, self._max_len = min_len, max_len
        self.misses_terminator = False
        """Whether the expression would let ⊤'s own text stand within the rationale."""
        self._can_stop, self._next = automaton.final, automaton.next
        self._columns = [np.searchsorted(allowed, tokens).astype(np.int32) for tokens in automaton.tokens]
        self._stop_column = int(np.searchsorted(allowed, terminator_id))
        self._from, self._to = _pairs(automaton.next)
        # can_end[t, s]: from state s after t tokens the rationale can end within its bounds.
        self._can_end = np.zeros((max_len + 1, len(self._can_stop)), bool)
        for t in range(max_len, -1, -1):
            self._can_end[t] = self._can_stop if t >= min_len else False
            if t < max_len:
                self._can_end[t, self._from[self._can_end[t + 1, self._to]]] = True
        if not self._can_end[0, 0]:
            raise self._nothing_fits()
        self._rows = lru_cache(maxsize=512)(self._row)

    def _nothing_fits(self) -> UserError:
        problem = f"no rationale of {self._min_len} to {self._max_len} tokens fits the grammar"
        shortest = _shortest(self._from, self._to, self._can_stop)
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
            found = _compile(pattern, {token: text for token, text in sorted(tokens.items()) if text})
            automaton = _without(found, terminator_id)
        except Unusable as error:
            raise UserError(setting, pattern if shown is None else shown, error.problem, error.remedy) from error
        grammar = cls(automaton, allowed, terminator_id, min_len, max_len)
        grammar.misses_terminator = automaton is not found
        return grammar

    def narrowed(self) -> Grammar:
        """The same over those tokens alone that a rationale can take, and ⊤."""
        automaton, reached = self._automaton, np.zeros(len(self._can_stop), bool)
        reached[0] = True
        live = np.zeros(len(self._from), bool)
        for t in range(self._max_len):
            ways = reached[self._from] & self._can_end[t + 1, self._to]
            live |= ways
            reached = np.zeros_like(reached)
            reached[self._to[ways]] = True
        tokens, targets = list[NDArray[np.int32]](), list[NDArray[np.int32]]()
        ends = np.searchsorted(self._from, np.arange(len(reached) + 1))
        for own, to, a, b in zip(automaton.tokens, automaton.next, ends[:-1], ends[1:], strict=True):
            kept = np.isin(to, self._to[a:b][live[a:b]])
            tokens.append(own[kept])
            targets.append(to[kept])
        taken = np.unique(np.concatenate([*tokens, [self._terminator_id]])).astype(np.int64)
        narrow = Automaton(tokens, targets, automaton.final)
        return Grammar(narrow, taken, self._terminator_id, self._min_len, self._max_len)

    @property
    def allowed_ids(self) -> tuple[int, ...]:
        """The mask's tokens in increasing order, ⊤ among them."""
        return tuple(self._allowed.tolist())

    def _states(self, action_ids: Sequence[int] | NDArray[np.int32]) -> list[int]:
        """The states s_0.. that these actions lead through, as far as they stay within the grammar."""
        found = [0]
        for token in np.asarray(action_ids, np.int32):
            tokens = self._automaton.tokens[found[-1]]
            place = int(np.searchsorted(tokens, token))
            if place == len(tokens) or tokens[place] != token:
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


def _pairs(targets: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which states lead to which: source and target of each pair."""
    each = [np.flatnonzero(np.bincount(to, minlength=1)) for to in targets]
    sources = np.repeat(np.arange(len(each)), [len(to) for to in each])
    return sources, np.concatenate([*each, np.zeros(0, np.int64)])


def _shortest(sources: NDArray[np.int64], targets: NDArray[np.int64], final: NDArray[np.bool_]) -> int:
    """How many tokens lead to an end at least; there is one."""
    reached, n = np.arange(len(final)) == 0, 0
    while not (reached & final).any():
        reached[targets[reached[sources]]] = True
        n += 1
    return n


def _compile(pattern: str, tokens: Mapping[int, str]) -> Automaton:
    """In a process of its own, as some expressions take hours; raises Unusable."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_build, args=(sender, pattern, tokens), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(COMPILE_LIMIT_S):
            raise too_large(f"takes longer than {COMPILE_LIMIT_S:g} s")
        found: Automaton | Unusable = receiver.recv()
    except EOFError as error:
        raise Unusable("could not be compiled", "see the messages above, or simplify it") from error
    finally:
        process.kill()
        process.join()
    if isinstance(found, Unusable):
        raise found
    return found


def _build(sender: Any, pattern: str, tokens: Mapping[int, str]) -> None:
    try:
        sender.send(over_tokens(automaton_of(pattern, "".join(tokens.values())), tokens))
    except Unusable as error:
        sender.send(error)


def over_tokens(machine: CharacterAutomaton, tokens: Mapping[int, str]) -> Automaton:
    """An automaton over characters walked along every token at once, from every state that tokens lead to.

    Raises Unusable where no text of these tokens is accepted, or where it gets too large.
    """
    ids = np.fromiter(tokens, np.int32, len(tokens))
    lengths = np.fromiter(map(len, tokens.values()), np.int64, len(tokens))
    spelled = np.zeros((len(ids), max(lengths, default=0)), np.int32)
    for row, text in zip(spelled, tokens.values(), strict=True):
        row[: len(text)] = [machine.symbol[character] for character in text]
    number, waiting = {machine.first: 0}, [machine.first]
    found: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    edges = 0
    for state in waiting:
        ends = np.full(len(ids), state, np.int32)
        going = np.arange(len(ids))
        for place in range(spelled.shape[1]):
            going = going[(lengths[going] > place) & (ends[going] != machine.dead)]
            ends[going] = machine.step[ends[going], spelled[going, place]]
        alive = np.flatnonzero(ends != machine.dead)
        edges += len(alive)
        if edges > MAX_EDGES:
            raise too_large("makes too large an automaton over this model's tokens")
        for target in np.unique(ends[alive]).tolist():
            if target not in number:
                number[target] = len(number)
                waiting.append(target)
        found.append((ids[alive], ends[alive]))
    place_of = np.zeros(len(machine.final), np.int32)
    place_of[list(number)] = list(number.values())
    return _trimmed([a for a, _ in found], [place_of[b] for _, b in found], machine.final[waiting])


def _without(automaton: Automaton, token: int) -> Automaton:
    """Without the ways that this token leads; the same one where there are none. Raises Unusable if none is left."""
    kept = [own != token for own in automaton.tokens]
    if all(mask.all() for mask in kept):
        return automaton
    tokens = [own[mask] for own, mask in zip(automaton.tokens, kept, strict=True)]
    targets = [own[mask] for own, mask in zip(automaton.next, kept, strict=True)]
    try:
        return _trimmed(tokens, targets, automaton.final)
    except Unusable as error:
        raise Unusable(
            "needs the token task.terminator within the text, which it ends", "choose another task.terminator"
        ) from error


def _trimmed(
    tokens: Sequence[NDArray[np.int32]], targets: Sequence[NDArray[np.int32]], final: NDArray[np.bool_]
) -> Automaton:
    """Without the tokens from which no other leads to an end."""
    sources, to = _pairs(targets)
    alive, before = final.copy(), -1
    while (n := int(alive.sum())) != before:
        before = n
        alive[sources[alive[to]]] = True
    if not alive[0]:
        raise Unusable(
            "matches no text of the allowed tokens",
            "look which characters it needs: task.allowed_characters, if set, must let them through",
        )
    kept = [alive[own] for own in targets]
    return Automaton(
        [own[mask] for own, mask in zip(tokens, kept, strict=True)],
        [own[mask] for own, mask in zip(targets, kept, strict=True)],
        final,
    )
