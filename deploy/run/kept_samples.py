"""What a run's evaluation drew, line by line as text: what the figures are of, and what one reads where they miss."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.config import RunConfig
from common.evaluation import TRAINED
from common.files import write_whole
from common.json_text import dumps
from common.log import get_logger
from common.tasks import Split, Task
from common.tasks.base import SampleSets
from common.trajectory import SAMPLED, Query, Trajectory

log = get_logger("evaluation")
SAMPLES = "evaluation_samples.jsonl"
"""In a run's folder."""


def keep_samples(path: Path, config: RunConfig, task: Task[Any], drawn: Mapping[Split, SampleSets]) -> None:
    """Write one JSON object for each sample that an evaluation drew of a split's queries.

    Log-quantities are in nats and as in `amortis sample --json`; null where there is none, as beam search has no log q.
    Where they can't be written, that is logged: their figures are still to be made.
    """
    try:
        write_whole(path, "".join(f"{dumps(row)}\n" for row in _rows(config, task, drawn)))
    except OSError as error:
        log.warning("the evaluation's samples can't be kept: %s", error)


def most_drawn(path: Path, n: int) -> dict[str, list[tuple[str, float]]]:
    """The `n` texts that the trained sampler drew most of the test queries of each choice, with their shares of those
    draws: whether what it says depends on the query at all. Empty for a task without choices, and where nothing was
    kept."""
    found: dict[str, Counter[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        row = json.loads(line)
        if row["queries"] == "test" and row["sampler"] == TRAINED and "log_targets" in row:
            found.setdefault(row["target"], Counter())[row["text"]] += 1
    return {
        target: [(text, count / texts.total()) for text, count in texts.most_common(n)]
        for target, texts in sorted(found.items())
    }


def _rows(config: RunConfig, task: Task[Any], drawn: Mapping[Split, SampleSets]) -> Iterator[dict[str, Any]]:
    for split, sets in drawn.items():
        queries = {query.id: query for query in task.queries(split)}
        for label, groups in sets.items():
            for key, group in groups.items():
                asked = {"queries": split, "sampler": label, **_asked(task, queries[key])}
                for item in group:
                    yield {**asked, **_answered(config, task, queries[key], item)}


def _asked(task: Task[Any], query: Query) -> dict[str, Any]:
    decode = task.codec.decode
    return {
        "query_id": query.id,
        "prompt": task.codec.decode_prompt(query.prompt_ids),
        "target": decode(query.target_ids) if len(query.target_ids) else None,
    }


def _answered(config: RunConfig, task: Task[Any], query: Query, item: Trajectory) -> dict[str, Any]:
    decode, targets = task.codec.decode, (query.target_ids, *query.alternatives)
    log_r = item.log_reward(config.reward_weights, config.final_temperature)[-1]
    return {
        "text": decode(item.input_ids),
        "token_ids": item.action_ids.tolist(),
        # What proposed a draw of the posterior says nothing of how often it comes.
        "log_q": item.behaviour.log_prob if item.source in SAMPLED else math.nan,
        "log_r": float(log_r),
        "log_prior": float(item.log_prior[-1]),
        "log_likelihood": float(item.log_likelihood[-1]),
        "log_constraint": float(item.log_constraint[-1]),
        # log p(Y|XZ⊤) of each choice, as the model has it, by its text.
        **(
            {"log_targets": dict(zip(map(decode, targets), item.log_targets.tolist(), strict=True))}
            if query.alternatives
            else {}
        ),
    }
