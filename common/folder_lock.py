"""Locks that keep two processes out of one folder; the kernel lifts them when their holder dies, however it does."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError

LAUNCHER = ".lock"
LEARNER = ".learner.lock"
"""A learner may outlive its launcher by a step."""


def is_locked(folder: Path, name: str) -> bool:
    """Whether a process has this lock of a folder."""
    try:
        descriptor = os.open(folder / name, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _lock(descriptor, folder)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path, name: str, busy: UserError) -> Iterator[int]:
    """Have a lock of a folder until the end, or until the last process ends that the descriptor was handed on to.

    Raises `busy` if another process has it.
    """
    try:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _unusable(folder, f"{name} can't be made there ({error.strerror})") from error
    try:
        # Between opening and locking it whoever had it may have removed the folder.
        if not _lock(descriptor, folder) or not _is_there(folder / name, descriptor):
            raise busy
        yield descriptor
    finally:
        os.close(descriptor)


def _is_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _lock(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        problem = f"its file system has no locks ({error.strerror}), which keep two runs apart"
        raise _unusable(folder, problem) from error
    return True


def _unusable(folder: Path, problem: str) -> UserError:
    return UserError("run.folder", str(folder), problem, "choose another run.folder")
