"""Figures, times and verdicts in words, as the report has them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from common.diagnostics.estimate import Estimate
from common.diagnostics.verdict import Verdict as Words

NOTHING = "–"
Z95 = 1.96
"""Standard errors on either side of a normal's 95 % interval."""
_KINDS = {Words.GOOD: "good", Words.CORRECT: "correct", Words.REFUSE: "refuse"}
"""Verdicts, and what the page's style calls them."""


@dataclass(frozen=True)
class Row:
    """A figure or a fact with its name."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What was found, in words."""

    words: str
    kind: str
    """Of the page's style."""
    counts: str
    """Of the run's queries, by verdict; empty for a query's own."""
    worst: str
    """Prompt of the worst query; empty where there is one alone."""
    reasons: Sequence[str]
    remedy: str


def verdict_of(diagnosis: Mapping[str, Any]) -> Verdict | None:
    """The run's, with the reasons of its worst query; None where it was not diagnosed."""
    found = diagnosis.get("verdict")
    if not found:
        return None
    queries = [query for query in diagnosis.get("queries") or () if isinstance(query, Mapping)]
    name = str(found.get("worst") or "")
    worst = next((query for query in queries if name and name in (query.get("query_id"), query.get("prompt"))), {})
    judgement = worst.get("judgement") or {}
    counts = found.get("counts") or {}
    return Verdict(
        words=str(found.get("verdict")),
        kind=kind_of(found.get("verdict")),
        counts=", ".join(f"{count} {words}" for words, count in counts.items() if count),
        worst=shortened(str(worst.get("prompt") or name), 300) if len(queries) != 1 else "",
        reasons=[str(reason) for reason in judgement.get("reasons") or ()],
        remedy=str(found.get("remedy") or judgement.get("remedy") or ""),
    )


def judgement_of(judgement: Mapping[str, Any]) -> Verdict:
    """A query's own."""
    words = str(judgement.get("verdict") or "not judged")
    reasons = [str(reason) for reason in judgement.get("reasons") or ()]
    return Verdict(words, kind_of(words), "", "", reasons, str(judgement.get("remedy") or ""))


def kind_of(verdict: object) -> str:
    """How the page's style calls a verdict."""
    return next((kind for words, kind in _KINDS.items() if words == verdict), "unknown")


def is_number(value: object) -> TypeGuard[float]:
    """A finite one, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: object, digits: int = 4) -> str:
    """A number of so many digits; a dash for what is none."""
    if not is_number(value):
        return NOTHING
    return f"{value:,}".replace("-", "−") if isinstance(value, int) else f"{value:.{digits}g}".replace("-", "−")


def percent(value: object) -> str:
    """A share."""
    if not is_number(value):
        return NOTHING
    return f"{100 * value:.3g} %"


def estimate(value: object) -> str:
    """A value with its standard error."""
    if not isinstance(value, Mapping) or not is_number(value.get("value")):
        return NOTHING
    error = value.get("se")
    return f"{value['value']:.3f}".replace("-", "−") + (f" ± {error:.2g}" if is_number(error) else "")


def interval_of(value: object) -> tuple[float, float] | None:
    """An estimate's 95 % interval."""
    if not isinstance(value, Mapping) or not is_number(value.get("value")) or not is_number(value.get("se")):
        return None
    return Estimate(value["value"], value["se"], value.get("degrees")).interval()


def between(ends: object) -> str:
    """Two ends of an interval; an open one has a dash."""
    if not isinstance(ends, Sequence) or isinstance(ends, str) or len(ends) != 2:
        return NOTHING
    return f"{number(ends[0], 3)} to {number(ends[1], 3)}"


def duration(seconds: float) -> str:
    """As people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def when(moment: float) -> str:
    """A time of the day, the same for whoever reads it."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(moment)) + " UTC"


def shortened(text: str, limit: int) -> str:
    """Its beginning, and how much more there is."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text) - limit:,} characters more)"
