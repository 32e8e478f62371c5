"""Many real processes on one buffer, and a server that is killed under them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from buffer.embedded import EmbeddedRedis
from tests.buffer.worker import SMALL, buffers
from tests.conftest import Tell

ROOT = Path(__file__).parents[2]
SECONDS = 30
WRITERS, SAMPLERS = 16, 4


def start(role: str, url: str, number: int, seconds: float, folder: Path) -> subprocess.Popen[bytes]:
    result = folder / f"{role}-{number}.json"
    arguments = [sys.executable, "-m", "tests.buffer.worker", role, url, str(number), str(seconds), str(result)]
    return subprocess.Popen(arguments, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def results(processes: list[subprocess.Popen[bytes]], folder: Path, role: str) -> list[dict[str, Any]]:
    for process in processes:
        assert process.wait(timeout=300) == 0
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{role}-*.json"))]


@pytest.mark.integration
def test_sixteen_writers_and_four_samplers_lose_nothing_tear_nothing_and_keep_the_bounds(
    tmp_path: Path, tell: Tell
) -> None:
    with EmbeddedRedis(tmp_path / "redis") as server:
        writers = [start("write", server.url, i, SECONDS, tmp_path) for i in range(WRITERS)]
        samplers = [start("read", server.url, i, SECONDS, tmp_path) for i in range(SAMPLERS)]
        written, seen = results(writers, tmp_path, "write"), results(samplers, tmp_path, "read")
        acknowledged = {item for found in written for _, ids in found["acknowledged"] for item in ids}
        big, small = buffers(server.url)
        stored = {item.id for item in big}
        big_stats, small_stats = big.stats(), small.stats()
    sampled, looks = sum(found["sampled"] for found in seen), sum(found["looks"] for found in seen)
    tell(f"{len(acknowledged)} pushed twice by {WRITERS} writers, {sampled} sampled, {looks} looks at the bounds")
    assert len(acknowledged) > 1_000 and sampled > 1_000 and looks > 100
    assert acknowledged - stored == set(), "acknowledged items were lost"
    assert [found["torn"] for found in seen] == [0] * SAMPLERS
    assert [found["broken"] for found in seen] == [[]] * SAMPLERS
    assert big_stats.size == len(stored) == big_stats.added and big_stats.evicted == 0
    assert small_stats.size == small_stats.added - small_stats.evicted <= SMALL.capacity


@pytest.mark.integration
@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
def test_a_killed_server_comes_back_with_what_it_acknowledged_and_writing_goes_on(
    tmp_path: Path, appendfsync: str, tell: Tell
) -> None:
    with EmbeddedRedis(tmp_path / "redis", appendfsync=appendfsync) as server:
        writers = [start("write", server.url, i, 14, tmp_path) for i in range(3)]
        reader = start("read", server.url, 0, 14, tmp_path)
        deadline = time.monotonic() + 60
        big, _ = buffers(server.url)
        while big.stats().size < 500 and time.monotonic() < deadline:
            time.sleep(0.1)
        killed_at = time.time()
        os.kill(server.pid, signal.SIGKILL)
        written, (seen,) = results(writers, tmp_path, "write"), results([reader], tmp_path, "read")
        stored = {item.id for item in big}
        assert server.restarts == 1
    acknowledged = [(at, item) for found in written for at, ids in found["acknowledged"] for item in ids]
    before = [item for at, item in acknowledged if at <= killed_at]
    lost = [(at, item) for at, item in acknowledged if item not in stored]
    oldest = max((killed_at - at for at, _ in lost), default=0.0)
    tell(f"{appendfsync}: {len(before)} acknowledged before the kill, {len(lost)} lost, at most {oldest:.2f} s old")
    assert len(before) >= 400 and len(acknowledged) > len(before) + 100, "writing goes on after the kill"
    assert seen["torn"] == 0 and seen["broken"] == []
    if appendfsync == "always":
        assert lost == []
    else:
        assert oldest <= 1.0, "everysec may lose the last second of writes and no more"
