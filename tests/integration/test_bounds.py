"""Whole runs at the buffer's bounds: Redis without memory, near-duplicates, trajectories that go stale at once."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis

from buffer.connection import Keys
from buffer.control import Control
from buffer.embedded import EmbeddedRedis
from tests.integration.conftest import ROOT, TIMEOUT_S, Join, amortis, command, write_config

pytestmark = pytest.mark.integration


def test_everyone_waits_while_redis_has_no_memory_and_goes_on_when_it_has(
    tmp_path: Path, digit_model: Path, shared_ray: list[str]
) -> None:
    path = write_config(tmp_path, digit_model, steps=60, evaluate_every=0)
    with EmbeddedRedis(tmp_path / "redis") as server, Redis.from_url(server.url) as client:
        arguments = ["train", str(path), "--run.name", "tiny", "--redis.url", server.url, "--json", *shared_ray]
        process = subprocess.Popen(
            command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        control = Control(client, Keys("tiny"))
        wait_for(process, lambda: control.learner().get("step", 0) >= 10, "training never began")
        # Less than what is in use: every write that takes memory is refused, pushes, priorities and adapters alike.
        client.config_set("maxmemory", 1)
        time.sleep(4.0)
        assert process.poll() is None
        step = control.learner()["step"]
        time.sleep(2.0)
        assert control.learner()["step"] == step
        client.config_set("maxmemory", 0)
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, err[-3000:]
        assert json.loads(out)["steps"] == 60 and json.loads(out)["fault"] is None


def wait_for(process: subprocess.Popen[str], condition: Any, otherwise: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)


@pytest.mark.parametrize(
    "buffer",
    [
        # Numbers of two digits that share one are near-duplicates.
        {"near_duplicate_tolerance": 0.3, "min_size": 8},
        {"max_staleness": 0, "samples_per_insert": 1.0, "samples_per_insert_band": 1.0},
    ],
)
def test_a_run_goes_on_where_the_buffer_takes_most_trajectories_out(
    tmp_path: Path, digit_model: Path, join: Join, buffer: dict[str, Any]
) -> None:
    path = write_config(tmp_path, digit_model, steps=40, evaluate_every=0)
    config = yaml.safe_load(path.read_text())
    config["buffer"].update(buffer)
    path.write_text(yaml.safe_dump(config))
    summary = json.loads(amortis("train", str(path), "--run.name", "tiny", "--json", *join()))
    assert summary["steps"] == 40 and summary["fault"] is None
    last = json.loads((tmp_path / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()[-1])
    if "near_duplicate_tolerance" in buffer:
        assert last["buffer_size"] < last["trajectories_pushed"] / 4
    else:
        assert last["staleness"] == 0
