"""Child processes that never outlive the one that started them."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def die_with_parent(by: signal.Signals = signal.SIGTERM) -> None:
    """Also for `preexec_fn`: on Linux the kernel ends the child by this signal when its parent dies, however that
    happens."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, by)
