"""Malformed trajectories, kept for a look: a capped list with reason and origin."""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgpack

from buffer.connection import Client, Keys, unless_full

CAPACITY = 1_000


@dataclass(frozen=True)
class Quarantined:
    """What could not be used, and why."""

    at: float
    """Seconds since the epoch."""
    reason: str
    origin: str
    """The actor, query or file line that it came from."""
    payload: bytes
    """As it was found; never unpickled or executed."""


class Quarantine:
    """Newest first; the oldest make room."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client, self._keys = client, keys

    def add(self, payload: bytes, *, reason: str, origin: str) -> None:
        """Set something aside; where Redis has no memory left it is let go, as what can't be used stops nobody."""
        entry = msgpack.packb([time.time(), reason, origin, payload])
        pipe = self._client.pipeline(transaction=False)
        pipe.lpush(self._keys.quarantine, entry)
        pipe.ltrim(self._keys.quarantine, 0, CAPACITY - 1)
        pipe.incr(self._keys.quarantine_count)
        with unless_full():
            pipe.execute()

    def newest(self, n: int = CAPACITY) -> list[Quarantined]:
        """The last `n` that were set aside."""
        entries = self._client.lrange(self._keys.quarantine, 0, n - 1)
        return [Quarantined(*msgpack.unpackb(entry)) for entry in entries]

    @property
    def count(self) -> int:
        """How many were set aside since the buffer was made, those that made room among them."""
        return int(self._client.get(self._keys.quarantine_count) or 0)
