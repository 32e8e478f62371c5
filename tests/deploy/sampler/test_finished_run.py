"""A finished run opened elsewhere than it was trained, as far as that needs no engine."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from common.errors import EXIT_USER, UserError
from deploy.cli.main import main
from deploy.run.best import Best, keep_best
from deploy.sampler.diagnosed_run import chosen_queries
from deploy.sampler.finished_run import FinishedRun
from tests.deploy.run.runs import config_of, make_run, other_weights

TASK = (
    "task: {name: constrained, train_path: rows.jsonl, prompt: '{x}', json_schema: schema.json, max_len: 8,"
    " allowed_characters: null}"
)


@pytest.fixture
def moved(tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on rows and a model that are gone, in another folder and under another name; looked at from a third."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    shutil.copytree(digit_model, home / "model")
    Path("rows.jsonl").write_text("".join(json.dumps({"x": f"number {i}"}) + "\n" for i in range(9)))
    Path("schema.json").write_text(json.dumps({"enum": [12, 34]}))
    folder = make_run(config_of(home, Path("model"), "--run.name", "mine", task=TASK))
    monkeypatch.chdir(tmp_path)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    there = tmp_path / "there" / "renamed"
    there.parent.mkdir()
    folder.rename(there)
    (home / "rows.jsonl").unlink()
    return there


def test_a_prompt_of_one_s_own_needs_neither_the_data_nor_the_folder_that_training_was_in(moved: Path) -> None:
    run = FinishedRun(moved)
    query = run.query("number :")
    assert run.codec.decode(query.prompt_ids) == "number:" and run.task.config.train_path.endswith("home/rows.jsonl")
    # The schema was given as a relative path.
    valid = {
        text: run.task.action_space.why_invalid(np.asarray(run.codec.encode(text), np.int32)) for text in ("12", "56")
    }
    assert valid["12"] is None and valid["56"] is not None
    with pytest.raises(UserError, match=r"task\.train_path = '.*home/rows\.jsonl'"):
        run.query(None)


def test_a_run_of_a_machine_with_gpus_opens_on_one_without(moved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.sampler.finished_run.has_gpu", lambda: False)
    monkeypatch.setattr("common.devices.has_gpu", lambda: False)
    kept = yaml.safe_load((moved / "config.yaml").read_text())
    kept["learner"]["device"], kept["reference"]["dtype"] = "cuda", "bfloat16"
    kept["actor"] |= {"num_gpus": 2.0, "tensor_parallel_size": 2, "dtype": "bfloat16"}
    (moved / "config.yaml").write_text(yaml.safe_dump(kept))
    config = FinishedRun(moved).config
    assert (config.learner.device, config.actor.num_gpus, config.actor.tensor_parallel_size) == ("cpu", 0.0, 1)
    # The reward is the run's own as before.
    assert (config.actor.dtype, config.reference.dtype) == ("float32", "bfloat16")
    assert FinishedRun(moved, ["--actor.dtype=bfloat16"]).config.actor.dtype == "bfloat16"


def test_a_run_that_trained_nothing_says_so(moved: Path) -> None:
    (moved / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(UserError, match=r"holds no adapter yet; let the run finish"):
        FinishedRun(moved)
    kept = yaml.safe_load((moved / "config.yaml").read_text())
    kept["learner"]["objective"] = "prompting"
    (moved / "config.yaml").write_text(yaml.safe_dump(kept))
    with pytest.raises(UserError, match=r"has trained nothing, by learner\.objective: prompting; what it drew lies"):
        FinishedRun(moved)


def test_the_model_can_lie_elsewhere_and_must_be_the_same(
    moved: Path, tmp_path: Path, digit_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "home" / "model")
    with pytest.raises(UserError, match=r"model\.name = '.*home/model': no such folder"):
        FinishedRun(moved)
    run = FinishedRun(moved, ["--model.name", str(digit_model)])
    assert run.config.model.name == run.model == str(digit_model)
    other = other_weights(digit_model, tmp_path / "other")
    for command in ("sample", "evaluate"):
        assert main([command, str(moved), "--model.name", str(other)]) == EXIT_USER
        (line,) = capsys.readouterr().err.splitlines()
        assert "model.name = '" in line and "is not what the run was trained with" in line


def test_a_model_that_was_replaced_since_is_noticed(moved: Path, tmp_path: Path, digit_model: Path) -> None:
    shutil.rmtree(tmp_path / "home" / "model")
    other_weights(digit_model, tmp_path / "home" / "model")
    with pytest.raises(UserError, match=r"model\.name = '.*home/model': is not what the run was trained with"):
        FinishedRun(moved)


def test_a_schema_that_was_changed_since_is_noticed(moved: Path, tmp_path: Path) -> None:
    (tmp_path / "home" / "schema.json").write_text(json.dumps({"enum": [56]}))
    with pytest.raises(UserError, match=r"task\.json_schema = '.*schema\.json': is not what the run was trained with"):
        FinishedRun(moved)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (
            "number " * 70,
            r"--prompt = .*: takes \d+ tokens with its rationale, the engine 64 .*shorten it by \d+ tokens",
        ),
        ("", r"--prompt = '': is empty"),
    ],
)
def test_a_prompt_that_cannot_be_sampled_for_is_one_line_before_an_engine_starts(
    moved: Path, prompt: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(moved), "--prompt", prompt]) == EXIT_USER
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(expected, line), line


def test_the_longest_prompt_that_fits_is_taken(moved: Path) -> None:
    run = FinishedRun(moved)
    taken = run.query("1" * (64 - 8 - 2))
    assert taken.tokens_needed(8) == 64
    with pytest.raises(UserError, match=r"takes 65 tokens .*by 1 tokens"):
        run.query("1" * (64 - 8 - 1))


def test_settings_that_are_none_are_said(moved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(moved), "--promt", "x"]) == EXIT_USER
    assert "promt: is no setting" in capsys.readouterr().err


def test_a_prompt_for_a_chats_run_is_rendered_as_its_rows_are(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(digit_model, tmp_path / "chatty")
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}: {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    )
    Path("rows.jsonl").write_text("".join(json.dumps({"x": f"number {i}"}) + "\n" for i in range(9)))
    task = "task: {name: jsonl, train_path: rows.jsonl, prompt: '{x}', chat: true, max_len: 3}"
    folder = make_run(config_of(tmp_path, model, "--run.name", "mine", task=task))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    run = FinishedRun(folder)
    assert run.codec.decode(run.query("number 3").prompt_ids) == ":number3</s>:"
    assert run.query("number 3").id in {query.id for query in run.task.queries("train")}
    assert run.codec.token_text(run.task.action_space.terminator_id) == "</s>"
    with pytest.raises(UserError, match=r"--prompt = 'number </s>': its text holds '</s>'"):
        run.query("number </s>")


def test_the_best_adapter_takes_the_last_one_s_place_where_that_is_asked_for(
    moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("sample", "evaluate"):
        assert main([command, str(moved), "--best"]) == EXIT_USER
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("amortis: best = ") and "holds no best adapter" in line and "evaluation.every" in line
    best = Best(20, 3, "accuracy", "max", 0.5, "a" * 64)
    keep_best(moved, {"adapter_config.json": b"{}"}, best)
    assert FinishedRun(moved, best=True).adapter_folder == moved / "adapter-best"
    assert FinishedRun(moved).adapter_folder == moved / "adapter"


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ((), False),
        (("--task.test_size", "3"), True),
        (("--task.limit", "6"), True),
        # Of a file of its own every row is one that was not trained on, whatever is left of the others.
        (("--task.test_size", "3", "--task.test_path", "test.jsonl"), False),
    ],
)
def test_rows_that_are_held_out_otherwise_than_in_training_are_no_test(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch, changed: tuple[str, ...], refused: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, begin in (("rows.jsonl", 1), ("test.jsonl", 2)):
        Path(name).write_text("".join(json.dumps({"x": f"number {begin} {i // 5} {i % 5}"}) + "\n" for i in range(20)))
    task = "task: {name: jsonl, train_path: rows.jsonl, prompt: '{x}', max_len: 4, test_size: 2}"
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "mine", task=task))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    run = FinishedRun(folder, changed)
    if not refused:
        assert len(chosen_queries(run, ["all"])) in (2, 3)
        return
    for look in (run.figures, lambda: chosen_queries(run, ["all"])):
        with pytest.raises(UserError, match=r"task\.train_path = .*other test queries than in training"):
            look()


def test_a_prompt_of_one_s_own_says_where_its_reward_is_not_the_trained_one(tmp_path: Path, digit_model: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"x": f"number {i}"}) + "\n" for i in range(9)))
    task = f"task: {{name: jsonl, train_path: {tmp_path}/rows.jsonl, prompt: '{{x}}', max_len: 4%s}}"
    left_out = []
    for settings in (", reference_prompt: '{x} : {x}'", ""):
        folder = make_run(config_of(tmp_path, digit_model, "--run.overwrite", "true", task=task % settings))
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text("{}")
        run = FinishedRun(folder)
        left_out += [run.leaves_reference_prompt_out(query) for query in (run.query("number 1"), run.query())]
    assert left_out == [True, False, False, False]


def test_what_is_no_seed_and_one_text_for_a_list_of_texts_are_refused(moved: Path) -> None:
    run = FinishedRun(moved)
    assert (run.seed(None), run.seed(3)) == (0, 3)
    with pytest.raises(UserError, match=r"seed = -1: is below 0"):
        run.seed(-1)
    with pytest.raises(UserError, match=r"targets = '12': is one text"):
        run.query("number :", targets="12")


@pytest.mark.parametrize("command", ["sample", "evaluate", "serve"])
def test_a_reward_function_that_is_gone_is_one_line_before_an_engine_starts(
    tmp_path: Path, digit_model: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"x": f"number {i}"}) + "\n" for i in range(9)))
    (tmp_path / "mine.py").write_text("def score(prompts, texts, rows):\n    return [0.0] * len(texts)\n")
    task = {"name": "jsonl", "train_path": str(tmp_path / "rows.jsonl"), "prompt": "{x}", "max_len": 3}
    task["reward"] = str(tmp_path / "mine.py:score")
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "mine", task=f"task: {json.dumps(task)}"))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "mine.py").unlink()
    capsys.readouterr()
    monkeypatch.setattr("deploy.sampler.finished_run.make_sampler", lambda *_, **__: pytest.fail("an engine started"))
    monkeypatch.setattr(FinishedRun, "policy", lambda _: pytest.fail("the model was loaded"))
    assert main([command, str(folder), *(["--port", "0"] if command == "serve" else [])]) == EXIT_USER
    (line,) = capsys.readouterr().err.splitlines()
    assert "task.reward = " in line and "there is no such file" in line
