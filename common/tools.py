"""Tools that write into a rationale: text so far -> text to insert, or nothing.

A tool is any callable of one string. The built-in calculator runs in the actor. A user's tool runs in a process of its
own, which is ended when it hangs: whatever a tool does wrong is an event in the trajectory, never a crash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Protocol, cast, get_args

from pydantic import BaseModel, ConfigDict, Field

from common.calculator import Calculator
from common.errors import UserError
from common.places import Kind, Place
from common.trajectory import ToolFailure
from common.user_code import split_function
from common.user_process import UserCodeError, UserFunction, UserProcess


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

    name: Annotated[str, Place(Kind.FUNCTION)] = Field(
        "calculator",
        description="calculator, or a user's own as my_file.py:function or package.module:function; it gets the text "
        "so far and returns what to insert, or None",
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
        else:
            try:
                split_function(section.name)
            except ValueError as error:
                raise UserError("task.tool.name", section.name, str(error), "or write calculator") from error
            self._call = ToolProcess(section.name, section.timeout_s, section.folder)

    @property
    def section(self) -> ToolSection:
        """Its settings."""
        return self._section

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
    """A user's tool in a process of its own."""

    def __init__(self, name: str, timeout_s: float, folder: Path = Path()) -> None:
        """Raises UserError if the tool can't be loaded."""
        self._timeout_s = timeout_s
        self._process = UserProcess(
            UserFunction("tool", "task.tool.name", name, folder, "task.tool.folder", "insert(text)")
        )
        self._process.load()

    def __call__(self, text: str) -> str | None:
        """The tool's answer; raises ToolError. A process that hung or died is replaced at the next call."""
        try:
            found = self._process.ask(text, self._timeout_s)
        except UserCodeError as error:
            kind = error.kind if error.kind in get_args(ToolFailure) else "raised"
            raise ToolError(cast(ToolFailure, kind), str(error)) from error
        return None if found is None else str(found)

    def close(self) -> None:
        """End the process."""
        self._process.close()
