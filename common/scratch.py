"""A folder for a process's own files, which goes when the process does, and after a kill when the next one begins."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from pathlib import Path

from common.errors import UserError
from common.folder_lock import is_locked, locked

_LOCK = ".lock"
_YOUNG_S = 60.0
"""A folder of this age may be made and not locked yet."""


class Scratch:
    """Made at once, under the system's folder for temporary files."""

    def __init__(self, kind: str) -> None:
        """`kind` names what it is for. What dead processes left of that kind is deleted."""
        prefix = f"amortis-{kind}-"
        for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
            if _is_abandoned(left):
                shutil.rmtree(left, ignore_errors=True)
        self.folder = Path(tempfile.mkdtemp(prefix=prefix))
        self._held = contextlib.ExitStack()
        # Where there are no locks nothing is taken for abandoned either.
        with contextlib.suppress(UserError):
            self._held.enter_context(locked(self.folder, _LOCK, UserError("TMPDIR", self.folder, "is taken", "wait")))

    def close(self) -> None:
        """Delete it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._held.close()


def _is_abandoned(folder: Path) -> bool:
    try:
        old = time.time() - (folder / _LOCK).stat().st_mtime > _YOUNG_S
        return old and not is_locked(folder, _LOCK)
    except (OSError, UserError):
        return False
