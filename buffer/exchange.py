"""Export and import of a buffer: JSON Lines for people and `datasets`, a binary form for archives.

A line of JSON is one trajectory with its query, flat, so every line has the same columns. The binary form is a msgpack
stream: a header, then queries and trajectories in their wire form, each with a CRC-32. Both carry the format's version
and are decoded without executing anything.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgpack
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from buffer.replay import ReplayBuffer
from common.errors import UserError
from common.json_text import NoJson, loads
from common.text_files import UnreadableFile, numbered_lines, why_no_text
from common.trajectory import Behaviour, MalformedTrajectory, Query, ToolEvent, Trajectory

FORMAT = 2
MAGIC = "amortis-buffer"
BATCH = 500
ExportFormat = Literal["jsonl", "binary"]
_MAX_ENTRY_BYTES = 256 * 2**20
_ARRAYS = (
    "action_ids",
    "input_ids",
    "action_positions",
    "log_prior",
    "log_alternatives",
)
Record = tuple[Query, Trajectory]


@dataclass
class ImportReport:
    """What became of an import."""

    read: int = 0
    added: int = 0
    duplicates: int = 0
    evicted: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)
    """Where (line or entry number) and why."""


def format_of(path: Path) -> ExportFormat:
    """By the file's name: `.jsonl`, in any case, is JSON Lines, anything else binary."""
    return "jsonl" if path.suffix.lower() in (".jsonl", ".json") else "binary"


def export_buffer(buffer: ReplayBuffer, path: Path, decode: Callable[[Any], str] | None = None) -> int:
    """Write all stored trajectories with their queries; how many. The file appears whole or not at all.

    `decode` adds the rationale as text to JSON Lines.
    """
    queries = buffer.queries()
    records = ((queries[item.query_id], item) for item in buffer if item.query_id in queries)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            if format_of(path) == "binary":
                file.write(msgpack.packb([MAGIC, FORMAT]))
            chunks = _json_lines(records, decode) if format_of(path) == "jsonl" else _binary(records)
            n = sum(file.write(chunk) > 0 for chunk in chunks)
        partial.replace(path)
    except OSError as error:
        raise UserError("FILE", str(path), f"can't be written ({error.strerror})", "choose another file") from error
    return n


def _json_lines(records: Iterable[Record], decode: Callable[[Any], str] | None) -> Iterator[bytes]:
    for query, item in records:
        row = {
            "format": FORMAT,
            "id": item.id,
            "query_id": item.query_id,
            "task": item.task,
            "prompt_ids": query.prompt_ids.tolist(),
            "target_ids": query.target_ids.tolist(),
            "reference_ids": query.reference_ids.tolist(),
            "alternatives": [ids.tolist() for ids in query.alternatives],
            "content_free_ids": query.content_free_ids.tolist(),
            "query_info": json.dumps(query.info),
            "query_row": json.dumps(query.row),
            **{name: getattr(item, name).tolist() for name in _ARRAYS},
            "log_choices": item.log_choices.tolist(),
            "log_likelihood": _numbers(item.log_likelihood),
            "log_constraint": _numbers(item.log_constraint),
            "adapter_version": item.behaviour.adapter_version,
            "adapter_sha256": item.behaviour.adapter_sha256,
            "temperature": item.behaviour.temperature,
            "sampler_log_prob": _numbers(item.behaviour.sampler_log_prob),
            "stop_log_prob": _number(item.behaviour.stop_log_prob),
            "source": item.source,
            "created_at": item.created_at,
            "actor_id": item.actor_id,
            "tool_events": [list(event) for event in item.tool_events],
        }
        if decode is not None:
            row["text"] = decode(item.action_ids)
        yield json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _number(value: float) -> float | None:
    """JSON has no NaN, which stands for 'not sampled' and 'not scored'."""
    return None if math.isnan(value) else value


def _numbers(values: NDArray[np.float32]) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _value(number: float | None) -> float:
    """`_number` undone."""
    return math.nan if number is None else number


def _binary(records: Iterable[Record]) -> Iterator[bytes]:
    """One chunk a trajectory; a query comes with its first."""
    written: set[str] = set()
    for query, item in records:
        chunk = b""
        if query.id not in written:
            written.add(query.id)
            chunk = _entry("query", query.to_bytes())
        yield chunk + _entry("trajectory", item.to_bytes())


def _entry(kind: str, payload: bytes) -> bytes:
    return bytes(msgpack.packb([kind, payload, zlib.crc32(payload)]))


def import_buffer(
    buffer: ReplayBuffer, path: Path, why_invalid: Callable[[Trajectory], str | None] = lambda item: None
) -> ImportReport:
    """Validate a file's trajectories and insert the good ones; the report names every one that was rejected.

    Where the buffer has queries already, only trajectories of those are taken. Raises UserError for a file that can't
    be read or is of another format version; nothing is inserted then.
    """
    records = _read_json_lines(path) if format_of(path) == "jsonl" else _read_binary(path)
    known = buffer.queries()
    report, batch = ImportReport(), list[Record]()

    def insert() -> None:
        if not known:
            buffer.put_queries(query for query, _ in batch)
        result = buffer.push([item for _, item in batch], from_actor=False)
        report.added += result.added
        report.duplicates += result.duplicates + result.near_duplicates
        report.evicted += result.evicted
        batch.clear()

    for where, found in records:
        report.read += 1
        reason = found if isinstance(found, str) else None
        if reason is None and not isinstance(found, str):
            query, item = found
            reason = why_invalid(item)
            if known and query.id not in known:
                reason = "its query is none of this run's"
            if reason is None:
                batch.append(found)
        if reason is not None:
            report.rejected.append((where, reason))
        if len(batch) >= BATCH:
            insert()
    if batch:
        insert()
    return report


