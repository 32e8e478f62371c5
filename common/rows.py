"""Rows of a user's data: JSON Lines, JSON, CSV, TSV, text and Parquet files, and data sets of the Hugging Face hub.

What can't be used is counted with its line, before any model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from common.errors import UserError
from common.json_text import NoJson, UnusableValue, loads
from common.row import BadRow, NoColumn, Row
from common.tables import Reader, read_csv, read_tsv
from common.templates import LITERAL_BRACES
from common.text_files import UnreadableFile, check_start, numbered_lines, read_text, why_no_text, without_end

HUB_LIMIT_S = 5.0
HUB = "hf://"
"""hf://owner/name, hf://owner/name:split or hf://owner/name/configuration:split."""
OnBadRow = Literal["refuse", "skip"]
OnOverlap = Literal["report", "remove", "refuse"]
_SHOWN = 5
ItemT = TypeVar("ItemT")


@dataclass
class Rejected:
    """Rows of one source that can't be used."""

    source: str
    problems: list[tuple[int, str]] = field(default_factory=list)
    unit: str = "line"

    def describe(self) -> str:
        """The first few reasons with the lines that they are of."""
        lines: dict[str, list[int]] = {}
        for number, why in self.problems:
            lines.setdefault(why, []).append(number)
        shown = "; ".join(f"{self._where(numbers)}: {why}" for why, numbers in list(lines.items())[:_SHOWN])
        rest = sum(len(numbers) for numbers in list(lines.values())[_SHOWN:])
        more = f"; and {rest} more" if rest else ""
        return f"{len(self.problems)} bad rows: {shown}{more}"

    def _where(self, numbers: Sequence[int]) -> str:
        shown = ", ".join(map(str, numbers[:_SHOWN]))
        more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
        return f"{self.unit}{'s' if len(numbers) > 1 else ''} {shown}{more}"


@dataclass(frozen=True)
class Loaded(Generic[ItemT]):
    """What a source held."""

    items: list[ItemT]
    rejected: Rejected
    repeated: int
    """Rows that stood there before and say nothing new, taken once."""
    spanning: list[tuple[int, int]] = field(default_factory=list)
    """First and last line of rows that stand on several: right, or the work of two stray quotes."""


def load(
    setting: str,
    source: str,
    convert: Callable[[Row], ItemT],
    key: Callable[[ItemT], Hashable],
    on_bad: OnBadRow,
    together: Callable[[ItemT, ItemT], ItemT] = lambda first, _: first,
) -> Loaded[ItemT]:
    """Rows of a source, converted, those of one key as one item; `convert` raises BadRow, and `together` gives the item
    of an earlier row and another one, the earlier itself where that says nothing new. Raises UserError naming the
    setting where nothing is left, or, with `on_bad` refuse, where anything is bad."""
    items: dict[Hashable, ItemT] = {}
    rejected, repeated = Rejected(source), 0
    missing: list[NoColumn] = []
    spanning: list[tuple[int, int]] = []
    for row in read(setting, source):
        if row.last is not None:
            spanning.append((row.number, row.last))
        try:
            if row.problem is not None:
                raise BadRow(row.problem)
            item = convert(row)
        except BadRow as error:
            rejected.unit = row.unit
            rejected.problems.append((row.number, str(error)))
            missing += [error] if isinstance(error, NoColumn) else []
            continue
        before = items.get(key(item))
        now = item if before is None else together(before, item)
        repeated += now is before
        items[key(item)] = now
    if missing and len(missing) == len(rejected.problems) and not items:
        raise _no_such_column(setting, source, missing)
    if rejected.problems and (on_bad == "refuse" or not items):
        remedy = "mend them, or leave them out with task.on_bad_row: skip" if items else "mend them: no other is left"
        raise UserError(setting, source, rejected.describe(), remedy)
    if not items:
        raise UserError(setting, source, "holds no row", "give a file with at least one")
    return Loaded(list(items.values()), rejected, repeated, spanning)


def _no_such_column(setting: str, source: str, missing: Sequence[NoColumn]) -> UserError:
    """Of a file whose rows all lack what the settings ask for: it is not the rows that are to be mended."""
    first = missing[0]
    rows = "its one row has" if len(missing) == 1 else f"none of its {len(missing)} rows has"
    lacking = f"{rows}{' no' if len(missing) == 1 else ' a'} column {first.column!r}"
    # It may be meant as it stands, as {"x": 1} or LaTeX's \frac{a}{b}.
    braces = f", or {LITERAL_BRACES}" if first.in_template else ""
    asked = "the task's settings" if first.setting is None else first.setting
    return UserError(
        setting,
        source,
        f"{lacking}, which {asked} names: the first has {first.known}",
        f"{_separated(source, first.names)}name one of these in {asked}{braces}",
    )


