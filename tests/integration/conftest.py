"""Whole runs on the real command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.forked import commands

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 400


def write_config(folder: Path, model: Path, **learner: Any) -> Path:
    """A run of a minute at most: integers from 0 to 99 on a tiny model."""
    config = {
        "task": {"name": "rng", "low": 0, "high": 99, "prompt": "number : ", "evaluation_samples": 64},
        "model": {"name": str(model)},
        "run": {"folder": str(folder / "runs")},
        "learner": {
            "steps": 200,
            "queries_per_step": 1,
            "trajectories_per_query": 16,
            "lr": 0.005,
            "warmup_steps": 0,
            "sync_every": 10,
            "evaluate_every": 50,
            **learner,
        },
        # The learner may not run ahead of the actor, so that every version is sampled from.
        "buffer": {"min_size": 16, "samples_per_insert": 1.0, "samples_per_insert_band": 0.0},
        "actor": {
            "enforce_eager": True,
            "max_model_len": 64,
            "max_in_flight": 8,
            "max_ahead": 1.0,
            "push_every_s": 0.1,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def command(*arguments: str) -> list[str]:
    """An amortis command line."""
    return [sys.executable, "-m", "deploy.cli.main", *arguments]


def result_of(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A command to its end, whose process is forked from one that has imported what it needs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return commands().run(*arguments, cwd=cwd, environment=environment, timeout_s=TIMEOUT_S)


def amortis(*arguments: str, status: int = 0, cwd: Path = ROOT) -> str:
    """Its standard output; fails the test with everything it said if it ends otherwise."""
    result = result_of(*arguments, cwd=cwd)
    assert result.returncode == status, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digit_model: Path) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    amortis("train", str(write_config(folder, digit_model)), "--run.name", "tiny")
    return folder / "runs" / "tiny"
