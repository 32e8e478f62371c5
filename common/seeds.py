"""Seeds of the buffer: given rationales, or prompts with a hint that reveals the answer to the base model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from common.action_space import ActionSpace
from common.config import SeedSection
from common.errors import UserError
from common.tasks import Task
from common.tasks.base import TokenCodec
from common.trajectory import Query

_SHOWN = 3


@dataclass(frozen=True)
class SeedJob:
    """Work for an actor: score a given rationale, or draw some from the base model under another prompt."""

    query_id: str
    action_ids: tuple[int, ...] | None = None
    """A given rationale, without the terminator."""
    hint_ids: tuple[int, ...] | None = None
    """The prompt to draw under; the samples are scored under the query's own."""
    n: int = 1
    """Samples to draw under the hint."""

    def to_bytes(self) -> bytes:
        """JSON, for Redis."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> SeedJob:
        """Read what `to_bytes` wrote."""
        found = json.loads(data)
        for name in ("action_ids", "hint_ids"):
            found[name] = None if found[name] is None else tuple(found[name])
        return cls(**found)


def make_seed_jobs(section: SeedSection, task: Task[Any]) -> list[SeedJob]:
    """All jobs that a run's configuration asks for; raises UserError with line numbers for what can't be used."""
    queries = task.queries("train")
    jobs = [] if section.file is None else _given(section.file, queries, task.action_space, task.codec)
    if section.data:
        given = task.rationales()
        if not given:
            raise UserError("seeds.data", True, "no training row holds a usable rationale", "name the rationale column")
        jobs += [SeedJob(query, action_ids=tuple(ids)) for query, group in given.items() for ids in group]
    if section.hint is not None:
        jobs += [_hinted(section, query, task.codec) for query in queries]
    return jobs


def _hinted(section: SeedSection, query: Query, codec: TokenCodec) -> SeedJob:
    assert section.hint is not None
    known = {name: value for name, value in query.info.items() if isinstance(value, str)}
    texts = {**known, "prompt": codec.decode(query.prompt_ids), "target": codec.decode(query.target_ids)}
    try:
        text = section.hint.format(**texts)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            "seeds.hint", section.hint, f"can't be filled in ({error})", f"use {{{'}, {'.join(texts)}}} only"
        ) from error
    return SeedJob(query.id, hint_ids=tuple(codec.encode(text)), n=section.samples_per_query)


def _given(path: Path, queries: Sequence[Query], space: ActionSpace, codec: TokenCodec) -> list[SeedJob]:
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("seeds.file", str(path), f"can't be read ({error})", "give a JSON Lines file") from error
    by_prompt: dict[tuple[int, ...], list[Query]] = {}
    for query in queries:
        by_prompt.setdefault(tuple(query.prompt_ids.tolist()), []).append(query)
    jobs: list[SeedJob] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found = _read_line(line, by_prompt, space, codec)
            if isinstance(found, str):
                problems.append(f"line {number}: {found}")
            else:
                jobs.append(found)
    if problems or not jobs:
        shown = "; ".join(problems[:_SHOWN]) or "no line holds a seed"
        more = f" and {len(problems) - _SHOWN} lines more" if len(problems) > _SHOWN else ""
        raise UserError(
            "seeds.file",
            str(path),
            f"{shown}{more}",
            'write lines such as {"prompt": "…", "rationale": "…"}, prompts as the task has them',
        )
    return jobs


def _read_line(
    line: str, by_prompt: Mapping[tuple[int, ...], Sequence[Query]], space: ActionSpace, codec: TokenCodec
) -> SeedJob | str:
    """A job, or why the line is none."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"no JSON ({error.msg})"
    if not isinstance(row, dict):
        return "no JSON object"
    ids = row.get("rationale_ids")
    if ids is None and not isinstance(row.get("rationale"), str):
        return 'no "rationale" text'
    if ids is not None and not (isinstance(ids, list) and all(type(token) is int for token in ids)):
        return '"rationale_ids" is no list of token ids'
    matching = _matching(row, by_prompt, codec)
    if len(matching) != 1:
        what = "names no training query" if not matching else f"names {len(matching)} queries"
        return f'"prompt" {what}'
    actions = ids if ids is not None else codec.encode(row["rationale"])
    if actions and actions[-1] == space.terminator_id:
        actions.pop()
    reason = space.why_invalid(np.asarray(actions, np.int32))
    return reason or SeedJob(matching[0].id, action_ids=tuple(actions))


def _matching(
    row: Mapping[str, Any], by_prompt: Mapping[tuple[int, ...], Sequence[Query]], codec: TokenCodec
) -> list[Query]:
    """The queries that a line's id, or prompt and target, where it has them, can mean; each text is encoded once."""
    if "query_id" in row:
        return [query for queries in by_prompt.values() for query in queries if query.id == row["query_id"]]
    if "prompt" in row:
        found = list(by_prompt.get(tuple(codec.encode(str(row["prompt"]))), []))
    else:
        found = list(chain.from_iterable(by_prompt.values()))
    if "target" in row:
        target = codec.encode(str(row["target"]))
        found = [query for query in found if query.target_ids.tolist() == target]
    return found
