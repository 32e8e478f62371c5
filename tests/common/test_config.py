"""Configuration: where values come from, and what is said of wrong ones."""

from __future__ import annotations

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
        ("task: {name: rng}", ["--lerner.lr", "1"], "lerner.lr: is no setting .* did you mean learner.lr?"),
        ("task: {name: rng}", ["learner.lr=1"], "learner.lr: is written without dashes .* write --learner.lr VALUE"),
        ("task: {name: rng}", ["--learner.lr"], "learner.lr: expected one argument"),
        ("task: {name: rng}", ["--learner.lr", "fast"], "learner.lr = 'fast': Input should be a valid number"),
        ("task: {name: rng}\nlearner: {lr: -1}", [], "learner.lr = -1: Input should be greater than 0"),
        ("task: {name: rng}\nlearner: {objective: ppo}", [], "learner.objective = 'ppo'"),
        (
            "task: {name: rgn}",
            [],
            "task.name = 'rgn': names no task; choose one of arithmetic, constrained, continuation",
        ),
        ("learner: {lr: 1}", [], "task: is missing"),
        ("task: {name: continuation}", [], "task.train_path: is missing"),
        ("task: {name: rng, low: 5, high: 5}", [], "task.low = 5"),
        ("task: {name: rng}\nlearner: {objective: vargrad, trajectories_per_query: 1}", [], "must be 2 or more"),
        ("task: {name: rng}\nactor: {temperature_low: 2, temperature_high: 1}", [], "temperature_low is above"),
        ("task: {name: rng}\nactor: {temperature_high: 2.5}", [], "actor.temperature_high = 2.5: .* equal to 2"),
        ("task: [", [], "is not valid YAML at line 1"),
        ("- 1", [], "holds a list"),
        ("", [], "holds a NoneType"),
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
