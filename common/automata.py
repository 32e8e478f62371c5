"""Finite automata over characters: a net with lookarounds becomes a minimal deterministic automaton.

A net is nondeterministic. It is made deterministic by following all of its threads at once. A thread that has passed a
lookahead owes it: the lookahead's own threads follow the text from there, and what they find keeps the thread or ends
it. A lookbehind asks a tracker, which looks for its text from the beginning on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MOST_STATES = 20_000
MOST_PLACES = 200_000
"""Of a net; each takes some 500 bytes."""


class Unusable(Exception):
    """What was given can't become an automaton; says why, and what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(problem, remedy)


def too_large(problem: str = "makes too large an automaton") -> Unusable:
    """Where counted repetitions multiply."""
    return Unusable(
        problem,
        "shorten its counted repetitions, such as {1,80}, maxLength or maxItems: task.max_len bounds the length anyhow",
    )


@dataclass(frozen=True)
class Look:
    """A way that is open only where what follows, or what stands before, is or isn't as wanted."""

    negated: bool
    find: int
    """Where the lookahead starts, or the number of the lookbehind's tracker."""
    target: int


@dataclass
class Net:
    """Places 0..n-1, of which 0 is the first, and the ways between them."""

    moves: list[list[tuple[int, int]]] = field(default_factory=list)
    """By place: the number of a set of characters, any of which leads on, and where to."""
    free: list[list[int]] = field(default_factory=list)
    """By place: where it leads without a character."""
    aheads: list[list[Look]] = field(default_factory=list)
    behinds: list[list[Look]] = field(default_factory=list)
    found: set[int] = field(default_factory=set)
    """Ends of lookaheads: whatever follows, they have been found."""
    trackers: list[tuple[int, int]] = field(default_factory=list)
    """First and last place of each lookbehind."""
    last: int = 0

    def place(self) -> int:
        """A new one; raises Unusable where there are too many."""
        if len(self.moves) >= MOST_PLACES:
            raise too_large()
        for table in (self.moves, self.free, self.aheads, self.behinds):
            table.append([])
        return len(self.moves) - 1


@dataclass(frozen=True)
class CharacterAutomaton:
    """A deterministic one, complete: every symbol leads somewhere from every state."""

    symbol: dict[str, int]
    """Characters that no set tells apart share one."""
    step: NDArray[np.int32]
    """Where each symbol leads from each state, shape (n_states, n_symbols)."""
    final: NDArray[np.bool_]
    """Where a text may end, shape (n_states,)."""
    first: int
    dead: int
    """The state from which no text leads to an end."""

    def accepts(self, text: str) -> bool:
        """Whether a text of its characters is in the language."""
        state = self.first
        for character in text:
            state = int(self.step[state, self.symbol[character]])
        return bool(self.final[state])


def deterministic(net: Net, sets: Sequence[frozenset[str]], characters: Iterable[str]) -> CharacterAutomaton:
    """The minimal automaton for texts of these characters; raises Unusable where it gets too large."""
    kinds: dict[tuple[bool, ...], int] = {}
    symbol = {c: kinds.setdefault(tuple(c in members for members in sets), len(kinds)) for c in characters}
    members = [frozenset(number for kind, number in kinds.items() if kind[i]) for i in range(len(sets))]
    step, final = _Threads(net, members).all_states(len(kinds))
    label = _minimal(step, final)
    kept = np.unique(label, return_index=True)[1]
    return CharacterAutomaton(symbol, label[step[kept]], final[kept], int(label[0]), int(label[-1]))


Thread = tuple[int, frozenset["Debt"]]
"""A place, and the lookaheads that what follows must still satisfy."""
Debt = tuple[bool, frozenset[Thread]]
"""Whether it is negated, and where its own threads are."""
Threads = frozenset[Thread]
Position = tuple[Threads, tuple[Threads, ...]]
"""The threads of the net and of its trackers: a state of the deterministic automaton."""

_NOTHING: frozenset[Debt] = frozenset()


