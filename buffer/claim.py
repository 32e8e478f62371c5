"""A run's name in a Redis that others use too: one run at a time has it.

The launcher holds a key that lapses unless it is renewed, and so does a learner that outlives its launcher for a step:
a run that lives is told from one that crashed, whose name is free again after `LAPSES_S` at most.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from types import TracebackType
from typing import Self

from redis.exceptions import RedisError

from buffer.connection import Client, Keys
from buffer.control import ALIVE_S, Control
from common.errors import UserError
from common.log import get_logger

log = get_logger("claim")
LAPSES_S = 20.0
RENEWED_EVERY_S = 4.0
_POLL_S = 0.25


class RunClaim:
    """A run's name, held from `take` to `release`; every claim in a process or of another is another's."""

    def __init__(self, client: Client, run: str) -> None:
        self._client, self._run = client, run
        self._word = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "claim": uuid.uuid4().hex})
        self._renewal: Renewal | None = None

    def take(self) -> Self:
        """Have the name, or wait until a crashed run's claim has lapsed. Raises UserError while a run lives."""
        left = float("inf")
        while not self._set_if_free():
            before, left = left, self._client.pttl(Keys(self._run).claim) / 1_000
            if left > before:
                raise _refusal(self._run, f"is a run in progress in that Redis ({self._holder()})")
            time.sleep(_POLL_S)
        try:
            refuse_the_living(self._client, self._run)
        except BaseException:
            self._drop()
            raise
        self._renewal = Renewal(self._client, self._run, self._word)
        return self

    def _set_if_free(self) -> bool:
        key, lapses_ms = Keys(self._run).claim, int(1_000 * LAPSES_S)
        # Sent twice, where the first answer was lost, it must not be refused by itself.
        return bool(self._client.set(key, self._word, nx=True, px=lapses_ms)) or self._is_own()

    def _is_own(self) -> bool:
        return self._client.get(Keys(self._run).claim) == self._word.encode()

    def _holder(self) -> str:
        raw = self._client.get(Keys(self._run).claim)
        try:
            word = json.loads(raw or b"{}")
            return f"process {word['pid']} on {word['host']}"
        except (ValueError, KeyError, TypeError):
            return "of another amortis"

    def release(self) -> None:
        """Let another run have the name; a Redis that is gone does so by itself."""
        if self._renewal is not None:
            self._renewal.stop()
            self._renewal = None
        self._drop()

    def _drop(self) -> None:
        try:
            if self._is_own():
                self._client.delete(Keys(self._run).claim)
        except RedisError as error:
            log.warning("the claim on %s lapses by itself: %s", self._run, error)

    def __enter__(self) -> Self:
        return self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def refuse_the_living(client: Client, run: str) -> None:
    """Raises UserError if a part of a run of that name was heard of lately, whether or not a claim is held."""
    alive = Control(client, Keys(run)).alive()
    if alive:
        heard = f"is a run in progress in that Redis: {', '.join(alive)} gave signs of life within {ALIVE_S:g} s"
        raise _refusal(run, heard)


def is_claimed(client: Client, run: str) -> bool:
    """Whether a run holds the name, or one that crashed a moment ago."""
    return bool(client.exists(Keys(run).claim))


def _refusal(run: str, problem: str) -> UserError:
    return UserError(
        "run.name",
        run,
        problem,
        "choose another run.name or run.redis_name, or stop that run with `amortis stop` and wait for its end",
    )


class Renewal:
    """Renews a run's claim from a thread of its own, as whoever holds it may be busy for minutes.

    Without a `word` of its own it keeps the launcher's alive: a learner that ends its step after its launcher was
    killed still works under the name.
    """

    def __init__(self, client: Client, run: str, word: str | None = None) -> None:
        self._client, self._key, self._word = client, Keys(run).claim, word
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        lapses_ms = int(1_000 * LAPSES_S)
        while not self._stopped.wait(RENEWED_EVERY_S):
            try:
                if not self._client.pexpire(self._key, lapses_ms) and self._word is not None:
                    # A Redis that was away for longer, or lost its data.
                    self._client.set(self._key, self._word, nx=True, px=lapses_ms)
            except RedisError as error:
                log.warning("the claim on the run's name can't be renewed: %s", error)

    def stop(self) -> None:
        """Renew no more."""
        self._stopped.set()
        self._thread.join(RENEWED_EVERY_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
