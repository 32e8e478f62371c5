"""Whole runs on the real command line."""

from __future__ import annotations

import itertools
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from buffer.embedded import EmbeddedRedis
from tests.forked import commands

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 400
Join = Callable[[], list[str]]


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
        "diagnose": {"samples": 32},
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


HEAD = """
import sys
from deploy.run.local_ray import start_local_ray
start_local_ray(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
import ray
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[list[str]]:
    """Options of a run that joins a Ray which is there already.

    For what is told of runs whatever Ray they have: to start one and end it takes a quarter of a short run's time.
    """
    settings = {"RAY_worker_niceness": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "PYTHONPATH": str(ROOT)}
    with pytest.MonkeyPatch.context() as patch:
        # Of this Ray, and of those that join it.
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        with subprocess.Popen(
            [sys.executable, "-c", HEAD],
            cwd=ROOT,
            env={**os.environ, **settings},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as head:
            assert head.stdout is not None
            address = head.stdout.readline().strip()
            assert address, "Ray could not be started"
            # As many threads as beside a Ray of its own, whose actors take a core of this machine.
            yield ["--ray.address", address, "--learner.threads", "1"]


@pytest.fixture(scope="session")
def joined(shared_ray: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Options of a run that joins that Ray, and a Redis, as it must then; its name must be no other's."""
    with EmbeddedRedis(tmp_path_factory.mktemp("joined")) as server:
        yield [*shared_ray, "--redis.url", server.url]


@pytest.fixture(scope="session")
def join(joined: list[str]) -> Join:
    """Gives such options, whatever the run's name is."""
    numbers = itertools.count()
    return lambda: [*joined, "--run.redis_name", f"joined-{next(numbers)}"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, digit_model: Path) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    amortis("train", str(write_config(folder, digit_model)), "--run.name", "tiny")
    return folder / "runs" / "tiny"
