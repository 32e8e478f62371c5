"""Seeds of the buffer: given rationales, or prompts with a hint that reveals the answer to the base model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from common.config import SeedSection
from common.errors import UserError
from common.row import BadRow, Row, as_text
from common.rows import read_json_lines
from common.tasks import Task
from common.tasks.base import unreadable
from common.templates import LITERAL_BRACES, fill
from common.trajectory import Query

_SHOWN = 3
_PROMPT = "{prompt}"


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
    jobs = [] if section.file is None else _given(section.file, queries, task)
    if section.data:
        given = {key: group for key, group in task.rationales().items() if group}
        if not given:
            left_out = task.unusable_rationales()
            if left_out is not None:
                raise UserError("seeds.data", True, f"leaves out {left_out}", "change these settings, or the rows")
            raise UserError("seeds.data", True, "no training row holds a rationale", "name the rationale column")
        usable, unusable = usable_rationales(given, task)
        if not usable:
            raise UserError(
                "seeds.data", True, f"leaves out {unusable}", "change the task's settings, or its rationales"
            )
        jobs += [SeedJob(query, action_ids=tuple(ids)) for query, ids in usable]
    if section.hint is not None:
        jobs += [_hinted(section, query, task) for query in queries]
    return jobs


def usable_rationales(
    given: Mapping[str, Sequence[Sequence[int]]], task: Task[Any]
) -> tuple[list[tuple[str, Sequence[int]]], str | None]:
    """Given rationales with their query's id, as far as the policy can write them, and how many it can't; raises
    UserError for an id that no training query has."""
    unknown = given.keys() - {query.id for query in task.queries("train")}
    if unknown:
        problem = f"gives rationales of {min(unknown)!r}, which is the id of no training query"
        raise UserError("task.name", task.name, problem, "give them by the ids of the task's own queries")
    each = [(key, ids) for key, group in given.items() for ids in group]
    why = [task.action_space.why_invalid(np.asarray(ids, np.int32)) for _, ids in each]
    reasons = [reason for reason in why if reason is not None]
    usable = [item for item, reason in zip(each, why, strict=True) if reason is None]
    if not reasons:
        return usable, None
    return usable, f"{len(reasons)} of {len(each)} rationales, which the policy can't write (the first: {reasons[0]})"


def _hinted(section: SeedSection, query: Query, task: Task[Any]) -> SeedJob:
    assert section.hint is not None
    codec, hint = task.codec, section.hint
    if task.chat is not None and not hint.startswith(_PROMPT):
        # It is as the template renders it, and the rest opens the assistant's turn.
        raise UserError("seeds.hint", hint, f"in a chat {_PROMPT} stands first", "begin with it")
    known = {name: value for name, value in query.info.items() if isinstance(value, str)}
    texts = {**known, "prompt": codec.decode_prompt(query.prompt_ids), "target": codec.decode(query.target_ids)}

    def place(name: str) -> str:
        if name not in texts:
            remedy = f"use {{{'}, {'.join(texts)}}} only, or {LITERAL_BRACES}"
            raise UserError("seeds.hint", hint, f"can't be filled in ({name!r} is none of its places)", remedy)
        return texts[name]

    if task.chat is None:
        ids = codec.encode_prompt(fill(hint, place))
    else:
        ids = [*query.prompt_ids.tolist(), *codec.encode(fill(hint.removeprefix(_PROMPT), place))]
    reason = unreadable(codec, ids)
    if reason is not None:
        raise UserError("seeds.hint", hint, reason, "leave it out of the hint")
    return SeedJob(query.id, hint_ids=tuple(ids), n=section.samples_per_query)


def _given(path: Path, queries: Sequence[Query], task: Task[Any]) -> list[SeedJob]:
    by_prompt: dict[tuple[int, ...], list[Query]] = {}
    for query in queries:
        by_prompt.setdefault(tuple(query.prompt_ids.tolist()), []).append(query)
    jobs: list[SeedJob] = []
    problems: list[str] = []
    for row in read_json_lines("seeds.file", path.expanduser()):
        try:
            jobs.append(_read_row(row, by_prompt, task))
        except BadRow as error:
            problems.append(f"line {row.number}: {error}")
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


def _read_row(row: Row, by_prompt: Mapping[tuple[int, ...], Sequence[Query]], task: Task[Any]) -> SeedJob:
    """A line's job; raises BadRow if it is none."""
    space, codec = task.action_space, task.codec
    if row.problem is not None:
        raise BadRow(row.problem)
    values = row.values
    ids = values.get("rationale_ids")
    if ids is None and not isinstance(values.get("rationale"), str):
        raise BadRow('no "rationale" text')
    if ids is not None and not (isinstance(ids, list) and all(_is_token(token) for token in ids)):
        raise BadRow('"rationale_ids" is no list of token ids')
    matching = _matching(values, by_prompt, task)
    if len(matching) != 1:
        what = "names no training query" if not matching else f"names {len(matching)} queries"
        raise BadRow(f'"prompt" {what}')
    actions = list(ids) if ids is not None else codec.encode(_text(values, "rationale"))
    if actions and actions[-1] == space.terminator_id:
        actions.pop()
    reason = space.why_invalid(np.asarray(actions, np.int32))
    if reason is not None:
        raise BadRow(reason)
    return SeedJob(matching[0].id, action_ids=tuple(actions))


def _is_token(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _text(values: Mapping[str, Any], name: str) -> str:
    """A value as it stands, white space included; raises BadRow."""
    try:
        return as_text(values[name])
    except BadRow as error:
        raise BadRow(f'"{name}" {error}') from error


def _matching(
    row: Mapping[str, Any], by_prompt: Mapping[tuple[int, ...], Sequence[Query]], task: Task[Any]
) -> list[Query]:
    """The queries that a line's id, or prompt and target, where it has them, can mean; each text is encoded once."""
    if "query_id" in row:
        return [query for queries in by_prompt.values() for query in queries if query.id == row["query_id"]]
    if "prompt" in row:
        found = list(by_prompt.get(tuple(task.prompt_ids(_text(row, "prompt"))), []))
    else:
        found = list(chain.from_iterable(by_prompt.values()))
    if "target" in row:
        target = task.codec.encode(_text(row, "target"))
        found = [query for query in found if query.target_ids.tolist() == target]
    return found
