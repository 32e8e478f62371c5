"""Hosts on this machine, each with an address, processes and a file system of its own, made of Linux namespaces.

A host sees this machine's files, as they are, through a copy-on-write layer in memory: what it writes is gone with it.
`/tmp` is a folder of its own on disk (`Host.tmp`), and folders named in `shared` are the same everywhere.
Everything ends with this process, even if it is killed.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import itertools
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

SUBNETS = ipaddress.IPv4Network("10.231.0.0/16")
START_LIMIT_S = 60.0
Command = str | Sequence[str | Path]
"""A line for a shell, or a program with its arguments."""

_TOOLS = ("ip", "unshare", "nsenter", "setpriv", "mount", "ps", "bash")
_NAME = re.compile(r"am(\d+)n\d+")
_counter = itertools.count()
_INIT = Path(__file__).parent / "host_init.sh"


class Network:
    """Hosts on one bridge; this process reaches them, and they this machine at `gateway`, but nothing beyond it."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        *,
        shared: Sequence[Path] = (),
        binds: Mapping[str, Mapping[Path, Path]] | None = None,
    ) -> None:
        """Hosts with these names. `binds` has, per host, which file or folder of this machine lies where in it."""
        self._folder, self._names, self._shared, self._binds = folder, names, shared, binds or {}
        self._bridge = f"am{os.getpid()}n{next(_counter)}"
        self.hosts: dict[str, Host] = {}

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __enter__(self) -> Self:
        remove_leftovers()
        subnet = _unused_subnet()
        addresses = [str(address) for address in itertools.islice(subnet.hosts(), len(self._names) + 1)]
        self.gateway = addresses[0]
        _ip("link", "add", self._bridge, "type", "bridge")
        try:
            _ip("address", "add", f"{self.gateway}/{subnet.prefixlen}", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            by_name = dict(zip(self._names, addresses[1:], strict=True))
            table = "".join(f"{address} {name}\n" for name, address in by_name.items())
            for index, name in enumerate(self._names):
                host = Host(name, by_name[name], self._folder / name, f"{self._bridge}h{index}")
                self.hosts[name] = host
                binds = {path: path for path in self._shared} | dict(self._binds.get(name, {}))
                host._start(table, binds)
                host._plug_in(self._bridge, self.gateway, subnet.prefixlen)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Kill all hosts and take the network away."""
        for host in self.hosts.values():
            host.kill()
        _delete_link(self._bridge)

    def __exit__(self, *_: object) -> None:
        self.close()


class Host:
    """One host of a network."""

    def __init__(self, name: str, address: str, folder: Path, link: str) -> None:
        self.name, self.address, self._link = name, address, link
        self.tmp = folder / "tmp"
        """What the host sees as /tmp; stays when the host is gone."""
        self._unshare: subprocess.Popen[str] | None = None
        self._pid = 0

    def run(self, command: Command, *, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run to the end with captured output; AssertionError with everything it said if it fails and `check`."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        timeout, given = options.pop("timeout", 120), options.pop("input", None)
        if given is not None:
            options["stdin"] = subprocess.PIPE
        process = self.popen(command, **options)
        try:
            output, errors = process.communicate(given, timeout)
        except BaseException as error:
            process.kill()
            output, errors = process.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise AssertionError(f"{self.name}: {command} took over {timeout} s:\n{output}\n{errors}") from None
        assert not check or process.returncode == 0, (
            f"{self.name}: {command} ended with {process.returncode}:\n{output}\n{errors}"
        )
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def popen(
        self, command: Command, *, env: Mapping[str, str] | None = None, cwd: Path | str = "/", **options: Any
    ) -> HostProcess:
        """Start in the host; `env` and `cwd` mean what they mean for Popen, the folder being the host's."""
        inner = ["bash", "-c", command] if isinstance(command, str) else [str(part) for part in command]
        entry = [*self._enter("--mount", "--uts", "--ipc", "--net", "--pid"), "env", f"--chdir={cwd}"]
        options = {"stdin": subprocess.DEVNULL, "start_new_session": True, **options}
        return HostProcess([*entry, *inner], env=None if env is None else dict(env), **options)

    def kill(self) -> None:
        """As a power cut would: the others see silence, and no process of the host is left."""
        if self._unshare is None:
            return
        if self._link in _links():
            # Before its processes end, whose connections would otherwise be closed properly.
            _ip("link", "set", self._link, "down")
        # The kernel ends all processes of the host with its first one, which `unshare` waits for.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid or self._unshare.pid, signal.SIGKILL)
        self._unshare.wait()
        self._unshare = None
        # A connection that was open may keep the link for a minute otherwise.
        _delete_link(self._link)

    @property
    def alive(self) -> bool:
        """Not killed."""
        return self._unshare is not None and self._unshare.poll() is None

    def processes(self) -> list[str]:
        """Command lines of what runs in it, without the host's own first process."""
        found = self.run(["ps", "-eo", "pid=,args="]).stdout.splitlines()
        lines = [line.strip().split(maxsplit=1) for line in found]
        return [line[1] for line in lines if line[0] != "1" and not line[1].startswith(("ps -eo", "sleep infinity"))]

    def _enter(self, *namespaces: str) -> list[str]:
        assert self._unshare is not None, f"host {self.name} is dead"
        return ["nsenter", f"--target={self._pid}", *namespaces, "--"]

    def _start(self, table: str, binds: Mapping[Path, Path]) -> None:
        self.tmp.mkdir(parents=True)
        lines = [f"bind {shlex.quote(str(source))} {shlex.quote(str(target))}\n" for source, target in binds.items()]
        flags = ("--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "--kill-child")
        self._unshare = subprocess.Popen(
            # `unshare` holds SIGTERM back, so SIGKILL it is when this process dies.
            [
                "setpriv",
                "--pdeathsig",
                "KILL",
                "unshare",
                *flags,
                "bash",
                str(_INIT),
                self.name,
                str(self.tmp),
                table,
                "".join(lines),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Ctrl-C is for the tests, which then end their hosts.
            start_new_session=True,
        )
        assert self._unshare.stdout is not None and self._unshare.stderr is not None
        select.select([self._unshare.stdout], [], [], START_LIMIT_S)
        first = self._unshare.stdout.readline() if self._unshare.poll() is None else ""
        if not first.strip().isdecimal():
            self._unshare.kill()
            raise OSError(f"host {self.name} did not start: {self._unshare.stderr.read().strip()}")
        self._pid = int(first)

    def _plug_in(self, bridge: str, gateway: str, prefix_length: int) -> None:
        peer = ["peer", "name", "eth0", "netns", str(self._pid)]
        _ip("link", "add", self._link, "type", "veth", *peer)
        _ip("link", "set", self._link, "master", bridge, "up")
        for arguments in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{self.address}/{prefix_length}", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            # Programs find their own address by the route to a distant one.
            ("route", "add", "default", "via", gateway),
        ):
            _call([*self._enter("--net"), "ip", *arguments])


class HostProcess(subprocess.Popen[Any]):
    """A process in a host: signals go to it, not to the `nsenter` around it, which ends as it ends."""

    def send_signal(self, sig: int) -> None:
        """Nothing if it has ended."""
        if self.poll() is not None:
            return
        inner = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for pid in inner or [str(self.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), sig)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


@functools.cache
def why_not() -> str | None:
    """Why hosts can't be made here, or None; for `pytest.skip`."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"hosts as network namespaces need {', '.join(missing)} (iproute2, procps, util-linux)"
    if os.geteuid() != 0:
        return "hosts as network namespaces need root"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with Network(Path(folder), ["probe"]) as network:
                network["probe"].run(["true"])
        except (OSError, AssertionError) as error:
            return f"network namespaces are not permitted here: {error}"
    return None


def remove_leftovers() -> None:
    """Take away bridges and links of processes that are dead."""
    for link in _links():
        found = _NAME.match(link)
        if found and not Path(f"/proc/{found[1]}").exists():
            _delete_link(link)


def _unused_subnet() -> ipaddress.IPv4Network:
    listed = json.loads(_call(["ip", "-json", "-4", "address"]))
    used = [
        ipaddress.IPv4Network(f"{entry['local']}/{entry['prefixlen']}", strict=False)
        for link in listed
        for entry in link.get("addr_info", [])
    ]
    subnets = list(SUBNETS.subnets(new_prefix=24))
    # Test runs that start at the same time begin to look at different places.
    start = os.getpid() % len(subnets)
    for subnet in subnets[start:] + subnets[:start]:
        if not any(subnet.overlaps(other) for other in used):
            return subnet
    raise OSError(f"every subnet of {SUBNETS} is in use")


def _delete_link(name: str) -> None:
    """Nothing if the kernel, which takes a dead host's links away in its own time, was first."""
    subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)


def _links() -> list[str]:
    return os.listdir("/sys/class/net")


def _ip(*arguments: str) -> None:
    _call(["ip", *arguments])


def _call(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise OSError(f"{shlex.join(command)}: {result.stderr.strip()}")
    return result.stdout
