"""A user's own task: a module outside of amortis that defines a `Task`, held to what the built-in ones are held to."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

from pydantic import ConfigDict

from common.errors import UserError
from common.own_modules import load_module, module_sha256
from common.tasks.base import Task, TaskConfig

SETTING = "task.module"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Runs without a name are named after their task."""


class UnreadTask(TaskConfig):
    """Settings of an own task whose module isn't needed, or isn't there, for what is done: none of them is checked."""

    model_config = ConfigDict(extra="allow")


def load_task(module: str, built_in: Collection[str]) -> tuple[type[Task[Any]], str]:
    """The task that a module defines, and the module's sha256. Raises UserError naming `task.module`.

    It is the class `Task`, or the only task of the module; classes without a `name` of their own are bases of others.
    """
    found = _task_of(module, load_module(SETTING, module))
    problem = _why_not(found, built_in)
    if problem is not None:
        raise UserError(SETTING, module, f"its class {found.__name__} {problem[0]}", problem[1])
    return found, module_sha256(SETTING, module)


def _task_of(module: str, loaded: ModuleType) -> type[Task[Any]]:
    classes = [item for item in vars(loaded).values() if inspect.isclass(item) and issubclass(item, Task)]
    own = list(dict.fromkeys(item for item in classes if item.__module__ == loaded.__name__))
    named = [item for item in own if "name" in vars(item)]
    found = [item for item in own if item.__name__ == "Task"] or (own if len(own) == 1 else named)
    if not own:
        remedy = "define a subclass of common.tasks.base.Task in it (docs/tasks.md shows one)"
        raise UserError(SETTING, module, "defines no task", remedy)
    if len(found) != 1:
        names = ", ".join(item.__name__ for item in own)
        raise UserError(SETTING, module, f"defines several tasks ({names})", "call the one that is meant Task")
    return found[0]


def _why_not(task: type[Task[Any]], built_in: Collection[str]) -> tuple[str, str] | None:
    """What a class lacks to be a task, and what to do; None for nothing."""
    name, config = getattr(task, "name", None), getattr(task, "Config", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return "has no name", 'write e.g. name = "parity" in it: letters, digits, and . _ - behind the first'
    if name in built_in:
        return f"is called {name!r}, as a built-in task is", "give it another name"
    if not inspect.isclass(config) or not issubclass(config, TaskConfig):
        return "has no Config", "write Config = … in it, a subclass of common.tasks.base.TaskConfig"
    if config.model_config.get("extra") != "forbid":
        return f"has a {config.__name__} that takes unknown settings", 'leave out extra, or write extra="forbid"'
    kind = config.model_fields["name"].annotation
    if kind is not str and not (get_origin(kind) is Literal and name in get_args(kind)):
        return f"has a {config.__name__} of another name", f'write name: Literal["{name}"] = "{name}" in it'
    missing = sorted(getattr(task, "__abstractmethods__", ()))
    if missing:
        return f"lacks {', '.join(missing)}", "define it, as common.tasks.base.Task says"
    return None
