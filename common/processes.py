"""Child processes that never outlive the one that started them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Also for `preexec_fn`: on Linux the kernel ends the child by this signal when its parent dies, however that
    happens."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, by)


def end_group_with(pipe: int) -> None:
    """On Linux the kernel kills this process' group, children and all, when the other end of a pipe is closed, as it is
    when the process that holds it dies.

    Unlike `die_with_parent` it reaches what the process started, and it minds the parent's life and not that of the
    thread which started it. Nothing may ever be written into the pipe.
    """
    if sys.platform == "linux":
        fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
        # What was closed before that gives no signal any more.
        look = select.poll()
        look.register(pipe, 0)
        if look.poll(0):
            os.killpg(0, signal.SIGKILL)
