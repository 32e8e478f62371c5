"""A configuration of several files: later ones over earlier ones, and errors that name the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config import RunConfig
from common.config_loading import load_config, read_given
from common.errors import UserError

ROWS = "name: jsonl, train_path: rows.jsonl, prompt: '{x}'"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*texts: str) -> list[Path]:
    paths = [Path(f"{name}.yaml") for name in "abc"[: len(texts)]]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def load(*texts: str, overrides: tuple[str, ...] = ()) -> RunConfig:
    return load_config(write(*texts), overrides)


def test_later_files_come_over_earlier_ones_setting_by_setting(here: Path) -> None:
    config = load(
        "task: {name: rng, high: 9}\n"
        "learner: {lr: 0.1, steps: 7, reward: {temperature: {start: 2, end: 1.5, steps: 3}}}",
        "learner: {lr: 0.2, reward: {temperature: {end: 1}}}",
        "learner: {lr: 0.3}\ntask: {low: 3}",
    )
    task = config.task.model_dump()
    assert (task["low"], task["high"], config.learner.lr, config.learner.steps) == (3, 9, 0.3, 7)
    temperature = config.learner.reward.temperature
    assert (temperature.start, temperature.end) == (2, 1)


def test_a_list_is_taken_whole_and_null_takes_a_value_away(here: Path) -> None:
    config = load(
        f"task: {{{ROWS}, allowed_characters: '[a-z]', forbidden: [a]}}\nmodel: {{lora: {{target_modules: [a, b]}}}}",
        "task: {allowed_characters: null, forbidden: [c]}\nmodel: {lora: {target_modules: [c]}}",
    )
    assert config.model.lora.target_modules == ["c"]
    assert config.task.model_dump()["forbidden"] == ["c"] and config.task.model_dump()["allowed_characters"] is None


def test_a_schema_of_a_later_file_or_the_command_line_is_taken_whole(here: Path) -> None:
    first = "task: {name: constrained, train_path: r.txt, prompt: '{text}', json_schema: {type: string, minLength: 2}}"
    for config in (
        load(first, "task: {json_schema: {type: boolean}}"),
        load(first, overrides=("--task.json_schema", '{"type": "boolean"}')),
    ):
        assert config.task.model_dump()["json_schema"] == {"type": "boolean"}


def test_environment_and_command_line_come_over_all_files(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("task: {name: rng}\nlearner: {lr: 0.1, steps: 7, sync_every: 3}", "learner: {lr: 0.2, steps: 8}")
    monkeypatch.setenv("AMORTIS_LEARNER__STEPS", "9")
    monkeypatch.setenv("AMORTIS_LEARNER__LR", "0.3")
    learner = load(*files, overrides=("--learner.lr", "0.4")).learner
    assert (learner.lr, learner.steps, learner.sync_every) == (0.4, 9, 3)


def test_a_file_that_names_another_task_begins_that_section_anew(here: Path) -> None:
    config = load(f"task: {{{ROWS}, max_len: 5}}\nlearner: {{steps: 7}}", "task: {name: rng, high: 9}")
    assert config.task.name == "rng" and config.task.model_dump()["high"] == 9 and config.learner.steps == 7
    same = load(f"task: {{{ROWS}, max_len: 5}}", "task: {name: jsonl, max_len: 6}").task.model_dump()
    assert (same["max_len"], same["prompt"]) == (6, "{x}")
    # A file may leave the name to another.
    assert load("task: {high: 9}", "task: {name: rng, low: 1}").task.model_dump()["high"] == 9
    # On the command line single settings are said, the name among them.
    single = load(f"task: {{{ROWS}, max_len: 5}}", overrides=("--task.name", "infilling")).task
    assert single.name == "infilling" and single.model_dump()["max_len"] == 5


def test_an_own_task_s_module_in_a_later_file_begins_that_section_anew(here: Path) -> None:
    example = Path(__file__).parents[2] / "docs" / "examples" / "even_task.py"
    Path("mine.py").write_text(example.read_text())
    own = load("task: {name: rng, high: 9}", "task: {module: mine.py, max_len: 1}").task
    assert own.name == "even" and own.model_dump()["max_len"] == 1
    more = load("task: {module: mine.py, max_len: 1}", "task: {penalty: 3}", "task: {name: even}").task.model_dump()
    assert (more["max_len"], more["penalty"]) == (1, 3)
    assert load("task: {module: mine.py, max_len: 1}", "task: {name: rng}").task.name == "rng"


@pytest.mark.parametrize(
    ("files", "overrides", "message"),
    [
        (("task: {name: rng}", "learner: {lr: -1}"), (), r"learner\.lr = -1: .* \(b\.yaml\); see"),
        (("task: {name: rng}\nlearner: {lr: -1}", "learner: {steps: 3}"), (), r"learner\.lr = -1: .* \(a\.yaml\); see"),
        (("task: {name: rng}", "learner: {lrr: 1}"), (), r"learner\.lrr: is no setting \(b\.yaml\); did you mean"),
        (("task: {name: rng}", "leaner: {lr: 1}"), (), r"leaner: is no setting \(b\.yaml\); did you mean learner\?"),
        (("task: {name: rng}", "task: {name: rgn}"), (), r"task\.name = 'rgn': names no task \(b\.yaml\)"),
        (("task: {name: rng, high: 4}", "task: {low: 5}"), (), r"task\.low = 5: is not below .* \(b\.yaml\)"),
        (("task: {name: rng}", "learner: 5"), (), r"learner = 5: .*dictionary.* \(b\.yaml\)"),
        (("task: {name: rng}", "learner: {lr: 1}"), ("--learner.lr", "x"), r"learner\.lr = 'x': .* \(command line\)"),
        (("task: {name: rng}", "learner: ["), (), r"CONFIG = 'b\.yaml': is not valid YAML"),
        (("task: {name: rng}", ""), (), r"CONFIG = 'b\.yaml': is empty"),
    ],
)
def test_an_error_names_the_file_that_the_value_came_from(
    here: Path, files: tuple[str, ...], overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(*files, overrides=overrides)


def test_a_value_of_the_environment_is_named_by_its_variable(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMORTIS_LEARNER__LR", "-2")
    with pytest.raises(UserError, match=r"learner\.lr = '-2': .* \(environment variable AMORTIS_LEARNER__LR\)"):
        load("task: {name: rng}")


def test_each_value_is_known_by_where_it_came_from_last(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMORTIS_BUFFER__SHARDS", "2")
    paths = write("task: {name: rng, high: 9}\nlearner: {lr: 0.1, steps: 7}", "learner: {lr: 0.2}")
    given = read_given(paths, ("--task.high", "8"))
    assert given.origins == {
        "task.name": "a.yaml",
        "task.high": "command line",
        "learner.lr": "b.yaml",
        "learner.steps": "a.yaml",
        "buffer.shards": "environment variable AMORTIS_BUFFER__SHARDS",
    }


REWARDED = f"task: {{{ROWS}, reward: {{function: 'other.py:f', columns: [x], timeout_s: 3}}}}"


@pytest.mark.parametrize("how", ["environment", "command line", "both"])
def test_a_function_from_elsewhere_keeps_the_rest_of_its_section(
    here: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how != "command line":
        monkeypatch.setenv("AMORTIS_TASK__REWARD", "environment.py:score" if how == "both" else "mine.py:score")
    given = read_given(write(REWARDED), ["--task.reward", "mine.py:score"] if how != "environment" else [])
    reward = given.config().task.model_dump()["reward"]
    assert (reward["function"], reward["columns"], reward["timeout_s"]) == ("mine.py:score", ["x"], 3.0)
    assert given.origins["task.reward.timeout_s"] == "a.yaml"
    variable = "environment variable AMORTIS_TASK__REWARD"
    assert given.origins["task.reward.function"] == (variable if how == "environment" else "command line")


def test_a_function_and_the_rest_of_its_section_may_both_come_from_the_environment(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for order in (1, -1):
        for name, value in [("", "mine.py:score"), ("__TIMEOUT_S", "5")][::order]:
            monkeypatch.delenv(f"AMORTIS_TASK__REWARD{name}", raising=False)
            monkeypatch.setenv(f"AMORTIS_TASK__REWARD{name}", value)
        given = read_given(write(REWARDED), [])
        reward = given.config().task.model_dump()["reward"]
        assert (reward["function"], reward["columns"], reward["timeout_s"]) == ("mine.py:score", ["x"], 5.0)
        assert given.origins["task.reward.timeout_s"] == "environment variable AMORTIS_TASK__REWARD__TIMEOUT_S"
    monkeypatch.setenv("AMORTIS_TASK__REWARD", '{"function": "mine.py:score", "timeout_s": 4}')
    monkeypatch.delenv("AMORTIS_TASK__REWARD__TIMEOUT_S")
    given = read_given(write(REWARDED), [])
    assert given.config().task.model_dump()["reward"]["timeout_s"] == 4.0
    assert given.origins["task.reward.timeout_s"] == "environment variable AMORTIS_TASK__REWARD"
    monkeypatch.delenv("AMORTIS_TASK__REWARD")
    monkeypatch.setenv("AMORTIS_TASK", '{"reward": "mine.py:score"}')
    given = read_given(write(REWARDED), [])
    assert given.config().task.model_dump()["reward"]["timeout_s"] == 3.0
    assert given.origins["task.reward.function"] == "environment variable AMORTIS_TASK"
    given = read_given(write(REWARDED), ["--task", '{"reward": "last.py:score"}'])
    reward = given.config().task.model_dump()["reward"]
    assert (reward["function"], reward["timeout_s"]) == ("last.py:score", 3.0)
