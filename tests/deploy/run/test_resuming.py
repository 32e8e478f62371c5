"""What a run is gone on with: its own configuration, model, queries and checkpoints, and nothing overwritten before."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from redis import Redis

from buffer.connection import Keys
from buffer.control import Control
from common.config import RunConfig
from common.config_loading import known_keys, load_run, save_resolved
from common.errors import RunFault, UserError
from deploy.run import launcher
from deploy.run.best import Best, keep_best
from deploy.run.checks import prepare
from deploy.run.em import _begin
from deploy.run.launcher import Launcher
from deploy.run.resuming import FIXED, FREE, reason_to_keep
from deploy.run.run_folder import claimed
from learner.checkpoint import load_checkpoint, save_checkpoint
from tests.deploy.run.runs import config_of, contents, make_run, other_weights

TEXT = "task: {{name: jsonl, train_path: '{0}/rows.jsonl', prompt: '{{x}}', max_len: 4, allowed_characters: '[0-9 ]'}}"


def test_every_setting_is_said_to_stay_or_to_be_free_and_why() -> None:
    for name in known_keys():
        reason_to_keep(name)
    for name in (*FIXED, *FREE):
        assert any(key == name or key.startswith(name) for key in known_keys()), f"{name} is no setting"
    assert all({**FIXED, **FREE}.values())


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["--model.lora.rank", "8"], r"model\.lora\.rank = 8: the run to resume has 16, and its checkpoints"),
        (["--model.lora.alpha", "8"], r"model\.lora\.alpha = 8\.0: the run to resume has 16\.0"),
        (
            ["--model.lora.target_modules", '["q_proj"]'],
            r"model\.lora\.target_modules = \['q_proj'\]: the run to resume has \[\"q_proj\", \"v_proj\"\]",
        ),
        (["--learner.objective", "tb"], r"learner\.objective = 'tb': the run to resume has \"subtb\""),
        (["--task.high", "50"], r"task\.high = 50: the run to resume has 100, .* mask"),
        (["--task.penalty", "5"], r"task\.penalty = 5\.0: the run to resume has 10\.0"),
        (["--task.terminator", ":"], r"task\.terminator = ':': the run to resume has \"\.\""),
        (["--reference.dtype", "bfloat16"], r"reference\.dtype = 'bfloat16': the run to resume has \"float32\""),
        (["--buffer.shards", "2"], r"buffer\.shards = 2: the run to resume has 1"),
        (["--seeds.hint", "{prompt}"], r"seeds\.hint = '\{prompt\}': the run to resume has null, and they were queued"),
        (["--run.redis_name", "other"], r"run\.redis_name = 'other': the run to resume has \"good\""),
        (["--em.iterations", "2"], r"em\.iterations = 2: the run to resume has 0"),
        (["--redis.url", "{redis}"], r"redis\.url = .*: the run to resume has its buffer in .*/good"),
    ],
)
def test_a_resumed_run_that_would_be_another_is_refused_with_both_values_and_left_as_it_was(
    tmp_path: Path, digit_model: Path, redis_url: str, redis_client: Redis, changed: list[str], expected: str
) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "good"))
    before = contents(folder)
    options = [option.replace("{redis}", redis_url) for option in changed]
    resumed = config_of(tmp_path, digit_model, "--run.name", "good", "--run.resume", "true", *options)
    with pytest.raises(UserError, match=expected) as caught:
        prepare(resumed)
    assert "--run.name" in caught.value.remedy or "leave it out" in caught.value.remedy
    assert contents(folder) == before


@pytest.mark.parametrize(
    "changed",
    [
        ["--learner.steps", "999", "--learner.lr", "1e-4", "--learner.sync_every", "2"],
        ["--learner.reward.temperature.start", "2", "--learner.reward.temperature.steps", "9"],
        ["--learner.reward.prior_weight", "0.5"],
        ["--actor.count", "3", "--actor.temperature_high", "1.5", "--actor.max_in_flight", "8"],
        ["--task.evaluation_samples", "5", "--run.seed", "4", "--run.evaluate_base", "false"],
        ["--buffer.capacity", "5000", "--buffer.max_staleness", "9", "--tracking.project", "other"],
    ],
)
def test_what_changes_nothing_that_is_stored_may_change(tmp_path: Path, digit_model: Path, changed: list[str]) -> None:
    make_run(config_of(tmp_path, digit_model, "--run.name", "good"))
    prepare(config_of(tmp_path, digit_model, "--run.name", "good", "--run.resume", "true", *changed))


def test_what_is_of_test_rows_alone_may_change(tmp_path: Path, digit_model: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"x": f"number {i}"}) for i in range(10, 20)))
    task = TEXT.format(tmp_path)
    tested = ["--task.test_path", str(tmp_path / "rows.jsonl"), "--task.on_overlap", "report"]
    make_run(config_of(tmp_path, digit_model, "--run.name", "good", *tested, task=task))
    changed = ["--task.test_skip", "2", "--task.test_size", "3", "--task.corrected_samples", "9"]
    resumed = ["--run.name", "good", "--run.resume", "true", *tested, *changed]
    prepare(config_of(tmp_path, digit_model, *resumed, task=task))


def test_another_model_of_equal_shapes_is_noticed_and_the_same_one_elsewhere_is_taken(
    tmp_path: Path, digit_model: Path
) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "good"))
    before = contents(folder)
    resume = ["--run.name", "good", "--run.resume", "true"]
    other = other_weights(digit_model, tmp_path / "other")
    with pytest.raises(
        UserError, match=r"model\.name = '.*other': the run to resume has \".*digits\", and its adapter"
    ):
        prepare(config_of(tmp_path, other, *resume))
    assert contents(folder) == before
    moved = tmp_path / "moved"
    shutil.copytree(digit_model, moved)
    assert prepare(config_of(tmp_path, moved, *resume)).model.name == str(moved)


def test_a_model_that_was_replaced_at_its_place_is_noticed(tmp_path: Path, digit_model: Path) -> None:
    own = tmp_path / "model"
    shutil.copytree(digit_model, own)
    make_run(config_of(tmp_path, own, "--run.name", "good"))
    shutil.rmtree(own)
    other_weights(digit_model, own)
    with pytest.raises(UserError, match=r"model\.name = '.*model': is not, by its content, what the run to resume"):
        prepare(config_of(tmp_path, own, "--run.name", "good", "--run.resume", "true"))


def test_other_training_rows_are_noticed_and_the_same_ones_elsewhere_are_taken(
    tmp_path: Path, digit_model: Path
) -> None:
    lines = [json.dumps({"x": f"number {i}"}) for i in range(10, 20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    task = TEXT.format(tmp_path)
    make_run(config_of(tmp_path, digit_model, "--run.name", "good", task=task))
    resume = ["--run.name", "good", "--run.resume", "true"]
    (tmp_path / "moved").mkdir()
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "moved" / "rows.jsonl")
    prepare(config_of(tmp_path, digit_model, *resume, task=TEXT.format(tmp_path / "moved")))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(
        UserError, match=r"task\.train_path = '.*rows.jsonl': gives other training queries than the run"
    ):
        prepare(config_of(tmp_path, digit_model, *resume, task=task))


def test_a_renamed_run_is_gone_on_with_under_the_name_that_its_keys_have(tmp_path: Path, digit_model: Path) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "good"))
    folder.rename(folder.with_name("better"))
    resumed = prepare(config_of(tmp_path, digit_model, "--run.name", "better", "--run.resume", "true"))
    assert (resumed.run_folder.name, resumed.redis_name) == ("better", "good")


def test_a_run_that_was_given_a_redis_is_not_resumed_without_one(tmp_path: Path, digit_model: Path) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "good"))
    (folder / "redis").rmdir()
    with pytest.raises(UserError, match=r"redis\.url: the run to resume has its buffer in a Redis that it was given"):
        prepare(config_of(tmp_path, digit_model, "--run.name", "good", "--run.resume", "true"))


def test_an_older_checkpoint_is_gone_on_from_with_a_warning_and_none_is_an_error_with_all_of_them(
    tmp_path: Path, digit_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "good"))
    resumed = config_of(tmp_path, digit_model, "--run.name", "good", "--run.resume", "true")
    damage(folder / "checkpoints" / "step-000010" / "tensors.safetensors")
    before = contents(folder)
    prepare(resumed)
    said = capsys.readouterr().err
    assert "step-000010 can't be read" in said and "going on from step-000005" in said
    assert contents(folder) == before
    damage(folder / "checkpoints" / "step-000005" / "tensors.safetensors")
    with pytest.raises(
        UserError, match=r"run\.resume = True: no checkpoint in .* can be read .*step-000010.*step-000005"
    ):
        prepare(resumed)


def test_a_checkpoint_that_was_to_be_replaced_when_a_crash_came_is_gone_on_from(
    tmp_path: Path, digit_model: Path
) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "good"))
    shutil.rmtree(folder / "checkpoints" / "step-000005")
    (folder / "checkpoints" / "step-000010").rename(folder / "checkpoints" / ".step-000010.replaced")
    prepare(config_of(tmp_path, digit_model, "--run.name", "good", "--run.resume", "true"))


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def fails(self: Launcher, stack: object, folder: Path) -> str:
    return "learner: an actor can't load the adapter"


def resumed_from(tmp_path: Path, model: Path) -> RunConfig:
    options = ["--run.name", "good", "--run.resume", "true", "--learner.steps", "77"]
    return prepare(config_of(tmp_path, model, *options))


def test_a_resumed_run_that_fails_before_its_first_step_leaves_the_good_one_as_it_was(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "good"))
    before = contents(folder)
    monkeypatch.setattr(launcher.Launcher, "_run_parts", fails)
    with (
        pytest.raises(RunFault, match="can't load the adapter"),
        claimed(resumed_from(tmp_path, digit_model)) as config,
    ):
        Launcher(config).run()
    after = {name: content for name, content in contents(folder).items() if not name.startswith("logs/")}
    assert after == before and load_run(folder).learner.steps == 200


def test_a_resumed_run_that_was_killed_gives_back_what_the_good_one_had_at_the_next_attempt(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "good"))
    before = contents(folder)
    monkeypatch.setattr("deploy.run.put_aside._end", lambda folder: None)
    monkeypatch.setattr(launcher.Launcher, "_run_parts", fails)
    with pytest.raises(RunFault), claimed(resumed_from(tmp_path, digit_model)) as config:
        Launcher(config).run()
    assert not (folder / "evaluation_after.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr(launcher.Launcher, "_run_parts", fails)
    with pytest.raises(RunFault), claimed(resumed_from(tmp_path, digit_model)) as config:
        Launcher(config).run()
    assert {name: content for name, content in contents(folder).items() if not name.startswith("logs/")} == before


@pytest.mark.parametrize("fault", ["learner: no memory", None])
def test_the_untrained_policy_s_evaluation_goes_with_the_task_s_settings(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "good"))
    first = folder / "evaluation_before.json"
    first.write_text("{}")
    seen = []

    def parts(self: Launcher, stack: object, folder: Path) -> str | None:
        seen.append(first.exists())
        if fault is None:
            (folder / "learner_summary.json").write_text('{"stopped_because": null, "trained_to_its_end": true}')
        return fault

    monkeypatch.setattr(launcher.Launcher, "_run_parts", parts)
    for options in ([], ["--task.evaluation_samples", "5"]):
        again = config_of(tmp_path, digit_model, "--run.name", "good", "--run.resume", "true", *options)
        with contextlib.suppress(RunFault), claimed(prepare(again)) as config:
            Launcher(config).run()
    assert seen == [True, False]
    assert first.exists() == (fault is not None), "a run that got no further has what it had"


@pytest.mark.parametrize(("stopped_because", "kept"), [("interrupted", True), (None, False)])
def test_a_resumed_run_that_is_stopped_before_its_first_step_leaves_the_good_one_and_one_that_ends_does_not(
    tmp_path: Path,
    digit_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    stopped_because: str | None,
    kept: bool,
) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "good"))
    before = contents(folder)

    def does_no_step(self: Launcher, stack: object, folder: Path) -> None:
        """What the learner leaves of that: the checkpoint again, the evaluation, its summary."""
        tensors, state = load_checkpoint(folder / "checkpoints")
        save_checkpoint(folder / "checkpoints", state.pop("step"), tensors, state, keep=2)
        (folder / "evaluation_after.json").write_text("{}")
        of_learner = {"stopped_because": stopped_because, "trained_to_its_end": stopped_because is None}
        (folder / "learner_summary.json").write_text(json.dumps(of_learner))
        self._stopped = stopped_because

    monkeypatch.setattr(launcher.Launcher, "_run_parts", does_no_step)
    with claimed(resumed_from(tmp_path, digit_model)) as config:
        assert Launcher(config).run()["interrupted"] == kept
    names = ("summary.json", "learner_summary.json", "evaluation_after.json", "evaluation_samples.json", "config.yaml")
    after = contents(folder)
    assert [after.get(name) == before[name] for name in names] == [kept] * len(names)
    assert not (folder / ".before-resume").exists()


def test_a_resumed_run_that_fails_later_says_so_in_its_summary(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "good"))

    def steps_and_fails(self: Launcher, stack: object, folder: Path) -> str:
        save_checkpoint(folder / "checkpoints", 15, {"x": torch.zeros(1)}, {}, keep=2)
        return "learner: not finite"

    monkeypatch.setattr(launcher.Launcher, "_run_parts", steps_and_fails)
    with pytest.raises(RunFault), claimed(resumed_from(tmp_path, digit_model)) as config:
        Launcher(config).run()
    assert json.loads((folder / "summary.json").read_text())["fault"] == "learner: not finite"
    assert load_run(folder).learner.steps == 77


OF_LAST = ("diagnosis.json", "calibration.json", "calibration.png")
OF_BEST = ("diagnosis-best.json", "calibration-best.json", "calibration-best.png")


@pytest.mark.parametrize("beaten", [False, True])
def test_what_was_found_of_an_adapter_is_left_out_once_another_takes_its_place(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch, beaten: bool
) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "good"))
    best = Best(10, 10, "mean_log_reward", "max", -3.0, "0" * 64)
    keep_best(folder, {"weights": b"10"}, best)
    for name in (*OF_LAST, *OF_BEST):
        (folder / name).write_text("found")
    before = contents(folder)

    def steps(self: Launcher, stack: object, folder: Path) -> str:
        assert not any((folder / name).exists() for name in (*OF_LAST, *OF_BEST))
        if self.config.learner.steps == 77:
            save_checkpoint(folder / "checkpoints", 15, {"x": torch.zeros(1)}, {}, keep=2)
            if beaten:
                keep_best(folder, {"weights": b"15"}, replace(best, step=15, value=-2.0, sha256="1" * 64))
        return "learner: not finite"

    monkeypatch.setattr(launcher.Launcher, "_run_parts", steps)
    none_done = ["--run.name", "good", "--run.resume", "true", "--learner.steps", "78"]
    with pytest.raises(RunFault), claimed(prepare(config_of(tmp_path, digit_model, *none_done))) as config:
        Launcher(config).run()
    assert {name: content for name, content in contents(folder).items() if not name.startswith("logs/")} == before
    with pytest.raises(RunFault), claimed(resumed_from(tmp_path, digit_model)) as config:
        Launcher(config).run()
    assert not any((folder / name).exists() for name in OF_LAST)
    assert [(folder / name).exists() for name in OF_BEST] == [not beaten] * len(OF_BEST)


def test_a_resumed_run_uses_its_own_buffer_in_a_shared_redis_only(
    tmp_path: Path, digit_model: Path, redis_url: str, redis_client: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--run.name", "good", "--redis.url", redis_url]
    folder = make_run(config_of(tmp_path, digit_model, *given))
    (folder / "redis").rmdir()
    resumed = config_of(tmp_path, digit_model, *given, "--run.resume", "true")
    config = prepare(resumed)
    assert "holds nothing of good: the run goes on with an empty buffer" in capsys.readouterr().err
    control = Control(redis_client, Keys("good"))
    control.put_config(config)
    prepare(resumed)
    assert "empty buffer" not in capsys.readouterr().err
    control.put_config(config.model_copy(update={"run": config.run.model_copy(update={"folder": tmp_path / "other"})}))
    with pytest.raises(UserError, match=r"keeps the buffer of a run of this name, of .*other/good"):
        prepare(resumed)
    control.put_config(config)
    moved = tmp_path / "moved"
    moved.mkdir()
    folder.rename(moved / "good")
    prepare(config_of(tmp_path, digit_model, *given, "--run.resume", "true", "--run.folder", str(moved)))


def test_an_expectation_maximisation_is_held_against_its_own_configuration_too(
    tmp_path: Path, digit_model: Path
) -> None:
    em = ["--run.name", "em", "--em.iterations", "1"]
    folder = make_run(config_of(tmp_path, digit_model, *em))
    (folder / "checkpoints").rename(folder / "kept")
    (folder / "e1").mkdir()
    (folder / "kept").rename(folder / "e1" / "checkpoints")
    (folder / "redis").rename(folder / "e1" / "redis")
    shutil.copy(folder / "config.yaml", folder / "e1" / "config.yaml")
    before = contents(folder)
    resume = ["--run.resume", "true"]
    with pytest.raises(UserError, match=r"model\.lora\.rank = 8: the run to resume has 16"):
        prepare(config_of(tmp_path, digit_model, *em, *resume, "--model.lora.rank", "8"))
    with pytest.raises(UserError, match=r"em\.iterations = 0: the run to resume has 1"):
        prepare(config_of(tmp_path, digit_model, "--run.name", "em", *resume))
    assert contents(folder) == before
    # Further iterations go on from where it was; what it made itself and is evaluated by is no change.
    made = load_run(folder)
    adapter = folder / "m1" / "adapter"
    done = made.model_copy(update={"reference": made.reference.model_copy(update={"adapter": adapter})})
    save_resolved(done, folder / "config.yaml")
    further = prepare(config_of(tmp_path, digit_model, "--run.name", "em", "--em.iterations", "2", *resume))
    _begin(further)
    assert load_run(folder).reference.adapter == adapter, "until the new steps are done it is still judged by that"
