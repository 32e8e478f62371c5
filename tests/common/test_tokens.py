"""Texts in context and prompts from their start, by every kind of tokenizer: the whole vocabulary, masks, tasks."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.sampler import TrajectorySampler
from actors.scoring import ScoreText
from common.config import ModelSection, SeedSection
from common.default_model import default_model_path
from common.errors import UserError
from common.metrics import ActorMetrics, new_registry
from common.seeds import make_seed_jobs
from common.tasks import TASKS, Task, make_task
from common.tokens import HuggingFaceCodec, codec_of, load_codec
from tests.tiny import save_digit_model
from tests.vocabularies import KINDS, SENTENCEPIECE, codec_of_kind, pieces, save_sentencepiece

TEXTS = [
    ".",
    ", ",
    "the",
    " the cat",
    " 12",
    "12.",
    "\n",
    "\n\nQ: Why?",
    "  two  spaces ",
    " café €5",
    "so , .",
    "漢龘🙂",
    "(x)",
]
every_kind = pytest.mark.parametrize("kind", KINDS)
every_sentencepiece = pytest.mark.parametrize("kind", SENTENCEPIECE)


def ordinary(codec: HuggingFaceCodec) -> list[int]:
    """All tokens that stand for text; of a large vocabulary every fourth."""
    tokens = [token for token in range(codec.vocab_size) if token not in codec.special_ids]
    return tokens if len(tokens) < 100_000 else tokens[::4]


def task_of(codec: HuggingFaceCodec, name: str, **settings: Any) -> Task[Any]:
    return make_task(TASKS[name].Config.model_validate({"name": name, **settings}), codec)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@every_kind
def test_every_tokens_text_is_what_it_adds_behind_other_tokens(kind: str) -> None:
    codec = codec_of_kind(kind)
    (behind,) = codec.encode("the")
    wrong = [t for t in ordinary(codec) if codec.decode([behind, t]) != f"the{codec.token_text(t)}"]
    assert len(ordinary(codec)) > 30_000 and not wrong


@every_kind
def test_every_tokens_text_comes_back_from_its_ids(kind: str) -> None:
    codec = codec_of_kind(kind)
    texts = [codec.token_text(token) for token in ordinary(codec)]
    if kind == "unigram, no bytes":
        # It knows neither bytes nor two spaces in a row.
        texts = [text for text in texts if "  " not in text and not re.fullmatch(r"[\x00-\x1f\x7f-\x9f]|<0x..>", text)]
    # Pieces of characters aside.
    whole = [text for text in texts if "\ufffd" not in text]
    wrong = [text for text in whole if codec.decode(codec.encode(text)) != text]
    assert len(whole) > 30_000 and not wrong


@every_sentencepiece
def test_a_pieces_text_has_its_space_and_a_bytes_its_byte(kind: str) -> None:
    codec = codec_of_kind(kind)
    for token in ordinary(codec):
        byte = re.fullmatch("<0x(..)>", pieces().id_to_piece(token))
        text = pieces().id_to_piece(token).replace("▁", " ")
        expected = bytes.fromhex(byte[1]).decode(errors="replace") if byte else text
        assert codec.token_text(token) == expected


@every_kind
def test_a_text_goes_on_without_a_space_of_the_tokenizers_own(kind: str) -> None:
    codec = codec_of_kind(kind)
    texts = ["the", ".", " the cat", " 12", "12."] if kind == "unigram, no bytes" else TEXTS
    for text in texts:
        assert codec.decode(codec.encode(text)) == text
        assert codec.decode([*codec.encode("so"), *codec.encode(text)]) == f"so{text}"
        assert codec.decode_prompt([*codec.encode_prompt("so"), *codec.encode(text)]) == f"so{text}"
    assert len(codec.encode(".")) == len(codec.encode("7")) == 1


@pytest.mark.parametrize("kind", [kind for kind in SENTENCEPIECE if kind != "unigram"])
def test_the_ids_of_a_text_are_those_of_sentencepiece_itself(kind: str) -> None:
    codec = codec_of_kind(kind)
    inside, start = pieces(space_before=False), pieces(space_before=kind != "sentencepiece, no space before")
    for text in TEXTS:
        if "  " in text:
            # transformers and sentencepiece merge them in another order.
            continue
        assert codec.encode(text) == inside.encode(text)
        if not text.startswith(" "):
            assert codec.encode_prompt(text) == [1, *start.encode(text)]


@every_kind
def test_a_prompts_text_comes_back_without_what_opens_it(kind: str) -> None:
    codec = codec_of_kind(kind)
    for text in ("Once upon a time", "Q: 5 + 6 = ?", ". dot"):
        assert codec.decode_prompt(codec.encode_prompt(text)) == text


def test_the_default_models_ids_are_what_they_were() -> None:
    codec = codec_of_kind("byte-level")
    assert codec.encode("amortis 42.") == codec.encode_prompt("amortis 42.")
    assert codec.encode(" the") == [260] and codec.encode("the") == [1195] and codec.encode("11") == [33, 33]


@every_sentencepiece
@pytest.mark.parametrize("pattern", [" [a-z]+( [a-z]+)*", "[a-z]+", r"é[a-zé]*\n?"])
def test_what_a_regex_lets_through_matches_it_in_the_text(kind: str, pattern: str, tmp_path: Path) -> None:
    codec = codec_of_kind(kind)
    path = write(tmp_path / "q.jsonl", {"q": "Write:"})
    settings = {"train_path": path, "prompt": "{q}", "max_len": 5, "allowed_characters": None}
    task = task_of(codec, "constrained", regex=pattern, **settings)
    prompt, space, draw = task.queries("train")[0].prompt_ids.tolist(), task.action_space, random.Random(0)
    for _ in range(100):
        actions: list[int] = []
        while (token := draw.choice(space.allowed_array[space.mask(actions)].tolist())) != space.terminator_id:
            actions.append(token)
        text = codec.decode_prompt([*prompt, *actions]).removeprefix("Write:")
        assert re.fullmatch(pattern, text) and codec.decode(actions) == text


@every_kind
def test_rng_takes_every_model_whose_digits_are_tokens(kind: str) -> None:
    codec = codec_of_kind(kind)
    task = task_of(codec, "rng", low=0, high=20)
    space = task.action_space
    assert codec.decode(space.allowed_array[space.allowed_array != space.terminator_id]).strip()
    assert len(space.allowed_array) == 11
    query = task.queries("train")[0]
    for number, worth in (("17", 0.0), ("07", -10.0)):
        ids = np.asarray(codec.encode(number), np.int32)
        assert codec.decode_prompt([*query.prompt_ids, *ids]).endswith(f" between 0 and 20: {number}")
        assert task.log_constraint(query, ids)[-1] == worth


def test_a_text_that_the_vocabulary_lacks_is_no_token_of_it(tmp_path: Path) -> None:
    codec = load_codec(str(save_digit_model(tmp_path)))
    with pytest.raises(UserError, match=r"task\.terminator = '!': is unknown to the tokenizer, which reads '<unk>'"):
        _ = task_of(codec, "rng", terminator="!").action_space


@every_sentencepiece
def test_masks_know_a_words_token_from_the_same_letters_within_a_word(kind: str, tmp_path: Path) -> None:
    codec = codec_of_kind(kind)
    write(tmp_path / "q.jsonl", {"q": "x"})
    settings = {"train_path": tmp_path / "q.jsonl", "prompt": "{q}", "forbidden": [" Mr"]}
    space = task_of(codec, "jsonl", allowed_characters="[A-Za-z]", **settings).action_space
    texts = {codec.token_text(int(token)) for token in space.allowed_array}
    assert {"the", "Mr", "."} <= texts and not any(" " in text for text in texts)
    spaced = {codec.token_text(int(t)) for t in task_of(codec, "jsonl", **settings).action_space.allowed_array}
    assert {" the", "the", "Mr"} <= spaced and " Mr" not in spaced


SUM = {"str_query": "Question: 1 + 2 = ? Answer:", "num_sol": 3, "str_rationale": "1 + 2 ="}


class Reader:
    """An engine that keeps what it is to score."""

    busy = False

    def __init__(self) -> None:
        self.texts: list[ScoreText] = []

    def submit_score(self, request_id: str, text: ScoreText) -> None:
        self.texts.append(text)


@every_kind
def test_what_is_scored_reads_as_one_text_with_the_tools_result_in_it(kind: str, tmp_path: Path) -> None:
    codec = codec_of_kind(kind)
    settings = {"reference_shots": 1, "target": " The answer is {num_sol}."}
    task = task_of(codec, "arithmetic", train_path=write(tmp_path / "s.jsonl", SUM), **settings)
    asked: list[str] = []
    tool = task.tool
    assert tool is not None
    task.__dict__["tool"] = lambda text: asked.append(text) or tool(text)  # type: ignore[func-returns-value]
    ((query_id, (seed,)),) = task.rationales().items()
    query, engine = task.queries("train")[0], Reader()
    assert query.id == query_id and codec.decode(seed) == " 1 + 2 ="
    sampler = TrajectorySampler(task, engine, engine, ActorMetrics(new_registry()))  # type: ignore[arg-type]
    sampler.submit_given(query, seed)
    assert asked[-1] == "Question: 1 + 2 = ? Answer: 1 + 2 ="
    whole = "Question: 1 + 2 = ? Answer: 1 + 2 = 3. The answer is 3."
    read = engine.texts[0].ids
    # Not every vocabulary has it.
    newline = codec.decode(codec.encode("\n"))
    assert codec.decode_prompt(read) == f"{whole}{newline}{whole}"


LABELS = [{"text": f"the story number {i} is told", "label_text": ("objective", "subjective")[i % 2]} for i in range(4)]


@every_kind
def test_targets_alternatives_seeds_and_hints_get_no_space_of_their_own(kind: str, tmp_path: Path) -> None:
    codec = codec_of_kind(kind)
    task = task_of(codec, "subjectivity", train_path=write(tmp_path / "r.jsonl", *LABELS))
    first = task.queries("train")[0]
    texts = [codec.decode(ids) for ids in (first.target_ids, *first.alternatives)]
    assert texts == [" so it is objective.", " so it is subjective."]
    prompt = 'Classify this movie review as objective or subjective: "the story number 0 is told" This review is'
    seeds = write(tmp_path / "seeds.jsonl", {"prompt": prompt, "rationale": " told as it is,", "target": texts[0]})
    (job,) = make_seed_jobs(SeedSection(file=seeds), task)
    assert job.query_id == first.id and codec.decode(job.action_ids or ()) == " told as it is"
    hint = make_seed_jobs(SeedSection(hint="{prompt} {label} because it is{target}"), task)[0].hint_ids
    assert list(hint or ()) == codec.encode_prompt(f"{prompt} objective because it is so it is objective.")


@pytest.mark.parametrize("kind", ["sentencepiece", "sentencepiece, no space before", "tekken", "unigram"])
def test_every_prompt_of_policy_and_reference_opens_with_bos_and_no_other_text_has_it(
    kind: str, tmp_path: Path
) -> None:
    codec = codec_of_kind(kind)
    path = write(tmp_path / "q.jsonl", *({"text": f"word {i} " * 9, "a": "yes", "z": "why"} for i in range(5)))
    template = {"prompt": "{text}", "reference_prompt": "Read: {text}", "target": " {a}.", "rationale": " {z}."}
    tasks = [
        task_of(codec, "rng"),
        task_of(codec, "continuation", train_path=path, max_prompt_tokens=7),
        task_of(codec, "jsonl", train_path=path, policy_shots=1, **template),
        task_of(codec, "reasoning_gym", size=2, test_size=1),
    ]
    for task in tasks:
        for query in task.queries("train"):
            for ids in (query.prompt_ids, query.scored_prompt_ids):
                assert ids[0] == 1 and not {1, 2} & set(ids[1:].tolist())
            assert not {1, 2} & {*query.target_ids.tolist()}
        assert all(not {1, 2} & {*ids} for group in task.rationales().values() for ids in group)
    assert {len(query.prompt_ids) for query in tasks[1].queries("train")} == {1 + 7}


def test_bos_opens_prompts_as_the_tokenizer_does_or_as_the_setting_says(tmp_path: Path) -> None:
    def ids(setting: bool | None, *, own: bool) -> list[int]:
        folder = str(save_sentencepiece(tmp_path, add_bos_token=own))
        return codec_of(ModelSection(name=folder, add_bos_token=setting)).encode_prompt("Once upon a time")

    plain = pieces().encode("Once upon a time")
    assert ids(None, own=True) == ids(True, own=False) == [1, *plain]
    assert ids(None, own=False) == ids(False, own=True) == plain


def test_the_default_model_gets_bos_where_it_is_asked_for() -> None:
    section = ModelSection(name=str(default_model_path()), add_bos_token=True)
    assert codec_of(section).encode_prompt("Once") == [1, *codec_of_kind("byte-level").encode_prompt("Once")]


@every_sentencepiece
def test_a_prompt_that_opens_with_bos_gets_no_second_one(kind: str) -> None:
    codec = codec_of_kind(kind)
    ids = codec.encode_prompt("<s>Once upon a time")
    assert ids[0] == 1 and 1 not in ids[1:] and codec.decode_prompt(ids) == "Once upon a time"
    # BOS alone is a prompt, for texts from nothing; no text is none.
    assert codec.encode_prompt("<s>") == [1] and codec.encode_prompt("") == []


def test_a_tokenizer_without_bos_refuses_the_setting(tmp_path: Path) -> None:
    folder = save_digit_model(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            kept = json.loads((folder / name).read_text())
            kept.pop("bos_token", None)
            (folder / name).write_text(json.dumps(kept))
    assert load_codec(str(folder)).encode_prompt("number 7") == load_codec(str(folder), False).encode_prompt("number 7")
    with pytest.raises(UserError, match=r"model\.add_bos_token = True.*has no BOS token"):
        load_codec(str(folder), True)


def test_half_a_character_is_refused_with_its_place_and_the_remedy(tmp_path: Path) -> None:
    codec = load_codec(str(save_digit_model(tmp_path)))
    for encode in (codec.encode, codec.encode_prompt):
        with pytest.raises(UserError, match=r"text = .*caf\\+udce9.*at place 3.*UTF-8"):
            encode("caf\udce9")
