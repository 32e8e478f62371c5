"""What the launcher serves of a resumed run before its first look at it."""

from __future__ import annotations

import urllib.request

from redis import Redis

from buffer.connection import Keys
from buffer.control import Control
from buffer.replay import ReplayBuffer
from common.config import RunConfig
from deploy.run.launcher import Launcher
from tests.conftest import make_query, make_trajectory


def test_a_resumed_runs_counts_are_never_served_as_0_first(redis_client: Redis, redis_url: str, keys: Keys) -> None:
    config = RunConfig.model_validate({"task": {"name": "rng"}, "run": {"name": "test"}})
    launcher = Launcher(config)
    launcher._client, launcher.control = redis_client, Control(redis_client, keys)
    launcher.buffer = ReplayBuffer.of(config, redis_client, keys)
    launcher.buffer.open()
    launcher.buffer.reject(make_trajectory(make_query(), [3, 4]), "its query is not stored")
    launcher._serve_metrics(redis_url)
    address = launcher.control.processes()["launcher"]["address"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        assert "amortis_buffer_quarantined_trajectories 1.0" in answer.read().decode()
