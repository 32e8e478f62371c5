"""Rows of a user's data: JSON Lines, JSON, CSV, TSV, text and Parquet files, and data sets of the Hugging Face hub.

What can't be used is counted with its line, before any model is loaded.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from common.errors import UserError

HUB = "hf://"
"""hf://owner/name, hf://owner/name:split or hf://owner/name/configuration:split."""
OnBadRow = Literal["refuse", "skip"]
OnOverlap = Literal["report", "remove", "refuse"]
_SHOWN = 5
ItemT = TypeVar("ItemT")


class BadRow(ValueError):
    """Why a row can't be used."""


@dataclass(frozen=True)
class Row:
    """A row and where it stands: a line number, or the number of the record where a file has no lines."""

    number: int
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Why it could not be read."""

    def text(self, column: str) -> str:
        """A column as text, white space at the ends left out; raises BadRow if it is missing or empty."""
        if column not in self.values or self.values[column] is None:
            known = ", ".join(map(repr, list(self.values)[:8]))
            raise BadRow(f"no column {column!r} (it has {known})")
        value = self.values[column]
        if isinstance(value, dict | list):
            raise BadRow(f"column {column!r} holds no text")
        text = str(value).strip()
        if not text:
            raise BadRow(f"column {column!r} is empty")
        return text


@dataclass
class Rejected:
    """Rows of one source that can't be used."""

    source: str
    problems: list[tuple[int, str]] = field(default_factory=list)

    def describe(self) -> str:
        """The first few with their lines."""
        shown = "; ".join(f"line {number}: {why}" for number, why in self.problems[:_SHOWN])
        more = f"; and {len(self.problems) - _SHOWN} more" if len(self.problems) > _SHOWN else ""
        return f"{len(self.problems)} bad rows: {shown}{more}"


@dataclass(frozen=True)
class Loaded(Generic[ItemT]):
    """What a source held."""

    items: list[ItemT]
    rejected: Rejected
    repeated: int
    """Rows that stood there before, taken once."""


def load(
    setting: str, source: str, convert: Callable[[Row], ItemT], key: Callable[[ItemT], Hashable], on_bad: OnBadRow
) -> Loaded[ItemT]:
    """Rows of a source, converted; `convert` raises BadRow. Raises UserError naming the setting where nothing is left,
    or, with `on_bad` refuse, where anything is bad."""
    items: dict[Hashable, ItemT] = {}
    rejected, n = Rejected(source), 0
    for row in read(setting, source):
        try:
            if row.problem is not None:
                raise BadRow(row.problem)
            item = convert(row)
        except BadRow as error:
            rejected.problems.append((row.number, str(error)))
            continue
        n += 1
        items.setdefault(key(item), item)
    if rejected.problems and on_bad == "refuse":
        raise UserError(setting, source, rejected.describe(), "mend them, or leave them out with task.on_bad_row: skip")
    if not items:
        what = rejected.describe() if rejected.problems else "holds no row"
        raise UserError(setting, source, what, "give a file with at least one usable row")
    return Loaded(list(items.values()), rejected, n - len(items))


def read(setting: str, source: str) -> Iterator[Row]:
    """The rows of a source; a line that can't be read comes as a Row with its `problem`."""
    if source.startswith(HUB):
        yield from _numbered(_hub(setting, source))
        return
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise UserError(setting, source, f"has no known ending ({known})", "name a file of one of them, or hf://…")
    try:
        yield from reader(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(setting, source, f"can't be read ({reason})", "name a UTF-8 file") from error


def overlap(train: Iterable[Hashable], test: Sequence[Hashable]) -> list[int]:
    """Indices of the test items that stand among the training items."""
    seen = set(train)
    return [i for i, item in enumerate(test) if item in seen]


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield _row(number, json.loads(line))
            except json.JSONDecodeError as error:
                yield Row(number, problem=f"no JSON ({error.msg})")


def _json(path: Path) -> Iterator[Row]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        yield Row(error.lineno, problem=f"no JSON ({error.msg})")
        return
    yield from _numbered(found if isinstance(found, list) else [found])


def _table(delimiter: str) -> Callable[[Path], Iterator[Row]]:
    def read_table(path: Path) -> Iterator[Row]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            for values in reader:
                problem = "more fields than columns" if None in values else None
                yield Row(reader.line_num, values, problem)

    return read_table


def _lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            yield Row(number, {"text": line})


def _parquet(path: Path) -> Iterator[Row]:
    from datasets import Dataset

    if not path.is_file():
        raise FileNotFoundError(2, "No such file or directory")
    yield from _numbered(Dataset.from_parquet(str(path)))


def _hub(setting: str, source: str) -> Iterable[Mapping[str, Any]]:
    from datasets import load_dataset

    name, _, split = source.removeprefix(HUB).partition(":")
    owner, _, rest = name.partition("/")
    repository, _, configuration = rest.partition("/")
    try:
        return load_dataset(f"{owner}/{repository}", configuration or None, split=split or "train")
    except Exception as error:
        raise UserError(
            setting, source, f"can't be loaded ({type(error).__name__})", "write hf://owner/name:split, or use a file"
        ) from error


def _numbered(records: Iterable[Any]) -> Iterator[Row]:
    for number, values in enumerate(records, start=1):
        yield _row(number, values)


def _row(number: int, values: Any) -> Row:
    return Row(number, values) if isinstance(values, Mapping) else Row(number, problem="no JSON object")


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".txt": _lines,
    ".parquet": _parquet,
}
