"""Hosts as network namespaces: they reach each other by name, share only what they are to share, and can die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import sshd
from tests.hosts import Network, why_not

pytestmark = [pytest.mark.integration, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

LISTEN = "import socket; s = socket.create_server(('', 7000)); print('up', flush=True); s.accept()[0].sendall(b'hello')"
CONNECT = "import socket, sys; print(socket.create_connection((sys.argv[1], 7000), timeout=5).recv(5).decode())"


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    shared, volume = tmp_path / "shared", tmp_path / "volume"
    shared.mkdir()
    volume.mkdir()
    binds = {"one": {volume: Path("/srv/not-there-before")}}
    with Network(tmp_path / "hosts", ["one", "two"], shared=[shared], binds=binds) as network:
        yield network


def test_hosts_reach_each_other_by_name_until_one_is_killed(network: Network) -> None:
    one, two = network["one"], network["two"]
    assert one.run("hostname").stdout == "one\n"
    with two.popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None and listener.stdout.readline() == "up\n"
        assert one.run([sys.executable, "-c", CONNECT, "two"]).stdout == "hello\n"
    two.kill()
    assert not two.alive and one.alive
    failed = one.run([sys.executable, "-c", CONNECT, "two"], check=False)
    assert failed.returncode == 1 and ("No route to host" in failed.stderr or "timed out" in failed.stderr)


def test_the_peers_of_a_killed_host_see_silence_not_a_closed_connection(network: Network) -> None:
    waiting = "import socket; s = socket.create_server(('', 7000)); print('up', flush=True); s.accept()[0].recv(1)"
    calling = "import socket; s = socket.create_connection(('two', 7000)); print('up', flush=True); print(s.recv(1))"
    one, two = network["one"], network["two"]
    listener = two.popen([sys.executable, "-c", waiting], stdout=subprocess.PIPE, text=True)
    assert listener.stdout is not None and listener.stdout.readline() == "up\n"
    caller = one.popen([sys.executable, "-c", calling], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None and caller.stdout.readline() == "up\n"
    two.kill()
    assert listener.wait(5) == -signal.SIGKILL
    with pytest.raises(subprocess.TimeoutExpired):
        caller.wait(1)
    caller.terminate()
    assert caller.wait(5) == -signal.SIGTERM


def test_files_are_private_except_shared_folders_and_binds(network: Network, tmp_path: Path) -> None:
    one, two = network["one"], network["two"]
    one.run("echo private > /tmp/note; echo private > ~/amortis-note; echo private > /etc/amortis-note")
    for path in ("/tmp/note", "~/amortis-note", "/etc/amortis-note"):
        assert one.run(f"cat {path}").stdout == "private\n"
        assert two.run(f"cat {path}", check=False).returncode == 1
        assert not Path(path).expanduser().exists()
    assert (one.tmp / "note").read_text() == "private\n"
    one.run(f"echo public > {tmp_path}/shared/note")
    assert two.run(["cat", tmp_path / "shared" / "note"]).stdout == "public\n"
    one.run("echo kept > note", cwd="/srv/not-there-before")
    assert (tmp_path / "volume" / "note").read_text() == "kept\n"
    assert not Path("/srv/not-there-before").exists()


def test_a_host_sees_only_its_own_processes_and_leaves_no_zombies(network: Network) -> None:
    one, two = network["one"], network["two"]
    one.run("setsid sleep 0.1 & setsid sleep 4711 & disown -a", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    assert one.processes() == ["sleep 4711"]
    assert two.processes() == []


def test_hosts_end_with_a_killed_test_run_and_the_next_one_removes_its_bridge(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.hosts import Network\n"
        f"with Network(Path({str(tmp_path)!r}), ['lost']) as network:\n"
        "    network['lost'].popen(['sleep', '4712']); print(network._bridge, flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        bridge = run.stdout.readline().strip()
        assert f"{bridge}h0" in os.listdir("/sys/class/net")
        run.kill()
    with Network(tmp_path / "next", ["next"]):
        assert bridge not in os.listdir("/sys/class/net")
    deadline = time.monotonic() + 20
    while (left := b"sleep\x004712" in b"".join(_command_lines())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _command_lines() -> Iterator[bytes]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                yield (entry / "cmdline").read_bytes()
            except OSError:
                continue


@pytest.mark.skipif(sshd.why_not() is not None, reason=str(sshd.why_not()))
def test_ssh_and_rsync_go_from_host_to_host_with_the_one_key(network: Network, tmp_path: Path) -> None:
    one, two = network["one"], network["two"]
    key = sshd.serve_ssh(network.hosts.values(), tmp_path / "shared")
    options = f"-i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes"
    assert one.run(f"ssh {options} root@two hostname").stdout == "two\n"
    one.run(f"echo copied > /tmp/note; rsync -e 'ssh {options}' /tmp/note root@two:~/note")
    assert two.run("cat ~/note").stdout == "copied\n"
    assert "Permission denied" in one.run(f"ssh {options} nobody@two hostname", check=False).stderr
    from_here = subprocess.run(["ssh", *options.split(), f"root@{two.address}", "hostname"], capture_output=True)
    assert from_here.stdout == b"two\n"
