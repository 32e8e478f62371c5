"""Files that are whole or not there, and places that can be written, found out before the work for them is done."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path

from common.errors import UserError


def write_whole(path: Path, text: str) -> None:
    """Put a text in a file's place: whoever reads it, and a machine that loses its power, has the old or the new.

    What could not be written whole, as on a full disk, leaves nothing behind.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            sync(file.fileno())
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def free_name(path: Path) -> Path:
    """The path, or with -2, -3, … behind it where that is taken."""
    free, n = path, 1
    while free.exists():
        n += 1
        free = path.with_name(f"{path.name}-{n}")
    return free


def sync(descriptor: int) -> None:
    """Have what was written on the disk, where the file system can."""
    with contextlib.suppress(OSError):
        os.fsync(descriptor)


def check_writable(field: str, value: object, folder: Path, remedy: str, use: str = "") -> None:
    """Make and remove a folder in `folder`, or where that would be made. Raises UserError if it can't be done.

    It is tried, as permissions don't tell: a file system may be mounted to be read only, and root passes them by.
    """
    try:
        made = next((path for path in (folder, *folder.parents) if _is_there(path)), folder)
        check_lengths(folder, made)
        with tempfile.TemporaryDirectory(prefix=".amortis-", dir=made):
            pass
    except OSError as error:
        problem = f"{use}nothing can be written there ({error.strerror})"
        raise UserError(field, value, problem, remedy) from error


def check_lengths(path: Path, made: Path) -> None:
    """Raises OSError for a path whose names, or which itself, is too long for the file system of `made`, a part of it.

    The system itself says so of a name only once everything before that is there.
    """
    longest = max((len(os.fsencode(part)) for part in path.relative_to(made).parts), default=0)
    # The system's limit counts the zero at a path's end.
    if longest > os.pathconf(made, "PC_NAME_MAX") or len(os.fsencode(path)) >= os.pathconf(made, "PC_PATH_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def _is_there(path: Path) -> bool:
    """Raises OSError for what can't be: unlike `Path.exists`, below a file too."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True