class _Threads:
    """Follows the threads of a net; symbols stand for characters."""

    def __init__(self, net: Net, members: Sequence[frozenset[int]]) -> None:
        self._net, self._members = net, members
        lasting = {place for place, moves in enumerate(net.moves) if moves}
        self._lasting = lasting | net.found | {net.last} | {last for _, last in net.trackers}

    def all_states(self, n_symbols: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Where each symbol leads from each state, and which are final; the dead state is the last."""
        trackers = tuple(self._closed([(start, _NOTHING)], ()) for start, _ in self._net.trackers)
        first = (self._closed([(0, _NOTHING)], trackers), trackers)
        number: dict[Position, int] = {first: 0}
        waiting, rows = [first], list[list[int]]()
        for position in waiting:
            row = [-1] * n_symbols
            for symbol in self._symbols(position[0]):
                after = self._after(position, symbol)
                if not after[0]:
                    continue
                if after not in number:
                    if len(number) >= MOST_STATES:
                        raise too_large()
                    number[after] = len(number)
                    waiting.append(after)
                row[symbol] = number[after]
            rows.append(row)
        step = np.array([*rows, [-1] * n_symbols], np.int32).reshape(len(rows) + 1, n_symbols)
        step[step < 0] = len(rows)
        return step, np.array([*(self._ends(threads) for threads, _ in waiting), False])

    def _symbols(self, threads: Threads) -> list[int]:
        sets = {number for place, _ in threads for number, _ in self._net.moves[place]}
        return sorted(frozenset().union(*(self._members[number] for number in sets)))

    def _after(self, position: Position, symbol: int) -> Position:
        threads, trackers = position
        # A lookbehind's text may begin anywhere.
        behind = tuple(
            self._stepped(tracker | {(start, _NOTHING)}, symbol, (), again=start)
            for tracker, (start, _) in zip(trackers, self._net.trackers, strict=True)
        )
        return self._stepped(threads, symbol, behind), behind

    def _stepped(self, threads: Threads, symbol: int, behind: Sequence[Threads], again: int | None = None) -> Threads:
        """The threads behind a character, `again` among them; `behind` are the trackers there."""
        out = [] if again is None else [(again, _NOTHING)]
        for place, debts in threads:
            targets = [target for number, target in self._net.moves[place] if symbol in self._members[number]]
            if place in self._net.found:
                targets.append(place)
            if targets:
                left = self._left([(negated, self._stepped(own, symbol, behind)) for negated, own in debts])
                if left is not None:
                    out += [(target, left) for target in targets]
        return self._closed(out, behind)

    def _closed(self, threads: Iterable[Thread], behind: Sequence[Threads]) -> Threads:
        """With all that they lead to without a character."""
        owed: dict[int, list[frozenset[Debt]]] = {}
        waiting = list(threads)
        while waiting:
            place, debts = waiting.pop()
            # Who gets here owing less gets on wherever this one does.
            if any(less <= debts for less in owed.get(place, ())):
                continue
            owed[place] = [debts, *(more for more in owed.get(place, ()) if not debts <= more)]
            # What costs nothing is looked at first.
            for look in self._net.aheads[place]:
                left = self._left([(look.negated, self._closed([(look.find, _NOTHING)], behind))])
                if left is not None:
                    waiting.append((look.target, debts | left))
            for look in self._net.behinds[place]:
                if ((self._net.trackers[look.find][1], _NOTHING) in behind[look.find]) != look.negated:
                    waiting.append((look.target, debts))
            waiting += [(target, debts) for target in self._net.free[place]]
        return frozenset((place, debts) for place in owed.keys() & self._lasting for debts in owed[place])

    def _left(self, debts: Iterable[Debt]) -> frozenset[Debt] | None:
        """What is still open of them; None where one is decided against the thread."""
        left = set[Debt]()
        for negated, own in debts:
            met = any(place in self._net.found and not owed for place, owed in own)
            if not met and own:
                left.add((negated, own))
            elif met is negated:
                return None
        return frozenset(left)

    def _ends(self, threads: Threads) -> bool:
        """Whether the text may end here."""
        return any(place == self._net.last and self._paid(debts) for place, debts in threads)

    def _paid(self, debts: frozenset[Debt]) -> bool:
        """At the end of the text, where nothing more can follow."""
        return all(
            any(place in self._net.found and self._paid(owed) for place, owed in own) is not negated
            for negated, own in debts
        )


def _minimal(step: NDArray[np.int32], final: NDArray[np.bool_]) -> NDArray[np.int32]:
    """A number for each state, 0 and up, the same for states from which the same texts lead to an end (Moore 1956).

    Only states that lead to renumbered ones are looked at again, or long chains would take quadratic time.
    """
    label = final.astype(np.int32)
    members = {number: set(np.flatnonzero(label == number).tolist()) for number in (0, 1)}
    before: list[set[int]] = [set() for _ in label]
    for state, targets in enumerate(step):
        for target in np.unique(targets).tolist():
            before[target].add(state)
    touched = set(range(len(label)))
    while touched:
        groups: dict[int, dict[bytes, set[int]]] = {}
        for state in touched:
            signature = label[step[state]].tobytes()
            groups.setdefault(int(label[state]), {}).setdefault(signature, set()).add(state)
        touched = set()
        for number, parts in groups.items():
            split = sorted(parts.values(), key=len)
            if sum(map(len, split)) == len(members[number]):
                # All were looked at: the largest part keeps the number.
                split.pop()
            for part in split:
                new = len(members)
                members[new] = part
                members[number] -= part
                label[list(part)] = new
                touched |= {state for member in part for state in before[member]}
    return np.unique(label, return_inverse=True)[1].astype(np.int32)
