"""The container's first process: what it goes on with, and what it does with a signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from common.config_loading import load_config
from common.errors import UserError
from common.folder_lock import LAUNCHER, locked
from deploy.docker.entrypoint import going_on

ROOT = Path(__file__).parents[3]
TRAIN = """#!/bin/sh
trap 'echo stopped; exit 130' TERM
echo train "$@"
[ -z "$WAIT" ] || while :; do sleep 0.05; done
exit ${STATUS:-0}
"""


def write(folder: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"task": {"name": "rng"}, "run": {"folder": str(folder / "runs"), "name": "demo"}}))
    return path


@pytest.mark.parametrize(
    ("left", "options"),
    [
        ([], []),
        (["logs"], []),
        (["checkpoints"], []),
        (["checkpoints/step-000050"], ["--run.resume", "true"]),
        (["e1"], ["--run.resume", "true"]),
    ],
)
def test_a_restart_goes_on_from_a_checkpoint_if_there_is_one(
    tmp_path: Path, left: list[str], options: list[str]
) -> None:
    for name in left:
        (tmp_path / "runs" / "demo" / name).mkdir(parents=True)
    assert going_on(load_config(write(tmp_path))) == options


def test_a_restart_keeps_the_logs_of_a_start_that_left_no_checkpoint(tmp_path: Path) -> None:
    for text in ("first", "second"):
        (tmp_path / "runs" / "demo" / "logs").mkdir(parents=True)
        (tmp_path / "runs" / "demo" / "logs" / "learner.err").write_text(text)
        assert going_on(load_config(write(tmp_path))) == []
    kept = [(tmp_path / "runs" / f"demo.failed-{n}" / "logs" / "learner.err").read_text() for n in (1, 2)]
    assert kept == ["first", "second"] and not (tmp_path / "runs" / "demo").exists()


def test_the_folder_of_a_run_in_progress_is_not_moved_aside(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    with locked(folder, LAUNCHER, UserError("run.name", "demo", "is in progress", "wait")):
        assert going_on(load_config(write(tmp_path))) == ["--run.resume", "true"], "which `amortis train` refuses"
    assert folder.is_dir()


def start(folder: Path, *files: str, **variables: str) -> subprocess.Popen[str]:
    """The entry point with programs beside its Python that say how they were called."""
    tools = folder / "bin"
    tools.mkdir()
    (tools / "ray").write_text('#!/bin/sh\necho ray "$@"\nexit ${RAY_STATUS:-0}\n')
    (tools / "amortis").write_text(TRAIN)
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (tools / "python").symlink_to(sys.executable)
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{packages}", **variables}
    command = [str(tools / "python"), "-m", "deploy.docker.entrypoint", str(write(folder)), *files]
    command += ["--learner.steps", "7"]
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_it_joins_trains_and_leaves(tmp_path: Path) -> None:
    output, _ = (process := start(tmp_path, RAY_HEAD="localhost:6379")).communicate(timeout=60)
    joined, trained, left = output.splitlines()
    assert joined.startswith("ray start --address=127.0.0.1:6379 --num-cpus=0 --num-gpus=0")
    assert trained == f"train train {tmp_path / 'config.yaml'} --learner.steps 7"
    assert left == "ray stop" and process.returncode == 0


def test_without_a_head_to_join_it_only_trains(tmp_path: Path) -> None:
    output, _ = (process := start(tmp_path, STATUS="1")).communicate(timeout=60)
    assert output.startswith("train ") and "ray" not in output.split() and process.returncode == 1


def test_several_files_are_handed_on_and_the_last_one_says_where_the_run_is(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("run: {name: mine}\n")
    (tmp_path / "runs" / "mine" / "checkpoints" / "step-000001").mkdir(parents=True)
    files = [str(tmp_path / "config.yaml"), str(tmp_path / "mine.yaml")]
    output, _ = start(tmp_path, files[1]).communicate(timeout=60)
    assert output.strip() == f"train train {' '.join(files)} --run.resume true --learner.steps 7"


def test_a_cluster_that_cannot_be_joined_ends_it(tmp_path: Path) -> None:
    output, _ = (process := start(tmp_path, RAY_HEAD="localhost:6379", RAY_STATUS="1")).communicate(timeout=60)
    assert "train" not in output and process.returncode == 1


def test_a_stop_is_passed_on_and_waited_for_and_is_no_failure(tmp_path: Path) -> None:
    process = start(tmp_path, RAY_HEAD="localhost:6379", WAIT="yes")
    assert process.stdout is not None
    while not process.stdout.readline().startswith("train"):
        assert process.poll() is None
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert output.splitlines() == ["stopped", "ray stop"] and process.returncode == 0


def test_a_wrong_setting_is_said_before_anything_starts(tmp_path: Path) -> None:
    output, _ = (process := start(tmp_path, AMORTIS_LEARNER__STEPPS="1", RAY_HEAD="localhost:1")).communicate(
        timeout=60
    )
    assert "learner.stepps" in output and "ray" not in output.split() and process.returncode == 2


def test_a_head_that_no_name_server_knows_is_said(tmp_path: Path) -> None:
    output, _ = (process := start(tmp_path, RAY_HEAD="nowhere.invalid:6379")).communicate(timeout=60)
    assert "RAY_HEAD = nowhere.invalid:6379" in output and "train" not in output and process.returncode == 2
