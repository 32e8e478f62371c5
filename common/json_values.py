"""Values of JSON as JSON schema tells them apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def kind(value: Any) -> str | None:
    """The narrowest type of a value, None for what JSON doesn't know; 1.0 is an integer."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, float):
        return "integer" if value.is_integer() else "number"
    for name, own in (("null", type(None)), ("integer", int), ("string", str), ("array", list), ("object", Mapping)):
        if isinstance(value, own):
            return name
    return None


def spanned(kinds: Iterable[str]) -> set[str]:
    """With the types that these hold: each integer is a number."""
    found = set(kinds)
    return found | {"integer"} if "number" in found else found


def same(one: Any, other: Any) -> bool:
    """Whether two values are one: 1 is 1.0, but not true."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
