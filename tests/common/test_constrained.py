"""`constrained`: conditions, the classifier's factor, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from common.errors import UserError
from common.tasks.constrained import ConstrainedConfig, ConstrainedTask, occurs
from common.tasks.text import character_space
from common.tokens import load_codec
from tests.tiny import VOCABULARY

ONE, TWO, SEVEN = (VOCABULARY.index(digit) for digit in "127")


def task_of(model: Path, folder: Path, **settings: Any) -> ConstrainedTask:
    (folder / "rows.txt").write_text("number :\n")
    given = {"train_path": str(folder / "rows.txt"), "prompt": "{text}", "allowed_characters": "[0-9]", **settings}
    return ConstrainedTask(ConstrainedConfig.model_validate(given), load_codec(str(model)), 64)


def test_words_are_found_as_whole_words_in_any_case() -> None:
    assert occurs("cat", "The Cat!") and not occurs("cat", "concatenate") and occurs("don't", "I don't know")


def test_each_broken_condition_costs_the_penalty_at_every_state_that_can_stop(
    digit_model: Path, tmp_path: Path
) -> None:
    task = task_of(digit_model, tmp_path, keywords=["1"], forbidden_words=["17"], min_len=1, max_len=3, penalty=5)
    query = task.queries("train")[0]
    # "" can't stop; "1" is right; "17" lacks the word 1 and has 17.
    assert task.log_constraint(query, np.array([ONE, SEVEN], np.int32)).tolist() == [0.0, 0.0, -10.0]


def test_too_few_and_too_many_words_cost_the_penalty(digit_model: Path, tmp_path: Path) -> None:
    task = task_of(digit_model, tmp_path, least_words=2, most_words=3)
    assert [task.broken(" ".join(["w"] * n)) for n in range(5)] == [1, 1, 0, 0, 1]


def test_under_a_grammar_only_states_that_can_stop_are_judged(digit_model: Path, tmp_path: Path) -> None:
    task = task_of(digit_model, tmp_path, regex="1(72)*", keywords=["9"], min_len=0, max_len=5, penalty=4)
    actions = np.array([ONE, SEVEN, TWO], np.int32)
    assert task.action_space.stoppable(actions).tolist() == [False, True, False, True]
    assert task.log_constraint(task.queries("train")[0], actions).tolist() == [0.0, -4.0, 0.0, -4.0]


@pytest.fixture(scope="module")
def classifier(digit_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random classifier over the tiny tokenizer's texts."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        pad_token_id=1,
        num_labels=2,
        label2id={"dull": 0, "bright": 1},
        id2label={0: "dull", 1: "bright"},
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(digit_model).save_pretrained(folder)
    return folder


def test_a_classifiers_log_probability_is_a_factor(digit_model: Path, tmp_path: Path, classifier: Path) -> None:
    section = {"model": str(classifier), "label": "bright", "weight": 2.0}
    task = task_of(digit_model, tmp_path, classifier=section, min_len=1)
    actions = np.array([ONE, SEVEN], np.int32)
    found = task.log_constraint(task.queries("train")[0], actions)
    model = LlamaForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    for t, text in ((1, "1"), (2, "17")):
        with torch.no_grad():
            log_p = model(**tokenizer(text, return_tensors="pt")).logits[0].log_softmax(-1)
        assert found[t] == pytest.approx(2.0 * float(log_p[1]), abs=1e-5)
    assert found[0] == 0.0 and (found[1:] < 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classifier": {"model": "no/such/folder", "label": "x"}}, "task.classifier.model.*can't be read"),
        ({"json_schema": "missing.json"}, "task.json_schema.*can't be read"),
        ({"json_schema": "repeated.json"}, "task.json_schema.*can't be read .*'a' stands twice"),
        ({"json_schema": "nan.json"}, "task.json_schema.*can't be read .*NaN is no number"),
        (
            {"json_schema": {"type": "integer", "multipleOf": 3}},
            "task.json_schema at #/multipleOf = 3: can't be enforced",
        ),
        ({"json_schema": {"const": "é"}}, "task.json_schema = {'const': 'é'}: matches no text of the allowed tokens"),
        ({"regex": "(1"}, "task.regex.*is no regular expression"),
        ({"regex": "1+", "tool": {"name": "calculator", "trigger": "2"}}, "task.tool.trigger = '2': can't stand in"),
    ],
)
def test_conditions_that_cannot_be_used_are_named(
    digit_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("repeated.json").write_text('{"properties": {"a": {}, "b": {}, "a": {}}}')
    Path("nan.json").write_text('{"const": NaN}')
    with pytest.raises(UserError, match=message):
        _ = task_of(digit_model, tmp_path, **settings).action_space


def test_a_label_that_the_classifier_does_not_know_is_refused(
    digit_model: Path, tmp_path: Path, classifier: Path
) -> None:
    with pytest.raises(UserError, match=r"task.classifier.label = 'gold'.*choose among bright, dull"):
        task_of(digit_model, tmp_path, classifier={"model": str(classifier), "label": "gold"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regex": "1", "json_schema": {}}, "exclude each other"),
        ({"least_words": 3, "most_words": 2}, "most_words = 2 is below least_words = 3"),
    ],
)
def test_conditions_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConstrainedConfig.model_validate({"train_path": "x.txt", "prompt": "{text}", **settings})


@pytest.mark.parametrize("grammar", [{"regex": "1:2"}, {"json_schema": {"const": 12}}])
def test_under_a_grammar_the_grammar_is_the_whole_mask(
    digit_model: Path, tmp_path: Path, grammar: dict[str, Any]
) -> None:
    (tmp_path / "rows.txt").write_text("number :\n")
    given = {"train_path": str(tmp_path / "rows.txt"), "prompt": "{text}", **grammar}
    config = ConstrainedConfig.model_validate(given)
    assert config.allowed_characters is None
    # The run's own configuration, with all its settings, means the same.
    assert ConstrainedConfig.model_validate(config.model_dump()) == config
    space = ConstrainedTask(config, load_codec(str(digit_model)), 64).action_space
    wanted = "12:." if "regex" in grammar else "12."
    assert space.allowed_ids == tuple(sorted(map(VOCABULARY.index, wanted)))
    # What is given besides is kept.
    narrow = ConstrainedConfig.model_validate({**given, "allowed_characters": "[0-9]"})
    assert narrow.allowed_characters == "[0-9]"
    # Without a grammar the default stays.
    plain = ConstrainedConfig.model_validate({"train_path": "x.txt", "prompt": "{text}"})
    assert plain.allowed_characters is not None


@pytest.mark.parametrize(("regex", "noted"), [("[0-9.]+", True), ("[0-9]+", False)])
def test_a_terminator_that_the_grammar_could_use_is_noted(
    digit_model: Path, tmp_path: Path, regex: str, noted: bool
) -> None:
    notes = task_of(digit_model, tmp_path, regex=regex, allowed_characters=None).data_notes()
    assert any(note.startswith("task.terminator = '.' ends the rationale") for note in notes) == noted


def test_characters_that_are_given_narrow_a_grammar(digit_model: Path, tmp_path: Path) -> None:
    space = task_of(digit_model, tmp_path, regex="[0-9:]+", allowed_characters="[1-3]").action_space
    assert space.allowed_ids == tuple(sorted(map(VOCABULARY.index, "123.")))
    with pytest.raises(UserError, match=r"task.regex = '1:2': matches no text .* task.allowed_characters"):
        _ = task_of(digit_model, tmp_path, regex="1:2", allowed_characters="[0-9]").action_space


@pytest.mark.parametrize("characters", ["^[1-3]$", "(?i)[1-3]", "[1-3](?!.)", "[1-3]+", "(?:1|2|3)"])
def test_allowed_characters_are_matched_one_by_one(characters: str, tmp_path: Path) -> None:
    texts = ["1", "123", "", "4", ".", "2"]

    class Codec:
        vocab_size, special_ids = len(texts), frozenset([5])

        def encode(self, text: str) -> list[int]:
            return [texts.index(text)]

        def decode(self, ids: list[int]) -> str:
            return "".join(texts[token] for token in ids)

        def token_text(self, token: int) -> str:
            return texts[token]

    space = character_space(Codec(), terminator=".", characters=characters, min_len=0, max_len=2)  # type: ignore[arg-type]
    assert space.allowed_ids == (0, 1, 4)


def test_a_json_schema_masks_to_texts_that_fit(tmp_path: Path) -> None:
    from common.default_model import default_model_path

    (tmp_path / "rows.txt").write_text("A person as JSON:\n")
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    config = ConstrainedConfig.model_validate(
        {
            "train_path": str(tmp_path / "rows.txt"),
            "prompt": "{text}",
            "json_schema": schema,
            "max_len": 12,
        }
    )
    codec = load_codec(str(default_model_path()))
    space = ConstrainedTask(config, codec, 64).action_space
    assert space.why_invalid(np.asarray(codec.encode('{"age": 31}'), np.int32)) is None
    assert space.why_invalid(np.asarray(codec.encode('{"age": "x"}'), np.int32)) == "the grammar forbids them"
    # From any beginning the mask leads to an end within max_len.
    random, actions = np.random.default_rng(0), list[int]()
    while True:
        allowed = space.allowed_array[space.mask(actions)]
        assert len(allowed), "stuck"
        token = int(random.choice(allowed))
        if token == space.terminator_id:
            break
        actions.append(token)
    assert isinstance(json.loads(codec.decode(np.asarray(actions)))["age"], int)


def test_a_schema_s_file_is_utf_8_with_or_without_a_mark(digit_model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("number\n")
    path = tmp_path / "schema.json"

    def why_invalid(text: str) -> str | None:
        settings = {"train_path": str(tmp_path / "rows.txt"), "prompt": "{text}", "json_schema": str(path)}
        codec = load_codec(str(digit_model))
        space = ConstrainedTask(ConstrainedConfig.model_validate(settings), codec).action_space
        return space.why_invalid(np.asarray(codec.encode(text), np.int32))

    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + b'{"enum": [1, 23]}')
        assert why_invalid("23") is None and why_invalid("13") is not None
    for content in ('{"enum": [1]}'.encode("utf-16"), b'{"enum": ["caf\xe9"]}', b"[" * 9_000, b"7", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"task\.json_schema.*can't be read") as found:
            why_invalid("1")
        assert "\n" not in str(found.value)