def _read_json_lines(path: Path) -> Iterator[tuple[str, Record | str]]:
    """Where, and the record or why it is none."""
    try:
        for number, line in numbered_lines(path):
            if line.strip():
                yield f"line {number}", why_no_text(line) or _read_line(line, path, first=number == 1)
    except UnreadableFile as error:
        raise _unreadable(path, error.problem) from error
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error


def _read_line(line: str, path: Path, *, first: bool) -> Record | str:
    try:
        row = loads(line)
    except NoJson as error:
        return str(error)
    if not isinstance(row, dict):
        return "no JSON object"
    if row.get("format") != FORMAT:
        if first and "format" in row:
            raise _other_version(path, row["format"])
        return f"format {row.get('format')}, this reads format {FORMAT}"
    try:
        return _record(row)
    except KeyError as error:
        return f"no {error}"
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        return f"{name}: {problem['msg']}" if name else str(problem["msg"]).removeprefix("Value error, ")
    except (TypeError, ValueError, OverflowError) as error:
        return str(error)


def _record(row: Mapping[str, Any]) -> Record:
    info = loads(row["query_info"])
    query = Query(
        task=row["task"],
        prompt_ids=row["prompt_ids"],
        target_ids=row["target_ids"],
        reference_ids=row["reference_ids"],
        alternatives=row["alternatives"],
        info=info,
        # Older exports hold none of these.
        content_free_ids=row.get("content_free_ids", []),
        row=loads(row.get("query_row", "{}")),
    )
    behaviour = Behaviour(
        adapter_version=row["adapter_version"],
        adapter_sha256=row["adapter_sha256"],
        temperature=row["temperature"],
        sampler_log_prob=[_value(number) for number in row["sampler_log_prob"]],
        stop_log_prob=_value(row["stop_log_prob"]),
    )
    item = Trajectory(
        query_id=row["query_id"],
        task=row["task"],
        behaviour=behaviour,
        source=row["source"],
        created_at=row["created_at"],
        actor_id=row["actor_id"],
        tool_events=tuple(ToolEvent(*event) for event in row["tool_events"]),
        log_likelihood=[_value(number) for number in row["log_likelihood"]],
        log_constraint=[_value(number) for number in row["log_constraint"]],
        log_choices=row.get("log_choices", []),
        **{name: _exact(row[name], name) for name in _ARRAYS},
    )
    if query.id != item.query_id:
        raise ValueError("query_id is not that of task, prompt_ids and target_ids")
    if row["id"] != item.id:
        raise ValueError("id is not that of query and action_ids")
    if not math.isfinite(item.created_at):
        raise ValueError("created_at is not finite")
    # What JSON can say and the buffer can't store, such as half a surrogate pair, shows here and not halfway through.
    query.to_bytes(), item.to_bytes()
    return query, item


def _exact(values: Any, name: str) -> Any:
    """Refuse token ids that would be rounded or wrapped to others."""
    whole = all(type(value) is int and abs(value) < 2**31 for value in values)
    if name.endswith(("ids", "positions")) and not whole:
        raise ValueError(f"{name} holds no 32-bit integers")
    return values


def _read_binary(path: Path) -> Iterator[tuple[str, Record | str]]:
    queries: dict[str, Query] = {}
    try:
        with path.open("rb") as file:
            unpacker = msgpack.Unpacker(file, max_buffer_size=_MAX_ENTRY_BYTES)
            _check_header(path, unpacker)
            number = 0
            try:
                for entry in unpacker:
                    found = _read_entry(entry, queries)
                    if found is not None:
                        number += 1
                        yield f"entry {number}", found
            except (ValueError, msgpack.UnpackException) as error:
                yield f"after entry {number}", f"the rest can't be read ({error or type(error).__name__})"
                return
            if unpacker.tell() != path.stat().st_size:
                yield f"after entry {number}", "the file ends in the middle of an entry"
    except OSError as error:
        raise _unreadable(path, str(error.strerror)) from error


def _check_header(path: Path, unpacker: Any) -> None:
    try:
        header = unpacker.unpack()
    except (ValueError, msgpack.UnpackException) as error:
        raise _unreadable(path, "no header") from error
    if not isinstance(header, list) or len(header) != 2 or header[0] != MAGIC:
        raise _unreadable(path, "no header")
    if header[1] != FORMAT:
        raise _other_version(path, header[1])


def _read_entry(entry: Any, queries: dict[str, Query]) -> Record | str | None:
    """A record, why it is none, or None for a query."""
    if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[1], bytes):
        return "no entry"
    kind, payload, checksum = entry
    if zlib.crc32(payload) != checksum:
        return "checksum does not match"
    try:
        if kind == "query":
            query = Query.from_bytes(payload)
            queries[query.id] = query
            return None
        item = Trajectory.from_bytes(payload)
    except MalformedTrajectory as error:
        return str(error)
    return (queries[item.query_id], item) if item.query_id in queries else "its query is not in the file"


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError("FILE", str(path), f"can't be read ({reason})", "give a file that `amortis buffer export` wrote")


def _other_version(path: Path, version: object) -> UserError:
    return UserError(
        "FILE",
        str(path),
        f"is of format {version}, this amortis reads format {FORMAT}",
        "export it again with the amortis that wrote it, or use that one",
    )
