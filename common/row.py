"""A row of a user's data, and a column of it as text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Literal

from common.json_text import UnusableValue, dumps
from common.text_files import has_half_pair, why_no_text

MAX_JSON_BYTES = 64 * 2**10
"""Of a row that goes with its query, through Redis and to every actor."""


class BadRow(ValueError):
    """Why a row can't be used."""


class NoColumn(BadRow):
    """A column that a setting names and the row does not have."""

    def __init__(self, column: str, known: Iterable[str], setting: str | None, in_template: bool = False) -> None:
        self.column, self.setting, self.in_template, self.names = column, setting, in_template, list(known)
        self.known = ", ".join(map(repr, self.names[:8])) or "none"
        asked = "" if setting is None else f", which {setting} names"
        super().__init__(f"no column {column!r} (it has {self.known}){asked}")


@dataclass(frozen=True)
class Row:
    """A row and where it stands: a line number, or the number of the record where a file has no lines."""

    number: int
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Why it could not be read."""
    unit: Literal["line", "row"] = "line"
    """What `number` counts."""
    last: int | None = None
    """Its last line, where it stands on several."""

    def text(self, column: str, setting: str | None = None, in_template: bool = False) -> str:
        """A column as text, white space at the ends left out; raises BadRow if it is missing or empty.

        `setting` is what names the column, as a place of a template or alone.
        """
        if column not in self.values:
            raise NoColumn(column, self.values, setting, in_template)
        value = self.values[column]
        if isinstance(value, list) and value and all(isinstance(item, Mapping) and "role" in item for item in value):
            raise BadRow(f"column {column!r} holds messages: set task.chat: true, and name it alone, '{{{column}}}'")
        try:
            text = as_text(value).strip()
        except BadRow as error:
            raise BadRow(f"column {column!r} {error}") from error
        if not text:
            raise BadRow(f"column {column!r} is empty")
        return text

    def as_json(self, columns: Sequence[str] | None, setting: str) -> dict[str, Any]:
        """The named columns, or all, as JSON values: dates and decimals become text, what is no number null.

        Raises BadRow, naming `setting`, for a column that is missing or no JSON, and for more than `MAX_JSON_BYTES`.
        """
        for column in columns or ():
            if column not in self.values:
                raise NoColumn(column, self.values, setting)
        kept = {name: self.values[name] for name in (self.values if columns is None else columns)}
        try:
            text = dumps(kept, default=as_text)
            found: dict[str, Any] = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadRow(f"its columns are no JSON ({error}): name in {setting} those that are needed") from error
        if len(text) > MAX_JSON_BYTES:
            problem = f"its columns take {len(text)} bytes, more than the {MAX_JSON_BYTES} that go with a query"
            raise BadRow(f"{problem}: name in {setting} those that are needed")
        return found


def as_text(value: Any) -> str:
    """A value as text, numbers and booleans as JSON writes them; raises BadRow where it is none."""
    if value is None:
        raise BadRow("is null")
    if isinstance(value, UnusableValue):
        raise BadRow(value.why)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRow(f"is {json.dumps(value)}, which is no number")
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise BadRow("holds bytes that are no UTF-8") from error
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if not isinstance(value, str | date | time | timedelta | Decimal):
        raise BadRow("holds no text")
    text = str(value)
    problem = "holds half a surrogate pair, which is no character" if has_half_pair(text) else why_no_text(text)
    if problem is not None:
        raise BadRow(problem)
    return text
