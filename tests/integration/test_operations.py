"""A run in progress, looked at and changed from outside: status, scale, logs, targets, stop, and the optional sinks."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import ROOT, TIMEOUT_S, amortis, command, result_of, write_config

pytestmark = pytest.mark.integration


def wait_for(process: subprocess.Popen[str], condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + TIMEOUT_S / 2
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the run ended before {what}"
        found = condition()
        if found:
            return found
        time.sleep(1.0)
    raise AssertionError(f"waited in vain for {what}")


def status(run: Path) -> dict[str, Any]:
    return dict(json.loads(amortis("status", str(run), "--json")))


def lines(run: Path, *options: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in amortis("logs", str(run), "--json", "-n", "1000", *options).splitlines()]


def test_a_run_is_watched_scaled_and_stopped_from_outside_and_tells_its_sinks(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, digit_model, steps=100_000)
    run = tmp_path / "runs" / "watched"
    sinks = ["--tracking.tensorboard", "true", "--tracking.wandb", "offline"]
    arguments = command("train", str(config), "--run.name", "watched", "--actor.num_cpus", "0.5", *sinks)
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        wait_for(process, (run / "metrics.jsonl").exists, "the first step")
        found = status(run)
        assert (found["run"], found["actors_wanted"], found["stop"]) == ("watched", 1, None)
        (actor,) = found["actors"]
        assert actor["name"] == "actor-0" and actor["alive"] and actor["pushed"] > 0
        assert (
            found["step"] >= 1 and found["pushed"] >= actor["pushed"] and 0 <= actor["lag"] <= found["adapter_version"]
        )
        assert 0 < found["figures"]["effective_sample_size"] <= 1

        assert json.loads(amortis("actors", "scale", str(run), "2", "--json")) == {"run": "watched", "actors": 2}
        both = wait_for(
            process, lambda: [a for a in status(run)["actors"] if a["alive"] and a["pushed"]][1:], "a second actor"
        )
        assert both[0]["name"] == "actor-1"
        launcher = next(line["message"] for line in lines(run) if "/targets" in line["message"])
        with urllib.request.urlopen(f"http://{launcher.split()[-1]}", timeout=10) as answer:
            targets = {group["labels"]["process"]: group["targets"][0] for group in json.load(answer)}
        assert set(targets) == {"launcher", "learner", "actor-0", "actor-1"}
        for address in targets.values():
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                assert b"amortis_" in answer.read()

        amortis("actors", "scale", str(run), "1")
        wait_for(process, lambda: len(status(run)["actors"]) == 1, "the second actor to leave")
        assert status(run)["actors"][0]["name"] == "actor-0"
        step = status(run)["step"]
        wait_for(process, lambda: status(run)["step"] > step, "training to go on with one")

        told = lines(run)
        assert {line["process"] for line in told} == {"launcher", "learner", "actor-0", "actor-1"}
        assert all(line["run"] == "watched" for line in told)
        assert any(line.get("adapter_version", 0) >= 1 for line in told if line["process"] == "actor-0")
        assert {line["process"] for line in lines(run, "--process", "learner")} == {"learner"}
        assert not [line for line in lines(run, "--level", "ERROR")]

        assert json.loads(amortis("stop", str(run), "--json"))["stop"] == "amortis stop"
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output[-3000:]
    finally:
        process.kill()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stopped_because"] == "amortis stop" and summary["fault"] is None and summary["interrupted"]
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    # The run is over: its lines are in its folder, and there is nothing to scale.
    assert {line["process"] for line in lines(run)} == {"launcher", "learner", "actor-0", "actor-1"}
    amortis("actors", "scale", str(run), "2", status=2)
    _check_sinks(run, summary["steps"])


def _check_sinks(run: Path, steps: int) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert losses[-1].step == steps
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1].value == pytest.approx(rows[-1]["loss"], rel=1e-5)
    (offline,) = (run / "wandb").glob("offline-run-*")
    (written,) = offline.glob("*.wandb")
    assert b"train/loss" in written.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "nowhere"], "RUN = 'nowhere': is no run's folder"),
        (["actors", "scale", "nowhere", "0"], "N = 0: is no number of actors"),
        (["stop", "nowhere", "--redis-url", "redis://127.0.0.1:1/0"], "no Redis server can be reached"),
    ],
)
def test_what_can_not_be_looked_at_is_said_in_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AMORTIS_")]:
        monkeypatch.delenv(name)
    result = result_of(*arguments)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_a_run_is_found_by_its_name_in_a_given_redis(redis_url: str, redis_client: Any) -> None:
    from buffer.connection import Keys
    from buffer.control import Control
    from common.config import RunConfig

    control = Control(redis_client, Keys("far"))
    control.put_config(RunConfig.model_validate({"task": {"name": "rng"}, "actor": {"count": 3}}))
    control.heartbeat("actor-0", {"phase": "sampling", "host": "one", "pushed": 5, "adapter_version": 2})
    control.report_learner({"phase": "training", "step": 7, "steps": 9, "adapter_version": 4, "loss": 0.5})
    found = json.loads(amortis("status", "far", "--redis-url", redis_url, "--json"))
    assert (found["step"], found["steps"], found["actors_wanted"], found["figures"]) == (7, 9, 3, {"loss": 0.5})
    assert found["actors"][0]["lag"] == 2 and found["actors"][0]["host"] == "one"
    shown = amortis("status", "far", "--redis-url", redis_url, "--once")
    assert "1/3" in shown and "sampling" in shown
    amortis("status", "nothing", "--redis-url", redis_url, status=2)
