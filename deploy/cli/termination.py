"""SIGTERM ends a command as Ctrl-C does: what it holds is given up in good order, drafts and engines among it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAME_WISH_S = 1.0
"""`timeout` and others signal a process and then its group, which is one wish."""


class Terminated(KeyboardInterrupt):
    """The process was told to terminate; whoever cleans up after Ctrl-C does so after this."""


@contextmanager
def terminating() -> Iterator[None]:
    """Raise `Terminated` in the main thread at SIGTERM; where somebody handles it already, that stays."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    own, told_at = os.getpid(), -SAME_WISH_S

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal told_at
        if os.getpid() != own:
            # A fork has nothing of the command to give up.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now, before = time.monotonic(), told_at
        told_at = now
        if now - before > SAME_WISH_S:
            raise Terminated

    signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        # Of the libraries that a command imports some put their own in its place.
        if signal.getsignal(signal.SIGTERM) is on_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
