"""A tokenizer that knows more tokens than its model has rows: such a token is found before anything reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.engine import Sampled
from actors.sampler import TrajectorySampler
from common.config import SeedSection
from common.errors import UserError
from common.metrics import ActorMetrics, new_registry
from common.seeds import make_seed_jobs
from common.tasks import TASKS, Task, make_task
from common.tasks.base import unreadable
from common.tokens import HuggingFaceCodec
from tests.architectures import make_tokenizer


@pytest.fixture(scope="module")
def codec() -> HuggingFaceCodec:
    """Of a model that ends before the tokenizer's last words."""
    tokenizer = make_tokenizer("GPT2Tokenizer")
    (first,) = tokenizer(" hot", add_special_tokens=False)["input_ids"]
    return HuggingFaceCodec(tokenizer, first)


def jsonl(codec: HuggingFaceCodec, folder: Path, rows: list[dict[str, str]], **settings: Any) -> Task[Any]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"name": "jsonl", "train_path": str(path), "prompt": "{x}", "allowed_characters": "[a-z ]", **settings}
    return make_task(TASKS["jsonl"].Config.model_validate(given), codec)


def test_a_token_beyond_the_vocabulary_is_named_with_its_text(codec: HuggingFaceCodec) -> None:
    assert unreadable(codec, codec.encode(" the of")) is None and unreadable(codec, []) is None
    ids = codec.encode(" the hot")
    assert unreadable(codec, ids) == (
        f"token {codec.vocab_size} (' hot') is beyond the model's vocabulary of {codec.vocab_size}"
    )


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"prompt": "the {x}"}, "the prompt"),
        ({"prompt": "the", "target": " {x}"}, "the target"),
        ({"prompt": "the", "reference_prompt": "the {x}"}, "the reference's prompt"),
        ({"prompt": "the {y}", "target": " {z}", "choices": [" hot", " of"]}, "a choice"),
    ],
)
def test_a_row_with_such_a_token_is_a_bad_row_with_its_line(
    codec: HuggingFaceCodec, tmp_path: Path, settings: dict[str, Any], what: str
) -> None:
    rows = [{"x": "of", "y": "a", "z": "of"}, {"x": "hot", "y": "b", "z": "of"}, {"x": "to", "y": "c", "z": "of"}]
    first = 1 if what == "a choice" else 2
    with pytest.raises(
        UserError, match=rf"task\.train_path.*lines? {first}\b.*: {what}: token {codec.vocab_size} \(' hot'\)"
    ):
        jsonl(codec, tmp_path, rows, **settings).queries("train")


def test_such_a_row_can_be_skipped(codec: HuggingFaceCodec, tmp_path: Path) -> None:
    task = jsonl(codec, tmp_path, [{"x": "the of"}, {"x": "the hot"}], on_bad_row="skip")
    assert [codec.decode(query.prompt_ids) for query in task.queries("train")] == ["the of"]
    assert any("skipped 1 bad rows: line 2" in note for note in task.data_notes())


def test_such_a_token_in_a_hint_is_refused_and_in_a_rationale_makes_it_unusable(
    codec: HuggingFaceCodec, tmp_path: Path
) -> None:
    rows = [{"x": "the of", "z": " to"}, {"x": "the to", "z": " hot"}]
    task = jsonl(codec, tmp_path, rows, rationale="{z}")
    with pytest.raises(UserError, match=r"seeds\.hint.*\(' hot'\) is beyond the model's vocabulary"):
        make_seed_jobs(SeedSection(hint="{prompt} hot"), task)
    assert len(task.rationales()) == 1


class AskedEngine:
    """Notes what it is asked to sample."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []

    def submit_sample(self, request_id: str, prompt_ids: list[int], *_: Any, **__: Any) -> None:
        self.asked.append((request_id, list(prompt_ids)))


@pytest.mark.parametrize(("result", "outcome"), [(" of", "inserted"), (" hot", "unusable")])
def test_a_tools_result_with_such_a_token_is_left_out(
    codec: HuggingFaceCodec, tmp_path: Path, result: str, outcome: str
) -> None:
    rows = [{"x": "the of"}]
    task = jsonl(codec, tmp_path, rows, allowed_characters="[a-z =]", tool={"trigger": "="})
    task.__dict__["tool"] = lambda text: result
    engine: Any = AskedEngine()
    sampler = TrajectorySampler(task, engine, engine, ActorMetrics(new_registry()))
    (query,) = task.queries("train")
    sampler.submit(query, 1, 1.0, None)
    (trigger,) = codec.encode("=")
    sampler.accept([Sampled(engine.asked[0][0], np.array([trigger], np.int32), np.zeros(1, np.float32), None)])
    inserted = codec.encode(result) if outcome == "inserted" else []
    assert engine.asked[1][1] == [*query.prompt_ids, trigger, *inserted]
    assert sampler.metrics.tool_calls.labels(outcome)._value.get() == 1
