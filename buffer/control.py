"""A run's control keys: the stop signal, faults, and what learner and actors say of themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis.exceptions import ResponseError

from buffer.connection import Client, Keys, is_out_of_memory

ALIVE_S = 15.0
"""An actor that has said nothing for so long counts as dead."""


FULL = "waiting for memory"
"""How the phase of an actor begins whose push was refused."""


@contextmanager
def _unless_full() -> Iterator[None]:
    """What is only said, not done, is no reason to fail."""
    try:
        yield
    except ResponseError as error:
        if not is_out_of_memory(error):
            raise


class Control:
    """Signals between launcher, learner and actors; whoever misses one sees it at the next look."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client, self._keys = client, keys

    def reset(self) -> None:
        """Forget an earlier run's signals; its buffer and adapters stay."""
        self._client.delete(self._keys.control, self._keys.learner, self._keys.actors)

    def request_stop(self, reason: str) -> None:
        """Ask everyone to finish in good order; the first reason stays."""
        self._client.hsetnx(self._keys.control, "stop", reason)

    def report_fault(self, origin: str, message: str) -> None:
        """Stop the run because going on would be wrong; the first fault stays."""
        self._client.hsetnx(self._keys.control, "fault", f"{origin}: {message}")

    def stop_reason(self) -> str | None:
        """Why the run is to end, or None."""
        fault, stop = self._client.hmget(self._keys.control, "fault", "stop")
        found = fault or stop
        return found.decode() if found else None

    def fault(self) -> str | None:
        """What went wrong, or None."""
        found = self._client.hget(self._keys.control, "fault")
        return found.decode() if found else None

    def heartbeat(self, actor_id: str, status: dict[str, Any]) -> None:
        """An actor's word that it lives, and how it does; unheard where Redis has no memory left."""
        with _unless_full():
            self._client.hset(self._keys.actors, actor_id, json.dumps({**status, "at": time.time()}))

    def actors(self) -> dict[str, dict[str, Any]]:
        """Every actor's last word, each with `alive`."""
        now, found = time.time(), {}
        for name, raw in self._client.hgetall(self._keys.actors).items():
            status = json.loads(raw)
            found[name.decode()] = {**status, "alive": now - status["at"] < ALIVE_S}
        return found

    def report_learner(self, status: dict[str, Any]) -> None:
        """The learner's present state; unheard where Redis has no memory left."""
        with _unless_full():
            self._client.set(self._keys.learner, json.dumps({**status, "at": time.time()}))

    def learner(self) -> dict[str, Any]:
        """The learner's last word, empty before its first."""
        raw = self._client.get(self._keys.learner)
        return dict(json.loads(raw)) if raw else {}
