"""A regular expression as Python reads it, made an automaton over characters.

Python's own parser reads the expression, and Python itself says which characters each of its sets holds, so that flags,
classes and escapes mean here what they mean to `re.fullmatch`. What isn't regular is refused.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from functools import lru_cache

# The modules that `re` itself is made of: a second parser would read some expressions otherwise.
from re import _compiler, _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from common.automata import CharacterAutomaton, Look, Net, Unusable, deterministic

_ANY = r"[\s\S]"
_EMPTY_HAS_NO_INSIDE = re.fullmatch(r"\B", "") is None
"""Before Python 3.14."""
ANCHORS = {
    _constants.AT_BEGINNING: rf"(?<!{_ANY})",
    _constants.AT_BEGINNING_STRING: rf"(?<!{_ANY})",
    _constants.AT_BEGINNING_LINE: r"(?<![^\n])",
    _constants.AT_END: rf"(?![^\n]|\n{_ANY})",
    _constants.AT_END_STRING: rf"(?!{_ANY})",
    _constants.AT_END_LINE: r"(?![^\n])",
    _constants.AT_BOUNDARY: r"(?:(?<=\w)(?!\w)|(?<!\w)(?=\w))",
    _constants.AT_NON_BOUNDARY: r"(?:(?<=\w)(?=\w)|(?<!\w)(?!\w))"
    + (rf"(?:(?<={_ANY})|(?={_ANY}))" if _EMPTY_HAS_NO_INSIDE else ""),
}
"""Each said by lookarounds."""
_OF_LINES = {_constants.AT_BEGINNING: _constants.AT_BEGINNING_LINE, _constants.AT_END: _constants.AT_END_LINE}
_SETS = (_constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN)
_POSIX_CLASS = re.compile(r"\[:\^?(?:alnum|alpha|blank|cntrl|digit|graph|lower|print|punct|space|upper|word|xdigit):\]")
_REFUSED = {
    _constants.GROUPREF: ("a reference to a group, such as \\1", "write out what it is to repeat, or its alternatives"),
    _constants.GROUPREF_EXISTS: ("a condition on a group, such as (?(1)a|b)", "write both cases as alternatives"),
    _constants.ATOMIC_GROUP: ("an atomic group, (?>…)", "write (?:…), or say what may not follow by a lookahead (?!…)"),
    _constants.POSSESSIVE_REPEAT: (
        "a possessive repetition, such as a++",
        "take its second + away, or say what may not follow by a lookahead (?!…)",
    ),
}


def automaton_of(pattern: str, characters: Iterable[str]) -> CharacterAutomaton:
    """Accepts those texts of these characters that `re.fullmatch` does; raises Unusable."""
    try:
        tree = parsed(pattern)
        writer = _Writer()
        writer.net.last = writer.write(tree, tree.state.flags, writer.net.place())
    except (re.error, OverflowError) as error:
        raise Unusable(
            f"is no regular expression ({error})", "mend it: it is read as by Python's re.fullmatch"
        ) from error
    except RecursionError as error:
        raise Unusable("is nested too deeply", "simplify it") from error
    alphabet = sorted(set(characters))
    sets = [frozenset(c for c in alphabet if contains(c)) for contains in writer.sets]
    return deterministic(writer.net, sets, alphabet)


def parsed(pattern: str) -> Any:
    """By Python's own parser; raises what `re.compile` does, and Unusable for a class such as [[:alpha:]], which Python
    takes for a set of its letters."""
    if _POSIX_CLASS.search(pattern):
        raise _nested_set()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Possible nested set", FutureWarning)
        try:
            tree = _parser.parse(pattern)
            # Some is refused after parsing only: a lookbehind of several widths.
            re.compile(pattern)
        except FutureWarning as error:
            raise _nested_set() from error
    return tree


def _nested_set() -> Unusable:
    return Unusable(
        "holds a bracket within a set, as in [[:alpha:]], which Python's re takes for a character of the set",
        r"list the characters, as in [A-Za-z], or write \[ for the bracket itself",
    )


def unusable(kind: Any) -> Unusable:
    """Why an item of a parsed expression is refused."""
    problem, remedy = _REFUSED.get(kind, (f"what Python calls {kind}", "write it otherwise"))
    return Unusable(f"holds {problem}, which no mask can follow", remedy)


class _Writer:
    """Writes a parsed expression into a net."""

    def __init__(self) -> None:
        self.net = Net()
        self.sets: list[Any] = []
        """What says whether a character is in the set of that number."""
        self._numbers: dict[Any, int] = {}
        self._aheads: dict[Any, int] = {}
        self._trackers: dict[Any, int] = {}

    def write(self, items: Iterable[Any], flags: int, at: int, behind: bool = False) -> int:
        """A way from place `at` for each text that the items match; the place that it ends at. `behind`: the items
        stand in a lookbehind."""
        for kind, value in items:
            if kind in _SETS:
                at = self._move(self._set((kind, value), flags), at)
            elif kind is _constants.BRANCH:
                at = self._join([self.write(option, flags, at, behind) for option in value[1]])
            elif kind is _constants.SUBPATTERN:
                _, added, removed, inner = value
                at = self.write(inner, _compiler._combine_flags(flags, added, removed), at, behind)
            elif kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
                # Greedy or not, the whole text has to match: the same texts do.
                at = self._repeat(value, flags, at, behind)
            elif kind in (_constants.ASSERT, _constants.ASSERT_NOT, _constants.AT, _constants.FAILURE):
                at = self._look(kind, value, flags, at, behind)
            else:
                raise unusable(kind)
        return at

    def _set(self, item: Any, flags: int) -> int:
        key = (repr(item), flags)
        if key not in self._numbers:
            self._numbers[key] = len(self.sets)
            self.sets.append(_set_of(item, flags))
        return self._numbers[key]

    def _move(self, number: int, at: int) -> int:
        target = self.net.place()
        self.net.moves[at].append((number, target))
        return target

    def _join(self, ends: Iterable[int]) -> int:
        target = self.net.place()
        for end in ends:
            self.net.free[end].append(target)
        return target

    def _repeat(self, value: Any, flags: int, at: int, behind: bool) -> int:
        least, most, item = value
        endless = most is _constants.MAXREPEAT
        # The last one that has to come may come again: a copy more would double what is nested with each level.
        for _ in range(least - 1 if endless else least):
            at = self.write(item, flags, self._join([at]), behind)
        if endless:
            again = self._join([at])
            end = self._join([self.write(item, flags, again, behind)])
            self.net.free[end].append(again)
            return self._join([end] if least else [again])
        ends = [at]
        for _ in range(most - least):
            ends.append(self.write(item, flags, self._join([ends[-1]]), behind))
        return self._join(ends)

    def _look(self, kind: Any, value: Any, flags: int, at: int, behind: bool) -> int:
        if behind:
            raise Unusable("holds an assertion within a lookbehind", "say it outside of the lookbehind (?<…)")
        if kind is _constants.FAILURE:
            return self.net.place()
        if kind is _constants.AT:
            anchor = _OF_LINES.get(value, value) if flags & re.MULTILINE else value
            # Case means nothing to them.
            flags &= re.ASCII | re.UNICODE
            return self.write(_parser.parse(ANCHORS[anchor]), flags, at)
        direction, item = value
        target, negated = self.net.place(), kind is _constants.ASSERT_NOT
        if direction > 0:
            self.net.aheads[at].append(Look(negated, self._ahead(item, flags), target))
        else:
            self.net.behinds[at].append(Look(negated, self._tracker(item, flags), target))
        return target

    def _ahead(self, item: Any, flags: int) -> int:
        """Where the lookahead for an item starts, the same wherever it stands."""
        key = (repr(item), flags)
        if key not in self._aheads:
            self._aheads[key] = self.net.place()
            self.net.found.add(self._join([self.write(item, flags, self._aheads[key])]))
        return self._aheads[key]

    def _tracker(self, item: Any, flags: int) -> int:
        """The number of what looks for a lookbehind's item."""
        key = (repr(item), flags)
        if key not in self._trackers:
            start = self.net.place()
            end = self._join([self.write(item, flags, start, behind=True)])
            self._trackers[key] = len(self.net.trackers)
            self.net.trackers.append((start, end))
        return self._trackers[key]


def _set_of(item: Any, flags: int) -> Any:
    """Python's own matcher of this one item."""
    state = _parser.State()
    state.flags = flags
    return lru_cache(maxsize=None)(_compiler.compile(_parser.SubPattern(state, [item])).fullmatch)
