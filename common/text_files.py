"""Text files of a user: UTF-8 with or without a mark, whose lines end at line feeds alone.

U+2028, NEL and form feed are characters of a text like any other, which `str.splitlines` would cut it at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_MARK = "\ufeff"
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_UNDECODED = re.compile("[\udc80-\udcff]")
"""What Python's `surrogateescape` makes of bytes that are no UTF-8."""
_OTHERS = {
    b"\xff\xfe\x00\x00": ("is UTF-32", "save it as UTF-8"),
    b"\x00\x00\xfe\xff": ("is UTF-32", "save it as UTF-8"),
    b"\xff\xfe": ("is UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("is UTF-16", "save it as UTF-8"),
    b"\x1f\x8b": ("is compressed by gzip", "unpack it"),
    b"PK\x03\x04": ("is a ZIP archive or a workbook of a spreadsheet", "unpack it, or save it as CSV in UTF-8"),
}
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class UnreadableFile(Exception):
    """Why a file as a whole can't be used, and what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(f"{problem}; {remedy}")


def check_start(path: Path) -> None:
    """Raise UnreadableFile if the first bytes are not those of the file that its name promises, OSError if there is
    none."""
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise UnreadableFile("it is a Git LFS pointer and not the file itself", "fetch the file with `git lfs pull`")
    for magic, (problem, remedy) in _OTHERS.items():
        if start.startswith(magic):
            raise UnreadableFile(f"it {problem}", remedy)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Each line with its number, its end still there (`without_end`); `why_no_text` says whether it can be used.

    Raises OSError and UnreadableFile.
    """
    check_start(path)
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and "\r" in line and not line.endswith("\n"):
                raise UnreadableFile("its lines end with carriage returns alone", "end them with line feeds")
            # Files that were put together from several have marks within.
            yield number, line.removeprefix(_MARK)


def without_end(line: str) -> str:
    """A line without its line feed, and the carriage return before that."""
    return line.removesuffix("\n").removesuffix("\r")


def why_no_text(text: str) -> str | None:
    """Why a text of `numbered_lines` can't be used; None where it can."""
    undecoded = _UNDECODED.search(text)
    if undecoded is not None:
        return f"byte 0x{ord(undecoded[0]) - 0xDC00:02x} is no UTF-8 (save the file as UTF-8)"
    if "\0" in text:
        return "holds a NUL character (if the file is UTF-16, save it as UTF-8)"
    return None


def has_half_pair(text: str) -> bool:
    """Whether half of a surrogate pair stands alone, as an escape of JSON or YAML can say it: no UTF-8 can."""
    return _HALF_PAIR.search(text) is not None


def read_text(path: Path) -> str:
    """A whole file; raises OSError, and UnreadableFile where it is no UTF-8."""
    check_start(path)
    data = path.read_bytes()
    try:
        return data.decode().removeprefix(_MARK)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnreadableFile(f"line {line}: byte 0x{data[error.start]:02x} is no UTF-8", "save it as UTF-8") from error
