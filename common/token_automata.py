"""An automaton over characters walked along the tokens of a vocabulary: an automaton over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.automata import CharacterAutomaton, Unusable, too_large

MAX_EDGES = 20_000_000
"""Tokens of all fans together; each takes some 10 bytes."""


@dataclass(frozen=True)
class Fan:
    """The tokens that lead on from a state. States whose tokens part in the same manner share one, as a vocabulary is
    large and a string of counted length has a state a character."""

    tokens: NDArray[np.int32]
    """In increasing order."""
    way: NDArray[np.int16]
    """Which of the state's ways each takes."""


@dataclass(frozen=True)
class TokenAutomaton:
    """States 0..n-1, of which 0 is the first; from each some text of tokens leads to an end."""

    fans: Sequence[Fan]
    """By state."""
    targets: Sequence[NDArray[np.int32]]
    """Where the ways from each state lead."""
    final: NDArray[np.bool_]
    """Where the text may end."""
    misses_terminator: bool
    """Whether ⊤'s own text could stand within, if it didn't end the text."""

    @cached_property
    def sources(self) -> NDArray[np.int64]:
        """Where each way of `ends` leads from, in increasing order."""
        return np.repeat(np.arange(len(self.targets)), [len(own) for own in self.targets])

    @cached_property
    def ends(self) -> NDArray[np.int32]:
        """The targets of all states, one after another."""
        return np.concatenate([*self.targets, np.zeros(0, np.int32)])

    def along(self, kept: NDArray[np.bool_]) -> TokenAutomaton:
        """With those ways only, given for each of `ends`."""
        fans, targets, known = list[Fan](), list[NDArray[np.int32]](), dict[tuple[int, bytes], Fan]()
        own = np.split(kept, np.cumsum([len(ways) for ways in self.targets])[:-1])
        for fan, ways, mask in zip(self.fans, self.targets, own, strict=True):
            key = (id(fan), mask.tobytes())
            if key not in known:
                left = mask[fan.way]
                number = (np.cumsum(mask) - 1).astype(np.int16)
                known[key] = fan if mask.all() else Fan(fan.tokens[left], number[fan.way[left]])
            fans.append(known[key])
            targets.append(ways[mask])
        return replace(self, fans=fans, targets=targets)


def over_tokens(machine: CharacterAutomaton, tokens: Mapping[int, str], terminator_id: int) -> TokenAutomaton:
    """An automaton over these tokens, ⊤ left out. Raises Unusable where no text of them is accepted, or where it gets
    too large."""
    fans, targets, known, edges = list[Fan](), list[NDArray[np.int32]](), dict[tuple[bytes, bytes], Fan](), 0
    walks = _Walks(machine, {token: text for token, text in tokens.items() if token != terminator_id})
    number, waiting = {machine.first: 0}, [machine.first]
    for state in waiting:
        found, way, ends = walks.walk(state)
        key = (found.tobytes(), way.tobytes())
        if key not in known:
            known[key] = Fan(found, way)
            edges += len(found)
            if edges > MAX_EDGES:
                raise too_large("makes too large an automaton over this model's tokens")
        for end in ends.tolist():
            if end not in number:
                number[end] = len(number)
                waiting.append(end)
        fans.append(known[key])
        targets.append(np.array([number[end] for end in ends.tolist()], np.int32))
    within = np.arange(len(machine.final))
    for character in tokens.get(terminator_id, ""):
        within = machine.step[within, machine.symbol[character]]
    wants = (within != machine.dead)[waiting] & (terminator_id in tokens)
    whole = TokenAutomaton(fans, targets, machine.final[waiting], False)
    alive, before = whole.final.copy(), -1
    while (n := int(alive.sum())) != before:
        before = n
        alive[whole.sources[alive[whole.ends]]] = True
    if not alive[0]:
        raise _nothing_matches(bool(wants.any()))
    return replace(whole.along(alive[whole.ends]), misses_terminator=bool((wants & alive).any()))


def _nothing_matches(needs_terminator: bool) -> Unusable:
    if needs_terminator:
        return Unusable(
            "needs the token task.terminator within the text, which it ends", "choose another task.terminator"
        )
    return Unusable(
        "matches no text of the allowed tokens",
        "look which characters it needs: task.allowed_characters, if set, must let them through",
    )


class _Walks:
    """Walks along every token at once."""

    def __init__(self, machine: CharacterAutomaton, tokens: Mapping[int, str]) -> None:
        self._machine = machine
        self._ids = np.fromiter(tokens, np.int32, len(tokens))
        self._lengths = np.fromiter(map(len, tokens.values()), np.int32, len(tokens))
        # Symbols by place, so that a place's are next to each other.
        self._spelled = np.zeros((max(self._lengths, default=1), len(tokens)), np.int32)
        for column, text in enumerate(tokens.values()):
            self._spelled[: len(text), column] = [machine.symbol[character] for character in text]

    def walk(self, state: int) -> tuple[NDArray[np.int32], NDArray[np.int16], NDArray[np.int32]]:
        """The tokens that lead on from a state, the way that each takes, and where the ways lead.

        Ways are numbered as tokens first take them, whatever the states' own numbers.
        """
        machine, ends = self._machine, np.full(len(self._ids), self._machine.dead, np.int32)
        going = np.flatnonzero((machine.step[state] != machine.dead)[self._spelled[0]])
        at = np.full(len(going), state, np.int32)
        for place, symbols in enumerate(self._spelled):
            at = machine.step[at, symbols[going]]
            going, at = going[at != machine.dead], at[at != machine.dead]
            whole = self._lengths[going] == place + 1
            ends[going[whole]] = at[whole]
            going, at = going[~whole], at[~whole]
            if not len(going):
                break
        leading = np.flatnonzero(ends != machine.dead)
        to = ends[leading]
        first = np.full(len(machine.final), len(to), np.int32)
        first[to[::-1]] = np.arange(len(to), dtype=np.int32)[::-1]
        unsorted = np.flatnonzero(first < len(to)).astype(np.int32)
        taken = unsorted[np.argsort(first[unsorted])]
        way = np.zeros(len(machine.final), np.int16)
        way[taken] = np.arange(len(taken))
        return self._ids[leading], way[to], taken
