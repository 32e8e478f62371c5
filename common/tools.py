"""Tools that write into a rationale: text so far -> text to insert, or nothing.

A tool is any callable of one string. The built-in calculator runs in the actor. A user's tool runs in a process of its
own, which is ended when it hangs: whatever a tool does wrong is an event in the trajectory, never a crash.
"""

from __future__ import annotations

import importlib
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, Field

from common.calculator import Calculator
from common.errors import UserError
from common.places import Kind, Place
from common.trajectory import ToolFailure

START_LIMIT_S = 30.0
"""A tool's process imports the user's module first."""
_MAX_ANSWER_BYTES = 1 << 20
_NOTHING = 2**32 - 1
_RAISED = 2**32 - 2
_READY = 2**32 - 3


class Tool(Protocol):
    """What a tool is."""

    def __call__(self, text: str) -> str | None:
        """What to insert after the text so far, which ends with the trigger; None for nothing."""


class ToolError(Exception):
    """A call that inserted nothing because it went wrong."""

    def __init__(self, kind: ToolFailure, message: str) -> None:
        super().__init__(message)
        self.kind: ToolFailure = kind


class ToolSection(BaseModel):
    """A tool that the policy calls by writing its trigger."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = Field(
        "calculator",
        description="calculator, or a user's own as package.module:function; it gets the text so far and returns "
        "what to insert, or None",
    )
    folder: Annotated[Path, Place(Kind.FOLDER)] = Field(
        Path(), description="where the module of a user's own is, besides PYTHONPATH; where amortis is started without"
    )
    trigger: str = Field("=", min_length=1, description="a token whose text ends with this calls the tool")
    limit_capability: int = Field(
        2, ge=2, description="the calculator sees the last so many operands only, as in the paper"
    )
    timeout_s: float = Field(2.0, gt=0, description="a user's tool that takes longer is ended; it inserts nothing")
    max_characters: int = Field(32, ge=1, description="an insertion that is longer is dropped")


class ToolBox:
    """A configured tool behind its limits."""

    def __init__(self, section: ToolSection) -> None:
        """Raises UserError if there is no such tool."""
        self._section = section
        self._call: Tool
        if section.name == "calculator":
            self._call = Calculator(section.limit_capability)
        elif ":" in section.name:
            self._call = ToolProcess(section.name, section.timeout_s, section.folder)
        else:
            raise UserError("task.tool.name", section.name, "is no tool", "write calculator or package.module:function")

    def __call__(self, text: str) -> str | None:
        """What to insert; raises ToolError with what went wrong."""
        try:
            found = self._call(text)
        except ToolError:
            raise
        except Exception as error:
            raise ToolError("raised", f"{type(error).__name__}: {error}") from error
        if found is None or found == "":
            return None
        if len(found) > self._section.max_characters:
            raise ToolError("too_long", f"{len(found)} characters")
        return found


class ToolProcess:
    """A user's tool in a process of its own: texts go out and come in as length-prefixed UTF-8, nothing is pickled."""

    def __init__(self, name: str, timeout_s: float, folder: Path = Path()) -> None:
        load_tool(name, folder)
        self._name, self._timeout_s, self._folder = name, timeout_s, folder
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, text: str) -> str | None:
        """The tool's answer; raises ToolError. A process that hung or died is replaced at the next call."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        try:
            return self._ask(text)
        except ToolError as error:
            if error.kind != "raised":
                self.close()
            raise
        except OSError as error:
            self.close()
            raise ToolError("raised", f"its process ended: {error}") from error

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "common.tools", self._name, str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([*_search_path(self._folder), os.environ.get("PYTHONPATH", "")]),
            },
        )
        if self._read_length(time.monotonic() + START_LIMIT_S) != _READY:
            self.close()
            raise ToolError("raised", f"{self._name} can't be started")

    def _ask(self, text: str) -> str | None:
        assert self._process is not None and self._process.stdin is not None
        data = text.encode()
        self._process.stdin.write(struct.pack("<I", len(data)) + data)
        self._process.stdin.flush()
        deadline = time.monotonic() + self._timeout_s
        length = self._read_length(deadline)
        if length == _NOTHING:
            return None
        if length == _RAISED:
            raise ToolError("raised", f"{self._name} raised an exception")
        if length > _MAX_ANSWER_BYTES:
            raise ToolError("too_long", f"{length} bytes")
        try:
            return self._read(length, deadline).decode()
        except UnicodeDecodeError as error:
            raise ToolError("unusable", "no UTF-8") from error

    def _read_length(self, deadline: float) -> int:
        return int(struct.unpack("<I", self._read(4, deadline))[0])

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._process is not None and self._process.stdout is not None
        descriptor, found = self._process.stdout.fileno(), b""
        while len(found) < size:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise ToolError("timed_out", f"{self._name} took longer than its limit")
            part = os.read(descriptor, size - len(found))
            if not part:
                raise OSError("end of output")
            found += part
        return found


def load_tool(name: str, folder: Path = Path()) -> Callable[[str], str | None]:
    """The function `package.module:function`; raises UserError naming task.tool.name."""
    module, _, attribute = name.partition(":")
    sys.path[:0] = [path for path in _search_path(folder) if path not in sys.path]
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise UserError(
            "task.tool.name",
            name,
            f"can't be imported ({type(error).__name__}: {error})",
            "put the module on PYTHONPATH or beside where amortis is started, or set task.tool.folder",
        ) from error
    if not callable(found):
        raise UserError("task.tool.name", name, "is not callable", "name a function of one string")
    return found


def _search_path(folder: Path) -> list[str]:
    return [str(folder.expanduser().resolve()), str(Path(__file__).resolve().parents[1])]


def _serve(name: str, folder: Path) -> None:
    """The tool's process: answer until the input ends. What the tool prints goes nowhere."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    tool = load_tool(name, folder)

    def answer(length: int, data: bytes = b"") -> None:
        answers.write(struct.pack("<I", length) + data)
        answers.flush()

    answer(_READY)
    while header := sys.stdin.buffer.read(4):
        text = sys.stdin.buffer.read(struct.unpack("<I", header)[0]).decode()
        try:
            found = tool(text)
            data = None if found is None else str(found).encode()
        except Exception:
            answer(_RAISED)
            continue
        if data is None:
            answer(_NOTHING)
        else:
            answer(len(data), data if len(data) <= _MAX_ANSWER_BYTES else b"")


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]))
