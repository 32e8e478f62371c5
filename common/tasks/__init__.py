"""The tasks, one file each; a file that defines a `Task` with a `Config` is found by itself.

A task of a user's own is in a module outside of amortis, which `task.module` names.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import SerializeAsAny, ValidationInfo, WrapValidator

from common.errors import UserError
from common.tasks.base import SampleRequest, SampleSets, Split, Task, TaskConfig, TokenCodec
from common.tasks.own import SETTING, UnreadTask, load_task

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def _named(base: type[Task[Any]]) -> Iterator[type[Task[Any]]]:
    """All tasks below a class; one without a name of its own is a base for others."""
    cls: type[Task[Any]]
    for cls in base.__subclasses__():
        if "name" in vars(cls):
            yield cls
        yield from _named(cls)  # type: ignore[type-abstract]


TASKS: dict[str, type[Task[Any]]] = {cls.name: cls for cls in _named(Task)}  # type: ignore[type-abstract]
"""Task classes by name."""

_OWN: dict[tuple[type[TaskConfig], str], type[Task[Any]]] = {}
"""Tasks of the user's own that were loaded, by the type and the name of their settings."""

UNREAD = {"own tasks": "unread"}
"""Validation's context where a task's module is not to be loaded."""


def read_task(data: Mapping[str, Any]) -> TaskConfig:
    """A task's settings, read as its class says; its module is loaded where it has one.

    Raises UserError for a task that there isn't, and pydantic's ValidationError for settings.
    """
    if data.get("module") is None:
        name = data.get("name")
        if not isinstance(name, str) or name not in TASKS:
            known = ", ".join(sorted(TASKS))
            remedy = f"choose one of {known}, or name the file of your own by task.module"
            raise UserError("task.name", name, "names no task", remedy)
        return TASKS[name].Config.model_validate(data)
    module = str(data["module"])
    task, sha256 = load_task(module, TASKS)
    name, begun_with = data.get("name"), data.get("module_sha256")
    if name not in (None, task.name):
        remedy = "leave task.name out, or give the module of that name"
        raise UserError("task.name", name, f"is not what {module} calls its task, {task.name!r}", remedy)
    if begun_with not in (None, sha256):
        problem = "is not, by its content, the module that the run was trained with"
        raise UserError(SETTING, module, problem, f"give that by --{SETTING}, or train a run with this one")
    _OWN[task.Config, task.name] = task
    return task.Config.model_validate({**data, "name": task.name, "module_sha256": sha256})


def own_settings(module: str | None) -> type[TaskConfig] | None:
    """The type of an own task's settings, None where there is no module; raises UserError naming it."""
    return None if module is None else load_task(str(module), TASKS)[0].Config


def _read(value: Any, handler: Callable[[Any], TaskConfig], info: ValidationInfo) -> TaskConfig:
    if isinstance(value, TaskConfig) or not isinstance(value, Mapping):
        return handler(value)
    if value.get("module") is not None and info.context == UNREAD:
        return UnreadTask.model_validate(value)
    return read_task(value)


if TYPE_CHECKING:
    AnyTaskConfig = TaskConfig
else:
    AnyTaskConfig = Annotated[SerializeAsAny[TaskConfig], WrapValidator(_read)]


def task_class(config: TaskConfig) -> type[Task[Any]]:
    """The task that settings are of; where its module wasn't loaded, what all tasks have in common."""
    if isinstance(config, UnreadTask):
        return Task
    return _OWN.get((type(config), config.name)) or TASKS[config.name]


def make_task(
    config: TaskConfig, codec: TokenCodec, max_model_len: int | None = None, reward_temperature: float = 1.0
) -> Task[Any]:
    """The task that a configuration describes; raises UserError where its input can't be used.

    `max_model_len` is what prompt, rationale and target may take together, in tokens, and `reward_temperature` what log
    R is divided by at the end of training.
    """
    task = task_class(config)(config, codec, max_model_len)
    task.reward_temperature = reward_temperature
    return task


__all__ = [
    "TASKS",
    "UNREAD",
    "AnyTaskConfig",
    "SampleRequest",
    "SampleSets",
    "Split",
    "Task",
    "TaskConfig",
    "TokenCodec",
    "UnreadTask",
    "make_task",
    "own_settings",
    "read_task",
    "task_class",
]