def _separated(source: str, names: Sequence[str]) -> str:
    """What to do where a table's only column looks like several."""
    wanted = {".csv": ("comma", ";|\t"), ".tsv": ("tab", ",;|")}.get(Path(source).suffix.lower())
    if wanted is None or len(names) != 1 or not set(wanted[1]) & set(names[0]):
        return ""
    return f"separate its columns by a {wanted[0]} each if this is more than one, or "


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
    yield from _reported(setting, path, reader)


def read_json_lines(setting: str, path: Path) -> Iterator[Row]:
    """The rows of a JSON Lines file, whatever its ending."""
    return _reported(setting, path, _json_lines)


def _reported(setting: str, path: Path, reader: Callable[[Path], Iterator[Row]]) -> Iterator[Row]:
    try:
        yield from reader(path)
    except UnreadableFile as error:
        raise UserError(setting, str(path), f"can't be read ({error.problem})", error.remedy) from error
    except OSError as error:
        remedy = "name a file that is there" if isinstance(error, FileNotFoundError) else "name a UTF-8 file"
        raise UserError(setting, str(path), f"can't be read ({error.strerror or error})", remedy) from error


def overlap(train: Iterable[Hashable], test: Sequence[Hashable]) -> list[int]:
    """Indices of the test items that stand among the training items."""
    seen = set(train)
    return [i for i, item in enumerate(test) if item in seen]


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        problem = why_no_text(line)
        if problem is not None:
            yield Row(number, problem=problem)
            continue
        try:
            yield _row(number, loads(line), "line")
        except NoJson as error:
            yield Row(number, problem=str(error))


def _json(path: Path) -> Iterator[Row]:
    text = read_text(path)
    if not text.strip():
        return
    problem = why_no_text(text)
    if problem is not None:
        raise UnreadableFile(f"it {problem}", "mend it")
    try:
        found = loads(text)
    except NoJson as error:
        lines = "; if it has an object a line, name it .jsonl" if "Extra data" in str(error) else ""
        yield Row(error.line, problem=f"{error}{lines}")
        return
    if isinstance(found, Mapping):
        lists = [name for name, value in found.items() if isinstance(value, list) and _are_rows(value)]
        if lists:
            yield Row(1, problem=f"one object, whose {lists[0]!r} is a list of rows: give that list alone", unit="row")
            return
    yield from _numbered(found if isinstance(found, list) else [found])


def _are_rows(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, Mapping) for value in values)


def _table(reader: Reader) -> Callable[[Path], Iterator[Row]]:
    def read_table(path: Path) -> Iterator[Row]:
        for record in reader(path):
            last = record.last if record.last > record.first else None
            yield Row(record.first, record.values, record.problem, last=last)

    return read_table


def _lines(path: Path) -> Iterator[Row]:
    for number, line in numbered_lines(path):
        if line.strip():
            text = without_end(line)
            yield Row(number, {"text": text}, why_no_text(text))


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    check_start(path)
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            twice = [name for i, name in enumerate(names) if name in names[:i]]
            if twice:
                raise UnreadableFile(f"two columns are named {twice[0]!r}", "rename one")
            yield from _numbered(row for batch in file.iter_batches() for row in batch.to_pylist())
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UnreadableFile(f"it is no whole Parquet file: {reason}", "write it anew") from error


def _hub(setting: str, source: str) -> Iterator[Mapping[str, Any]]:
    from datasets import load_dataset

    name, _, split = source.removeprefix(HUB).partition(":")
    owner, _, rest = name.partition("/")
    repository, _, configuration = rest.partition("/")
    _ask_hub(f"{owner}/{repository}")
    try:
        yield from load_dataset(f"{owner}/{repository}", configuration or None, split=split or "train")
    except Exception as error:
        raise UserError(
            setting, source, f"can't be loaded ({type(error).__name__})", "write hf://owner/name:split, or use a file"
        ) from error


def _ask_hub(repository: str) -> None:
    """Ask the hub once: `datasets` would try for half a minute before it looks into its cache."""
    import datasets
    import huggingface_hub as hub

    if hub.constants.HF_HUB_OFFLINE:
        return
    try:
        hub.HfApi().dataset_info(repository, timeout=HUB_LIMIT_S)
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError):
        # Whoever loads it is told at once.
        return
    except Exception:
        # It can't be reached. What is known from an earlier run is there without it, in the other processes too.
        os.environ["HF_HUB_OFFLINE"] = "1"
        hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def _numbered(records: Iterable[Any]) -> Iterator[Row]:
    for number, values in enumerate(records, start=1):
        yield _row(number, values, "row")


def _row(number: int, values: Any, unit: Literal["line", "row"]) -> Row:
    if not isinstance(values, Mapping):
        return Row(number, problem="no JSON object", unit=unit)
    unusable = [f"{name!r} {value.why}" for name, value in values.items() if isinstance(value, UnusableValue)]
    return Row(number, values, unusable[0] if unusable else None, unit)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _table(read_csv),
    ".tsv": _table(read_tsv),
    ".txt": _lines,
    ".parquet": _parquet,
}
