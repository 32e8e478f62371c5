"""The commands that look at a run from outside, against a real Redis but no run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from redis import Redis

from buffer.connection import Keys
from buffer.control import Control
from buffer.embedded import EmbeddedRedis
from buffer.replay import ReplayBuffer
from common.config import RunConfig
from common.config_loading import REDIS_URL_VARIABLE, save_resolved
from common.errors import EXIT_USER, RunFault, UserError
from deploy.cli.main import main
from deploy.run import launcher
from deploy.run.launcher import Launcher
from deploy.run.run_folder import check_folder
from deploy.run.summary import write_summary
from learner.checkpoint import save_checkpoint


def config_in(folder: Path, name: str, **run: object) -> RunConfig:
    """A run's configuration, saved in its folder."""
    data = {"task": {"name": "rng"}, "run": {"name": name, "folder": str(folder), **run}}
    config = RunConfig.model_validate(data)
    config.run_folder.mkdir(parents=True)
    save_resolved(config, config.run_folder / "config.yaml")
    return config


@pytest.mark.parametrize("arguments", [["stop"], ["status", "--once"], ["actors", "scale"]])
def test_a_redis_that_does_not_hold_the_run_is_named_and_left_alone(
    tmp_path: Path, arguments: list[str], redis_url: str, redis_client: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(config_in(tmp_path, "elsewhere").run_folder)
    number = ["2"] if "scale" in arguments else []
    assert main([*arguments, folder, *number, "--redis-url", redis_url]) == EXIT_USER
    assert "is not in that Redis under the name elsewhere" in capsys.readouterr().err
    assert redis_client.dbsize() == 0


def test_the_status_says_what_was_set_aside_and_what_a_reward_function_says(
    tmp_path: Path, redis_url: str, redis_client: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    config, keys = config_in(tmp_path, "mine"), Keys("mine")
    control = Control(redis_client, keys)
    control.put_config(config)
    buffer = ReplayBuffer.of(config, redis_client, keys)
    buffer.open()
    buffer.quarantine.add(b"", reason="task.reward raised: KeyError: 'x'", origin="actor-0")
    control.heartbeat("actor-0", {"phase": "sampling", "reward_failures": 3, "reward_error": "KeyError: 'x'"})
    control.heartbeat("actor-1", {"phase": "sampling"})
    command = ["status", str(config.run_folder), "--redis-url", redis_url]
    assert main([*command, "--once"]) == 0
    assert "1; task.reward failed on 3 texts, e.g. KeyError: 'x'" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["quarantined"] == 1
    assert [(actor["reward_failures"], actor["reward_error"]) for actor in found["actors"]] == [
        (3, "KeyError: 'x'"),
        (0, None),
    ]


def test_an_expectation_maximisation_is_stopped_at_the_step_that_it_is_at(
    tmp_path: Path, redis_url: str, redis_client: Redis
) -> None:
    whole = config_in(tmp_path, "em")
    step = config_in(whole.run_folder, "m1", redis_name="em-m1")
    control = Control(redis_client, Keys("em-m1"))
    control.put_config(step)
    assert main(["stop", str(whole.run_folder), "--redis-url", redis_url]) == 0
    assert control.stop_reason() == "amortis stop"


def test_a_run_s_own_server_comes_before_the_environment_s(
    tmp_path: Path, redis_url: str, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REDIS_URL_VARIABLE, redis_url)
    config = config_in(tmp_path, "own")
    with EmbeddedRedis(config.run_folder / "redis") as server, Redis.from_url(server.url) as client:
        Control(client, Keys("own")).put_config(config)
        assert main(["stop", str(config.run_folder)]) == 0
        assert Control(client, Keys("own")).stop_reason() == "amortis stop"
    assert redis_client.dbsize() == 0


def test_the_last_lines_are_those_of_the_process_and_the_level_that_were_asked_for(
    tmp_path: Path, redis_url: str, redis_client: Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    config, keys = config_in(tmp_path, "talk"), Keys("talk")
    Control(redis_client, keys).put_config(config)
    for i in range(300):
        said = {"process": "learner" if i < 3 else "actor-0", "level": "ERROR" if i == 1 else "INFO", "message": str(i)}
        redis_client.xadd(keys.logs, {"line": json.dumps(said)})
    shown = ["logs", str(config.run_folder), "--redis-url", redis_url, "--json", "-n", "2"]

    def messages(*options: str) -> list[str]:
        assert main([*shown, *options]) == 0
        return [json.loads(line)["message"] for line in capsys.readouterr().out.splitlines()]

    assert messages("--process", "learner") == ["1", "2"]
    assert messages("--level", "ERROR") == ["1"]
    assert messages() == ["298", "299"]


def test_a_finished_run_s_lines_are_read_from_its_folder_when_its_redis_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = config_in(tmp_path, "over").run_folder
    (folder / "logs").mkdir()
    (folder / "logs" / "learner.log").write_text(json.dumps({"time": "1", "level": "INFO", "message": "done"}) + "\n")
    assert main(["logs", str(folder), "--redis-url", "redis://127.0.0.1:1/0"]) == 0
    assert "done" in capsys.readouterr().out


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_in_progress_is_not_started_again(tmp_path: Path, resume: bool) -> None:
    config = config_in(tmp_path, "busy", overwrite=not resume, resume=resume)
    (config.run_folder / "redis").mkdir()
    save_checkpoint(config.run_folder / "checkpoints", 5, {"x": torch.zeros(1)}, {}, keep=2)
    check_folder(config)
    with (
        EmbeddedRedis(config.run_folder / "redis"),
        pytest.raises(UserError, match=r"run.name = 'busy': is in progress"),
    ):
        check_folder(config)


def test_a_fault_of_any_part_stands_in_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_in(tmp_path, "broken", overwrite=True)

    def fail(*_: object) -> None:
        raise RunFault("no actor could sample")

    monkeypatch.setattr(launcher.Launcher, "_run_parts", fail)
    with pytest.raises(RunFault, match="no actor could sample"):
        Launcher(config).run()
    summary = json.loads((config.run_folder / "summary.json").read_text())
    assert summary["fault"] == "no actor could sample"


@pytest.mark.parametrize("password", ["pass/word", "pass#word", "pass?word", "pass@word", "password"])
def test_no_part_of_a_password_is_shown(tmp_path: Path, password: str, capsys: pytest.CaptureFixture[str]) -> None:
    config_in(tmp_path, "secret")
    url = f"redis://:{password}@127.0.0.1:1/0"
    assert main(["stop", str(tmp_path / "secret"), "--redis-url", url]) == EXIT_USER
    shown = capsys.readouterr().err
    assert "redis://127.0.0.1:1/0" in shown and "word" not in shown.replace("a password as", "")


def test_log_lines_with_other_ends_of_lines_in_them_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = config_in(tmp_path, "over").run_folder
    (folder / "logs").mkdir()
    line = {"time": "t", "level": "INFO", "process": "learner", "message": "one\u2028two\x85three"}
    (folder / "logs" / "learner.log").write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    assert main(["logs", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.rstrip("\n")) == line


def test_a_summary_is_valid_json_whatever_the_figures_are(tmp_path: Path) -> None:
    config = config_in(tmp_path, "over")
    (config.run_folder / "evaluation_samples.json").write_text('{"accuracy": NaN, "x": {"y": [Infinity, 1.5]}}')
    write_summary(config, config.run_folder, {"trajectories_pushed": 3}, 1.5, None, interrupted=False)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads((config.run_folder / "summary.json").read_text(), parse_constant=refuse)
    assert found["accuracy"] is None and found["x"] == {"y": [None, 1.5]} and found["trajectories_pushed"] == 3


@pytest.mark.parametrize(
    ("objective", "alone", "told"),
    [
        (
            "vargrad",
            [1.0, 0.5, 1.0, 1.0],
            "3 of 4 steps: each query had one trajectory, or the same one again, and vargrad",
        ),
        ("vargrad", [1.0, 0.5, 0.5, 0.5, 0.0], None),
        ("subtb", [1.0, 1.0, 1.0, 1.0], None),
    ],
)
def test_a_summary_says_that_steps_had_nothing_to_compare(
    tmp_path: Path, objective: str, alone: list[float], told: str | None
) -> None:
    config = config_in(tmp_path, "over")
    config = config.model_copy(update={"learner": config.learner.model_copy(update={"objective": objective})})
    lines = [json.dumps({"step": step, "queries_alone": share}) for step, share in enumerate(alone, start=1)]
    (config.run_folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 4, "eval/x": 1.0}']))
    found = write_summary(config, config.run_folder, {}, 1.5, None, interrupted=False)
    assert found.get("nothing_compared", "").startswith(told or "") and ("nothing_compared" in found) == bool(told)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"step": 1, "loss": 2.0}], "0 evaluations (evaluation.share of 0.1 left an actor no time for it: raise it"),
        ([{"step": 5, "eval/x": 1.0}, {"step": 9, "eval/x": 2.0, "diagnose/ess": 0.5}], "2 evaluations, 1 diagnosis"),
    ],
)
def test_a_summary_says_how_often_a_run_was_looked_at_while_it_trained(
    tmp_path: Path, rows: list[dict[str, float]], told: str
) -> None:
    config = config_in(tmp_path, "over")
    looks = {"evaluation": config.evaluation.model_copy(update={"every": 5, "share": 0.1})}
    config = config.model_copy(update={**looks, "diagnose": config.diagnose.model_copy(update={"every": 5})})
    (config.run_folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = write_summary(config, config.run_folder, {}, 1.5, None, interrupted=False)
    assert found["while_it_trained"].startswith(told)
