"""A run's log lines in Redis, so that they can be read from anywhere, whatever machine a process is on."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
from collections.abc import Iterator
from typing import Any

from redis.exceptions import RedisError

from buffer.connection import Client, Keys
from common.log import log_to

MAX_LINES = 20_000
"""Kept of a run, all processes together."""
_WAITING = 1_000
"""Lines that wait for Redis; further ones are only in the file."""


class _StreamHandler(logging.Handler):
    """Hands lines to a thread of its own: a Redis that is slow or away never holds up who logs."""

    def __init__(self, client: Client, key: str) -> None:
        super().__init__()
        self._client, self._key = client, key
        self._waiting: queue.Queue[str] = queue.Queue(_WAITING)
        threading.Thread(target=self._send, daemon=True, name="amortis-logs").start()

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(self.format(record))

    def _send(self) -> None:
        while True:
            line = self._waiting.get()
            with contextlib.suppress(RedisError):
                self._client.xadd(self._key, {"line": line}, maxlen=MAX_LINES, approximate=True)


class LogStream:
    """Reads a run's lines, oldest first."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client, self._key = client, keys.logs
        self._seen = "0"

    def attach(self) -> None:
        """Send this process' lines here too."""
        log_to(_StreamHandler(self._client, self._key))

    def newest(self, n: int) -> list[dict[str, Any]]:
        """The last `n` lines."""
        found = self._client.xrevrange(self._key, count=n)
        return list(self._read(reversed(found)))

    def further(self) -> list[dict[str, Any]]:
        """Lines since the last look."""
        return list(self._read(self._client.xrange(self._key, min=f"({self._seen}")))

    def _read(self, entries: Any) -> Iterator[dict[str, Any]]:
        for key, fields in entries:
            self._seen = key.decode()
            yield json.loads(fields[b"line"])
