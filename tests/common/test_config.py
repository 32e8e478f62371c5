"""Configuration: where values come from, and what is said of wrong ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.config import RunConfig
from common.config_loading import REDIS_URL_VARIABLE, known_keys, load_config, load_resolved, save_resolved
from common.errors import UserError


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("task: {name: rng, high: 50}\nlearner: {lr: 0.002, steps: 7}\n")
    return path


def test_command_line_beats_environment_beats_file_beats_default(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_config(config_file).learner.lr == 0.002
    monkeypatch.setenv("AMORTIS_LEARNER__LR", "0.003")
    monkeypatch.setenv("AMORTIS_LEARNER__STEPS", "8")
    config = load_config(config_file, ["--learner.lr", "1e-4"])
    assert (config.learner.lr, config.learner.steps, config.learner.warmup_steps) == (1e-4, 8, 10)


def test_nested_settings_lists_and_task_settings_can_be_overridden(config_file: Path) -> None:
    overrides = ["--model.lora.rank=8", "--model.lora.target_modules", '["o_proj"]', "--task.high", "9"]
    config = load_config(config_file, [*overrides, "--learner.reward.temperature.end", "0.8"])
    assert config.model.lora.rank == 8 and config.model.lora.target_modules == ["o_proj"]
    assert config.task.model_dump()["high"] == 9
    assert config.learner.reward.temperature.end == 0.8


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("task: {name: rng}\nlearner: {lrr: 1}", [], "learner.lrr: is no setting .* did you mean learner.lr?"),
        ("task: {name: rng, hihg: 1}", [], "task.hihg: .* did you mean task.high?"),
        (
            "task: {name: rng, reward: 'm.py:f'}",
            [],
            r"task.reward: is no setting of this task .*one of arithmetic, .*jsonl",
        ),
        ("task: {name: rng}\nlearner.lr: 1", [], r"learner.lr: is written with a dot .*; write lr in its section"),
        ("task: {name: rng}\nmodel: {lora.rank: 8}", [], r"model.lora.rank: is written with a dot .*; write rank in"),
        ("task: {name: rng}", ["--lerner.lr", "1"], "lerner.lr: is no setting .* did you mean learner.lr?"),
        ("task: {name: rng}", ["learner.lr=1"], "learner.lr: is written without dashes .* write --learner.lr VALUE"),
        ("task: {name: rng}", ["--learner.lr"], "learner.lr: expected one argument"),
        ("task: {name: rng}", ["--learner.lr", "fast"], "learner.lr = 'fast': Input should be a valid number"),
        ("task: {name: rng}\nlearner: {lr: -1}", [], "learner.lr = -1: Input should be greater than 0"),
        ("task: {name: rng}\nlearner: {objective: ppo}", [], "learner.objective = 'ppo'"),
        (
            "task: {name: rgn}",
            [],
            r"task.name = 'rgn': names no task \(.*config.yaml\); choose one of arithmetic, constrained, continuation",
        ),
        ("learner: {lr: 1}", [], "task: is missing"),
        ("task: {name: continuation}", [], "task.train_path: is missing"),
        ("task: {name: rng, low: 5, high: 5}", [], "task.low = 5"),
        ("task: {name: rng}\nlearner: {objective: vargrad, trajectories_per_query: 1}", [], "must be 2 or more"),
        ("task: {name: rng}\nactor: {temperature_low: 2, temperature_high: 1}", [], "temperature_low is above"),
        ("task: {name: rng}\nactor: {temperature_high: 2.5}", [], "actor.temperature_high = 2.5: .* equal to 2"),
        ("task: [", [], "is not valid YAML at line 1"),
        ("- 1", [], "holds a list"),
        ("", [], "is empty"),
    ],
)
def test_a_wrong_configuration_is_one_line_that_names_field_value_and_remedy(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_an_unknown_environment_variable_is_an_error_not_silence(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMORTIS_LEARNER__LRR", "1")
    with pytest.raises(UserError, match=r"learner\.lrr: .*AMORTIS_LEARNER__LRR.* did you mean learner\.lr"):
        load_config(config_file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml.*No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_the_resolved_configuration_reads_back_the_same_but_for_the_redis_password(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(config_file, ["--redis.url", "redis://user:hunter2@host:6379/0"])
    saved = tmp_path / "resolved.yaml"
    save_resolved(config, saved)
    assert "hunter2" not in saved.read_text() and "hunter2" not in repr(config)
    monkeypatch.setenv(REDIS_URL_VARIABLE, "redis://user:hunter2@host:6379/0")
    # An override by environment must not change a configuration that is already resolved.
    monkeypatch.setenv("AMORTIS_LEARNER__LR", "0.5")
    assert load_resolved(saved) == config


def test_weights_come_from_the_task_unless_they_are_configured(config_file: Path) -> None:
    assert load_config(config_file).reward_weights.prior == 0.0
    assert load_config(config_file, ["--learner.reward.prior_weight", "0.5"]).reward_weights.prior == 0.5


def test_every_setting_has_a_description() -> None:
    from pydantic import BaseModel

    def check(model: type[BaseModel], prefix: str) -> list[str]:
        missing = []
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                missing += check(kind, f"{prefix}{name}.")
            elif name not in ("task", "name") and not field.description:
                missing.append(prefix + name)
        return missing

    from common.tasks import TASKS

    assert check(RunConfig, "") == []
    assert [key for task in TASKS.values() for key in check(task.Config, "task.")] == []


def test_known_keys_hold_nested_and_task_settings() -> None:
    keys = set(known_keys())
    assert {"learner.reward.temperature.end", "task.train_path", "task.high", "model.lora.rank"} <= keys


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: {name: rng}\ntask: {name: rng, high: 7}\n", "'task' stands twice, in line 1 and in line 2"),
        ("learner:\n  lr: 1\n  steps: 2\n  lr: 2\n", "'lr' stands twice, in line 2 and in line 4; bring the two"),
        ("task: {name: rng}\n1: x\n", "has a section 1; write sections"),
        ("task: {name: rng}\nlearner: {1: 2}\n", "learner.1"),
        (f"task: {{name: rng, high: {'9' * 5_000}}}\n", "holds a value that can't be read"),
        ("task: {name: rng, prompt: 2020-13-45}\n", "holds a value that can't be read .month must be"),
        (f"task: {'[' * 5_000}\n", "holds a value that can't be read"),
        ('task: {name: rng, prompt: "\\ud83d {low}"}\n', "task.prompt = .*: holds half a character; write it in UTF-8"),
        ('task: {name: reasoning_gym, options: {a: ["\\ud83d"]}}\n', "task.options.a = .*: holds half a character"),
        ('task: {name: rng}\n"\\ud83d": {}\n', "CONFIG = .*: holds half a character"),
        ("task: &a [*a]\n", "holds a value that can't be read"),
        ("task: {name: rng}\n".encode("utf-16"), "can't be read .it is UTF-16.; save it as UTF-8"),
        (
            b"task: {name: rng}\nrun: {name: caf\xe9}\n",
            "line 2: byte 0xe9 is no UTF-8.; save it as UTF-8",
        ),
        ("task: {name: rng, prompt: 'number {'}\n", "task.prompt = 'number {': a lone { at character 8"),
        (
            "task: {name: rng, prompt: '{\"x\": 1}'}\n",
            "task.prompt = .*stands for nothing.*itself twice: {{ or }}",
        ),
        ("task: {name: rng}\nseeds: {hint: '{prompt} {'}\n", "seeds.*a lone { at character 10"),
        ("task: {name: rng}\nseeds: {hint: '{{prompt}}'}\n", "seeds.*holds no {prompt}"),
        ("task: {name: jsonl, train_path: a.txt, prompt: '{text}', test_path: []}\n", "task.test_path.*names no file"),
    ],
)
def test_a_file_that_says_one_thing_twice_or_what_is_no_text_is_refused(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as found:
        load_config(path)
    assert "\n" not in str(found.value)


def test_a_file_is_utf_8_whatever_the_machine_s_own_encoding_and_may_have_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("\ufefftask: {name: rng, prompt: 'é {low}\u2028–'}\n".encode())
    code = (
        "import sys; from pathlib import Path; from common.config_loading import load_config; "
        "sys.stdout.buffer.write(load_config(Path(sys.argv[1])).task.prompt.encode())"
    )
    # The C locale with UTF-8 mode off stands for every other encoding.
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, capture_output=True, check=True)
    assert found.stdout.decode() == "é {low}\u2028–"


def test_aliases_and_merged_sections_say_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "task: &t {name: rng, high: 7}\nlearner: {<<: &l {steps: 3}, lr: 1.0e-4}\nbuffer: {<<: {}, <<: {}}\n"
    )
    config = load_config(path)
    assert config.learner.steps == 3 and config.task.model_dump()["high"] == 7


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
@pytest.mark.parametrize(
    "key", ["learner.lr", "actor.push_every_s", "learner.reward.temperature.start", "task.penalty"]
)
def test_numbers_without_an_end_are_refused(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("task: {name: constrained, train_path: x.txt, prompt: '{text}'}")
    with pytest.raises(UserError) as refused:
        load_config(path, [f"--{key}={value}"])
    assert refused.value.field == key and "finite" in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"), [("task.json_schema", '{"type": "integer"'), ("model.lora.target_modules", '["q_proj"')]
)
def test_a_value_of_several_parts_that_is_not_whole_is_one_line(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("task: {name: constrained, train_path: x.txt, prompt: '{text}'}")
    with pytest.raises(UserError, match="Missing end delimiter") as refused:
        load_config(path, [f"--{key}", value])
    assert refused.value.field == key


def test_a_variable_of_several_parts_that_is_not_whole_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("task: {name: rng}")
    monkeypatch.setenv("AMORTIS_MODEL__LORA__TARGET_MODULES", '["q_proj"')
    with pytest.raises(UserError):
        load_config(path, [])
