"""Which series a PromQL expression asks for, as far as this repository's expressions go."""

from __future__ import annotations

import re

_KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_RANGE = re.compile(r"\[[^\]]*\]")
_ARGUMENT = re.compile(r'"[^"]*"\s*,')
"""A string that is a function's argument, as opposed to a label's value."""
_SELECTOR = re.compile(r"(?<![\w:.$])([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(?!\s*\(|[\w:])")


def selectors(expr: str) -> list[str]:
    """Every instant selector, such as `up{job="ray"}`."""
    labels: list[str] = []

    def keep(match: re.Match[str]) -> str:
        labels.append(match.group())
        return f"{{{len(labels) - 1}}}"

    # Label matchers are set aside, so that what they hold isn't read as PromQL.
    plain = re.sub(r"\{[^}]*\}", keep, expr)
    for pattern in (_GROUPING, _RANGE, _ARGUMENT):
        plain = pattern.sub(" ", plain)
    return [
        name + (labels[int(kept[1:-1])] if kept else "")
        for name, kept in _SELECTOR.findall(plain)
        if name.lower() not in _KEYWORDS
    ]


def metric_names(expr: str) -> set[str]:
    """Names of the metrics and recorded series that an expression asks for."""
    return {selector.split("{")[0] for selector in selectors(expr)}
