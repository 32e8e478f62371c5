"""`amortis train --dry-run`: what a run would have, where it came from, and whether it could start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis

from common.config import RunConfig
from common.config_loading import load_config
from deploy.cli.main import main
from deploy.run.checks import prepare

ROOT = Path(__file__).parents[3]
TASK = "task: {name: rng, high: 50}\nactor: {max_model_len: 64, dtype: auto}\n"


@pytest.fixture
def start(tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line of two files in a user's folder."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text(f"{TASK}learner: {{lr: 0.1, steps: 7}}\n")
    Path("mine.yaml").write_text(f"learner: {{lr: 0.2}}\nmodel: {{name: '{digit_model}'}}\nrun: {{folder: mine}}\n")
    return ["train", "base.yaml", "mine.yaml", "--dry-run"]


def as_json(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 0) -> tuple[dict[str, Any], str]:
    assert main([*arguments, "--json"]) == status
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_every_value_is_shown_with_where_it_came_from(
    start: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMORTIS_BUFFER__MIN_SIZE", "32")
    found, err = as_json([*start, "--run.seed", "3"], capsys)
    expected = prepare(load_config([Path("base.yaml"), Path("mine.yaml")], ["--run.seed", "3"]))
    assert RunConfig.model_validate(found["config"]) == expected and err == ""
    assert found["checks"] == {"passed": True, "notes": [], "error": None}
    sources = found["sources"]
    assert {
        "task.high": "base.yaml",
        "learner.steps": "base.yaml",
        "learner.lr": "mine.yaml",
        "model.name": "mine.yaml",
        "run.folder": "mine.yaml",
        "buffer.min_size": "environment variable AMORTIS_BUFFER__MIN_SIZE",
        "run.seed": "command line",
        "learner.device": "found: this machine",
        "actor.dtype": "found: this machine, for auto of base.yaml",
        "learner.sync_every": "default",
        "model.lora.rank": "default",
    }.items() <= sources.items()
    assert set(sources) == set(leaves(found["config"]))


def leaves(data: dict[str, Any], prefix: str = "") -> list[str]:
    parts = [
        leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
        for name, value in data.items()
    ]
    return [name for part in parts for name in part]


def test_nothing_is_written_and_nothing_started(
    start: list[str], redis_url: str, redis_client: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    assert main([*start, "--run.name", "r", "--redis.url", redis_url]) == 0
    assert sorted(Path().rglob("*")) == before
    assert redis_client.keys("*") == []
    assert "url: '**********'" in capsys.readouterr().out


def test_what_is_shown_is_yaml_that_gives_the_same_run(start: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(start) == 0
    shown = capsys.readouterr().out
    Path("whole.yaml").write_text(shown)
    expected = prepare(load_config([Path("base.yaml"), Path("mine.yaml")]))
    assert prepare(load_config(Path("whole.yaml"))) == expected
    assert shown.endswith("# checks: passed, a run can start\n")
    line = next(line for line in shown.splitlines() if line.strip().startswith("lr:"))
    assert line.split("#")[1].strip() == "mine.yaml" and yaml.safe_load(line) == {"lr": 0.2}


def test_what_checks_say_of_the_data_is_shown_and_a_function_with_the_variable_that_named_it(
    start: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps({"x": f"{i} {i}"}) + "\n" for i in (1, 2, 3, 3)))
    Path("rows.yaml").write_text(
        "task: {name: jsonl, train_path: rows.jsonl, prompt: '{x}', max_len: 4, allowed_characters: '[0-9]', "
        "reward: {function: 'other.py:f', timeout_s: 3}}"
    )
    Path("mine.py").write_text("def score(prompts, texts, rows): return [0.0] * len(texts)\n")
    monkeypatch.setenv("AMORTIS_TASK__REWARD", "mine.py:score")
    found, err = as_json([*start[:-1], "rows.yaml", "--dry-run"], capsys)
    assert any("1 repeated rows are used once" in note for note in found["checks"]["notes"]) and err == ""
    assert found["sources"]["task.reward.function"] == "environment variable AMORTIS_TASK__REWARD"
    assert (
        found["sources"]["task.reward.timeout_s"] == "rows.yaml" and found["config"]["task"]["reward"]["timeout_s"] == 3
    )
    assert main([*start[:-1], "rows.yaml", "--dry-run"]) == 0
    assert "# note: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message", "shown"),
    [
        # Found by a check, a value of a setting, an unknown setting, the task's own module.
        (("--actor.max_model_len", "8"), r"actor.max_model_len = 8: .* (command line); raise it", 0.2),
        (("--learner.lr", "-1"), "learner.lr = '-1': Input should be greater than 0 (command line)", "-1"),
        (("--learner.lrr", "1"), "learner.lrr: is no setting (command line); did you mean learner.lr?", 0.2),
        (("--task.module", "gone.py"), "task.module = 'gone.py': can't be read", 0.2),
        (("--run.resume", "true"), "run.resume = True: goes on with no run", 0.2),
    ],
)
def test_what_keeps_a_run_from_starting_is_one_line_after_the_settings(
    start: list[str], options: tuple[str, str], message: str, shown: object, capsys: pytest.CaptureFixture[str]
) -> None:
    found, err = as_json([*start, *options], capsys, status=2)
    (line,) = err.splitlines()
    head, _, tail = message.partition(" .* ")
    assert line.startswith(f"amortis: {head}") and tail in line
    assert found["checks"]["passed"] is False and f"amortis: {found['checks']['error']}" == line
    assert found["config"]["learner"]["lr"] == shown
    assert main([*start, *options]) == 2
    out, err = capsys.readouterr()
    assert "steps: 7" in out and out.endswith("# checks: failed\n") and err.splitlines() == [line]


def test_what_a_check_finds_is_said_with_the_file_that_the_value_came_from(
    start: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("short.yaml").write_text("actor: {max_model_len: 8}")
    started = ["train", "base.yaml", "mine.yaml", "short.yaml"]
    for arguments in (started, [*started, "--dry-run"]):
        assert main(arguments) == 2
        assert "actor.max_model_len = 8: " in (err := capsys.readouterr().err) and "(short.yaml); raise it" in err


def test_a_file_that_is_no_yaml_is_said_at_once(start: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("task: [")
    assert main(start) == 2
    out, err = capsys.readouterr()
    assert out == "" and "'mine.yaml': is not valid YAML" in err


@pytest.mark.parametrize("wrong", ["--learner.lr=-1", "--actor.max_model_len=8", "--redis.retries=1"])
def test_a_password_is_never_shown(start: list[str], wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    url = "redis://user:hunter2@127.0.0.1:1/0"
    assert main([*start, "--redis.url", url, "--redis.timeout_s", "0.2", wrong]) == 2
    assert main([*start, "--redis.url", url, "--redis.timeout_s", "0.2", wrong, "--json"]) == 2
    out, err = capsys.readouterr()
    assert "hunter2" not in out + err and "**********" in out


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["status", "--help"], ["buffer", "stats", "--help"]]
)
def test_help_is_there_without_what_takes_long_to_import(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv[0] = 'amortis'; from deploy.cli.main import main\n"
        "try: main()\n"
        "finally: print({'torch', 'transformers', 'ray', 'vllm', 'redis', 'pydantic', 'numpy'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "usage: amortis" in result.stdout and result.stdout.splitlines()[-1] == "set()"
