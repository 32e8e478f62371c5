"""An append-only file of Redis that the machine's power failed under: what of it can't be read, and what can be done.

A file system may have grown a file whose last blocks never reached the disk: it then ends in zero bytes. Redis takes a
command that is cut off at the end, and refuses anything else.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from common.errors import UserError
from common.files import free_name

_BLOCK = 2**20
_PREAMBLE = b"REDIS"
_CHECKSUM_BYTES = 8
"""What a snapshot at the beginning of the file ends with, where nothing was appended to it yet."""
CHECKER = "redis-check-aof"


def append_only_file(folder: Path) -> Path | None:
    """The file that commands of a server with this data folder were appended to last, or None."""
    single = folder / "appendonly.aof"
    # From Redis 7 on there are several, and only the last one is appended to.
    parts = sorted((folder / "appendonlydir").glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))
    return parts[-1] if parts else single if single.is_file() else None


def trim_zeros(folder: Path) -> str | None:
    """Take zero bytes off the end of the append-only file, a copy of it kept; what was done, or None.

    No whole command is lost: each ends with a line's end. What is left of one that the zeros were in the middle of is
    dropped by Redis itself.
    """
    path = append_only_file(folder)
    if path is None:
        return None
    size = path.stat().st_size
    kept = _size_without_zeros(path, size)
    if kept == size or _may_be_checksum(path, kept, size):
        return None
    copy = free_name(folder / f"{path.name}.damaged")
    try:
        shutil.copyfile(path, copy)
        with path.open("r+b") as file:
            file.truncate(kept)
    except OSError as error:
        raise UserError(
            "redis", str(path), f"ends in zero bytes, and can't be mended ({error})", "make room"
        ) from error
    return f"{path} ended in {size - kept} zero bytes, as after a loss of power; they were taken off, a copy is {copy}"


def damage(folder: Path, log: str) -> UserError | None:
    """The error for a server that did not start and wrote this to its log, if that was for its append-only file."""
    lines = [line for line in log.splitlines() if "append only file" in line.lower() or "AOF file" in line]
    path = append_only_file(folder)
    if not lines or path is None:
        return None
    checker = shutil.which(CHECKER)
    by_hand = f"move {path} away: the run goes on from its checkpoint with an empty buffer, which its actors fill again"
    remedy = f"keep a copy and run {checker} --fix {path}, which cuts it off at the damage, or {by_hand}"
    return UserError(
        "redis", str(path), "is damaged, and the embedded server can't read it", remedy if checker else by_hand
    )


def _size_without_zeros(path: Path, size: int) -> int:
    with path.open("rb") as file:
        end = size
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            rest = file.read(end - start).rstrip(b"\0")
            if rest:
                return start + len(rest)
            end = start
    return 0


def _may_be_checksum(path: Path, kept: int, size: int) -> bool:
    """Whether the zeros may be the end of a snapshot's checksum, behind which nothing stands yet."""
    with path.open("rb") as file:
        is_snapshot = file.read(len(_PREAMBLE)) == _PREAMBLE
        file.seek(max(0, kept - 2))
        return is_snapshot and size - kept <= _CHECKSUM_BYTES and file.read(2) != b"\r\n"
