"""Ray on one machine lives through what would cost a cluster a node, and starts no more than a run needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parent.parent.parent
ASLEEP = """
import signal, time
import psutil, ray
from deploy.run.local_ray import start_local_ray

start_local_ray(num_cpus=1, include_dashboard=False, object_store_memory=100_000_000)
(raylet,) = (child for child in psutil.Process().children(recursive=True) if child.name() == "raylet")
(agent,) = (word for word in raylet.cmdline() if word.startswith("--dashboard_agent_command="))
print("agent:", "small" if "--minimal" in agent else "whole")
raylet.send_signal(signal.SIGSTOP)
time.sleep(3)
raylet.send_signal(signal.SIGCONT)
time.sleep(1)
print("nodes alive:", sum(node["Alive"] for node in ray.nodes()))
print("answer:", ray.get(ray.remote(lambda: 6 * 7).remote(), timeout=60))
"""


def test_a_machine_that_sleeps_for_many_health_checks_loses_no_run_of_a_ray_without_a_dashboard() -> None:
    # Checks are quicker than Ray's own, so that what takes it a minute by default takes a second.
    checks = {"period_ms": "100", "timeout_ms": "100", "initial_delay_ms": "0"}
    environment = {f"RAY_health_check_{name}": value for name, value in checks.items()}
    result = subprocess.run(
        [sys.executable, "-c", ASLEEP],
        cwd=ROOT,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines() == ["agent: small", "nodes alive: 1", "answer: 42"]
