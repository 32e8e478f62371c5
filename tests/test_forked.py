"""Commands that are forked are processes of their own, as those that a shell starts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.forked import commands


def test_a_command_has_its_own_folder_environment_streams_and_status(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("task: {name: rng}")
    for name in ("AMORTIS_LEARNER__LRR", "AMORTIS_LEARNER__STEPZ"):
        found = commands().run("train", "one.yaml", cwd=tmp_path, environment={**os.environ, name: "1"})
        assert (found.returncode, found.stdout) == (2, "")
        (line,) = found.stderr.splitlines()
        assert f"is no setting (environment variable {name})" in line
    found = commands().run("--help", cwd=tmp_path, environment=os.environ)
    assert found.returncode == 0 and found.stdout.startswith("usage: amortis") and found.stderr == ""


def test_a_command_that_takes_too_long_is_killed_and_the_next_one_is_answered(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        commands().run("doctor", cwd=tmp_path, environment=os.environ, timeout_s=0.0)
    assert commands().run("--help", cwd=tmp_path, environment=os.environ).returncode == 0
