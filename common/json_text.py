"""JSON as its standard has it: what Python reads and writes beyond that is no JSON for others, or breaks later."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class NoJson(ValueError):
    """Why a text is no JSON."""

    def __init__(self, reason: str, line: int = 1) -> None:
        self.line = line
        """Of the text, from 1."""
        super().__init__(f"no JSON ({reason})")


@dataclass(frozen=True)
class UnusableValue:
    """Stands in place of a value that can't be used."""

    why: str


def loads(text: str) -> Any:
    """What a text holds; raises NoJson. In objects a name that stands twice, and an integer that Python can't hold,
    become UnusableValue, so that they spoil no more than the row that they are in.

    NaN and Infinity, which Python's own `json` writes, are read, as columns that nobody asks for may hold them.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise NoJson(error.msg, error.lineno) from error
    except RecursionError as error:
        raise NoJson("it is nested too deep") from error


def loads_strictly(text: str) -> Any:
    """What a text holds, where every value matters: raises ValueError, or RecursionError, for all that `loads` raises
    NoJson for, lets stand or reads."""
    return json.loads(text, object_pairs_hook=_object_without_repeats, parse_constant=_no_number)


def dumps(value: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """Valid JSON: a number that is not finite, of which JSON has none, becomes null; `default` is asked what to
    write in place of other values that it doesn't have."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, default=default)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        found.update({name: UnusableValue("stands twice") for name, count in counts.items() if count > 1})
    return found


def _object_without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = _object(pairs)
    for name, value in found.items():
        if isinstance(value, UnusableValue):
            raise NoJson(f"{name!r} {value.why}")
    return found


def _no_number(text: str) -> Any:
    raise NoJson(f"{text} is no number")


def _integer(text: str) -> int | UnusableValue:
    try:
        return int(text)
    except ValueError:
        return UnusableValue(f"is an integer of {len(text.removeprefix('-'))} digits")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
