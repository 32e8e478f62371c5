"""Lines that say how far something is that takes long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

SAY_EVERY_S = 10.0
"""Between such lines."""


def progress(say: Callable[[str], None], what: str) -> Callable[[int, int], None]:
    """Says now and then how many of what are done."""
    last = time.monotonic()

    def told(done: int, n: int) -> None:
        nonlocal last
        if time.monotonic() - last >= SAY_EVERY_S:
            last = time.monotonic()
            say(f"{what}: {done} of {n}")

    return told


def of_samples(say: Callable[[str], None], label: str) -> Callable[[int, int], None]:
    """Of a request's samples."""
    return progress(say, f"samples ({label})")


def of_actors(words: Iterable[Mapping[str, Any]]) -> str | None:
    """Of the samples that an actor draws for a run's end, by its heartbeat; None where none does."""
    return next(("{} of {}".format(*word["drawn"]) for word in words if word.get("drawn")), None)
