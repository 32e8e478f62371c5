"""A reward function that can't be used is told in seconds, and a run goes on with the function that it began with."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from common.config import RunConfig
from common.errors import UserError
from deploy.run.checks import prepare
from deploy.run.identity import check_models, load_identity
from tests.deploy.run.runs import config_of, make_run

TASK = (
    """task: {{name: jsonl, train_path: '{0}/rows.jsonl', prompt: '{{x}}', max_len: 4, allowed_characters: '[0-9]'}}"""
)
GOOD = """def score(prompts, texts, rows):
    return [1.0 * (int(text or 0) > 3) + row['bonus'] for text, row in zip(texts, rows)]
"""


def config(folder: Path, model: Path, *overrides: str) -> RunConfig:
    """Of a run with rows to reward."""
    rows = [json.dumps({"x": f"number {i}", "bonus": i}) for i in range(10, 20)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return config_of(folder, model, "--run.name", "good", *overrides, task=TASK.format(folder))


@pytest.mark.parametrize(
    ("source", "function", "problem"),
    [
        (GOOD, "mine.py:score", None),
        (GOOD, "mine:score", None),
        ("", "mine.py:score", "there is no 'score' in .*mine.py; write one, or name another"),
        (None, "mine.py:score", "there is no such file; name one that is there"),
        (None, "no_such_module_of_mine:score", "no module .*set task.reward.folder"),
        ("def score(texts): return []", "mine.py:score", r"3 arguments .*; write it as score\(prompts, texts, rows\)"),
        ("def score(", "mine.py:score", "SyntaxError"),
        ("import sys; sys.exit()", "mine.py:score", "SystemExit"),
        (
            GOOD.replace("bonus", "bonuss"),
            "mine.py:score",
            r"on the text '\d': KeyError: 'bonuss' \(mine.py, line 2",
        ),
        ("def score(*all): return [float('nan')] * 9", "mine.py:score", "returned 9 values for 1 texts"),
        ("def score(*all): return [float('-inf')]", "mine.py:score", "returned -inf for a text: log R is finite, give"),
        ("import time\ndef score(*all): time.sleep(99)", "mine.py:score", r"longer than its limit of 0.5 s; mend it"),
    ],
)
def test_a_reward_function_is_loaded_and_tried_before_anything_starts(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch, source: str | None, function: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if source is not None:
        (tmp_path / "mine.py").write_text(source)
    given = config(tmp_path, digit_model, "--task.reward", function, "--task.reward.timeout_s", "0.5")
    start = time.monotonic()
    if problem is None:
        found = prepare(given).task.reward.function  # type: ignore[attr-defined]
        assert found == (f"{tmp_path}/mine.py:score" if ".py" in function else function)
        return
    with pytest.raises(UserError, match=problem) as error:
        prepare(given)
    assert error.value.field == "task.reward" and "\n" not in str(error.value)
    assert time.monotonic() - start < 20


COMPLETE_ONLY = """def score(prompts, texts, rows):
    if any(len(text) < 2 for text in texts):
        raise ValueError('too short')
    return [0.0] * len(texts)
"""


@pytest.mark.parametrize(
    ("objective", "min_len", "refused"),
    [("subtb", 0, True), ("db", 1, True), ("subtb", 2, False), ("vargrad", 0, False)],
)
def test_where_unfinished_texts_are_asked_about_they_are_tried_too(
    tmp_path: Path, digit_model: Path, objective: str, min_len: int, refused: bool
) -> None:
    (tmp_path / "mine.py").write_text(COMPLETE_ONLY)
    settings = ("--learner.objective", objective, "--task.min_len", str(min_len))
    given = config(tmp_path, digit_model, "--task.reward", f"{tmp_path}/mine.py:score", *settings)
    if not refused:
        prepare(given)
        return
    with pytest.raises(UserError, match=r"unfinished text '\d?': ValueError: too short .*choose vargrad or tb"):
        prepare(given)


def test_under_a_grammar_it_is_tried_on_a_text_that_fits(tmp_path: Path, digit_model: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def score(prompts, texts, rows): return [{'15': 1.0, '234': 2.0}[t] for t in texts]\n"
    )
    task = f"task: {{name: constrained, train_path: {tmp_path}/rows.jsonl, prompt: '{{x}}', regex: '15|234'}}"
    (tmp_path / "rows.jsonl").write_text('{"x": "number 1"}')
    prepare(config_of(tmp_path, digit_model, "--task.reward", f"{tmp_path}/mine.py:score", task=task))


@pytest.mark.parametrize("as_module", [False, True])
def test_another_function_under_the_same_name_is_noticed_and_the_same_one_elsewhere_is_taken(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch, as_module: bool
) -> None:
    for folder in ("own", "moved", "changed"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(GOOD if folder != "changed" else GOOD.replace("> 3", "> 4"))
    monkeypatch.chdir(tmp_path)

    def given(folder: str) -> list[str]:
        if as_module:
            return ["--task.reward", "mine:score", "--task.reward.folder", folder]
        return ["--task.reward", f"{folder}/mine.py:score"]

    run = make_run(config(tmp_path, digit_model, *given("own")))
    assert "task.reward.function" in load_identity(run)
    resume = ("--run.resume", "true")
    prepare(config(tmp_path, digit_model, *given("own"), *resume, "--task.reward.processes", "2"))
    prepare(config(tmp_path, digit_model, *given("moved"), *resume))
    with pytest.raises(UserError, match=r"task\.reward\.function = '.*mine.*score'"):
        prepare(config(tmp_path, digit_model, *given("changed"), *resume))
    shutil.copy(tmp_path / "changed" / "mine.py", tmp_path / "own" / "mine.py")
    with pytest.raises(UserError, match=r"task\.reward\.function = .*is not, by its content, what the run"):
        prepare(config(tmp_path, digit_model, *given("own"), *resume))
    with pytest.raises(UserError, match=r"task\.reward\.function = .*is not what the run was trained with"):
        check_models(prepare(config(tmp_path, digit_model, *given("own"), "--run.name", "other")), run)
