"""Tables in text files: CSV, where a field in quotes may hold line feeds, and TSV, where a line is a row.

A quote that is never closed must not swallow the rows after it. In both a bad row is reported where it begins, and
reading goes on with the line after it.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.text_files import UnreadableFile, numbered_lines, why_no_text, without_end

# A long field is a long row, which the model's length judges; the module's own limit is 131,072 characters.
csv.field_size_limit(2**31 - 1)

_NEVER = "a quote opens that is never closed"
_WHY = {
    "unexpected end of data": _NEVER,
    "'\"'": "text follows a closing quote (one within a field is written twice)",
    "new-line": "a carriage return stands within a field without quotes",
}
"""What the messages of Python's `csv` mean, by what they hold."""


@dataclass(frozen=True)
class Record:
    """A row of a table by column, or why it is none; `first` and `last` are its lines."""

    first: int
    last: int
    values: dict[str, str]
    problem: str | None = None


Reader = Callable[[Path], Iterator[Record]]
Fields = Sequence[str] | str
"""The fields of a row, or why it is none."""


def read_csv(path: Path) -> Iterator[Record]:
    """The rows under the header; raises OSError, and UnreadableFile where the header can't be used."""
    return _under_header(_csv_rows(path))


def read_tsv(path: Path) -> Iterator[Record]:
    """The rows under the header; raises OSError, and UnreadableFile where the header can't be used.

    A field that stands in quotes as spreadsheets write it is read without them; other quotes are text, as in most
    files of this kind, but one that opens a field and is not closed in its line makes a bad row.
    """
    return _under_header((number, number, _tsv_fields(line)) for number, line in numbered_lines(path))


def _under_header(rows: Iterator[tuple[int, int, Fields]]) -> Iterator[Record]:
    header: Sequence[str] | None = None
    for first, last, fields in rows:
        if not fields:
            continue
        problem = fields if isinstance(fields, str) else why_no_text("".join(fields))
        if problem is not None and last > first:
            problem = f"{problem}, in a row up to line {last}"
        if header is None:
            if problem is not None or isinstance(fields, str):
                raise UnreadableFile(f"line {first}, the header: {problem}", "mend it")
            header = _checked_header(first, fields)
        elif problem is not None or isinstance(fields, str):
            yield Record(first, last, {}, problem)
        elif len(fields) != len(header):
            fewer = f"fewer fields than columns ({len(fields)} of {len(header)})"
            alone = f" (the header is one column, {header[0]!r})" if len(header) == 1 else ""
            more = f"more fields than columns{alone}"
            yield Record(first, last, {}, fewer if len(fields) < len(header) else more)
        else:
            # A column without a name, such as the row numbers that pandas writes, can't be asked for.
            yield Record(first, last, {name: value for name, value in zip(header, fields) if name.strip()})


def _checked_header(line: int, names: Sequence[str]) -> Sequence[str]:
    if re.fullmatch("sep=.?", names[0].strip(), re.IGNORECASE):
        raise UnreadableFile(
            f"line {line} says how Excel is to separate the fields, {names[0]!r}",
            "take the line out, and separate the fields by commas, or by tabs in a .tsv file",
        )
    twice = [name for i, name in enumerate(names) if name.strip() and name in names[:i]]
    if twice:
        raise UnreadableFile(f"line {line}, the header: two columns are named {twice[0]!r}", "rename one")
    return names


def _csv_rows(path: Path) -> Iterator[tuple[int, int, Fields]]:
    lines = (line for _, line in numbered_lines(path))
    ahead: deque[str] = deque()
    taken: list[str] = []

    def take() -> str | None:
        line = ahead.popleft() if ahead else next(lines, None)
        if line is not None:
            taken.append(line)
        return line

    number = 1
    width: int | None = None
    while True:
        taken.clear()
        fields: Fields | None
        try:
            fields = next(csv.reader(iter(take, None), strict=True), None)
        except csv.Error as error:
            fields = _explained(error, number, len(taken))
        if fields is None:
            return
        if width is None and not isinstance(fields, str):
            width = len(fields) or None
        if isinstance(fields, str) or len(fields) != width:
            # Whatever it took of the lines after the first may be rows of their own.
            ahead.extendleft(reversed(taken[1:]))
            del taken[1:]
        yield number, number + len(taken) - 1, fields
        number += len(taken)


def _explained(error: csv.Error, first: int, n_lines: int) -> str:
    why = next((why for part, why in _WHY.items() if part in str(error)), str(error))
    return f"a quote opens, and in line {first + n_lines - 1} {why}" if n_lines > 1 and why != _NEVER else why


def _tsv_fields(line: str) -> Fields:
    line = without_end(line)
    try:
        return next(csv.reader([line], delimiter="\t", strict=True), [])
    except csv.Error:
        fields = line.split("\t")
    open_quote = any(field.startswith('"') and field.count('"') % 2 for field in fields)
    return "a quote opens a field and is not closed in this line, where a row of TSV ends" if open_quote else fields
