"""Texts with places: `{name}` is filled in; `{{` and `}}` stand for braces, as in Python's format strings.

Unlike there a name may hold any character but a brace, as the columns of a file do, and nothing is said of its format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

_PART = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]")
LITERAL_BRACES = "write a brace that stands for itself twice: {{ or }}"


def fill(template: str, value: Callable[[str], str]) -> str:
    """The text with the value of each place in it, verbatim; `value` may raise. Raises ValueError for a lone brace."""

    def part(match: re.Match[str]) -> str:
        if match[1] is not None:
            return value(match[1])
        if len(match[0]) == 1:
            shown = template[match.start() : match.start() + 20]
            raise ValueError(f"a lone {match[0]} at character {match.start() + 1}, {shown!r}: {LITERAL_BRACES}")
        return match[0][0]

    return _PART.sub(part, template)


def places(template: str) -> list[str]:
    """The names in it, in their order; raises ValueError for a lone brace."""
    found: list[str] = []

    def note(name: str) -> str:
        found.append(name)
        return ""

    fill(template, note)
    return list(dict.fromkeys(found))


def check_template(template: str, known: Collection[str] | None = None) -> str:
    """The template itself; raises ValueError for a lone brace and, where all names are known, for any other, and for
    one without a text."""
    if known is not None and not template.strip():
        raise ValueError("is empty, which leaves nothing to continue")
    for name in places(template):
        if known is not None and name not in known:
            there = " and ".join(f"{{{item}}}" for item in known)
            raise ValueError(f"{{{name}}} stands for nothing here, {there} is what there is: {LITERAL_BRACES}")
    return template
