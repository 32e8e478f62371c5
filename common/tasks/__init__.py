"""The tasks, one file each; a file that defines a `Task` with a `Config` is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from common.tasks.base import SampleRequest, SampleSets, Split, Task, TaskConfig, TokenCodec

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

TASKS: dict[str, type[Task[Any]]] = {cls.name: cls for cls in Task.__subclasses__()}
"""Task classes by name."""

if TYPE_CHECKING:
    AnyTaskConfig = TaskConfig
else:
    AnyTaskConfig = Annotated[reduce(or_, [cls.Config for cls in TASKS.values()]), Field(discriminator="name")]


def make_task(config: TaskConfig, codec: TokenCodec) -> Task[Any]:
    """The task that a configuration describes; raises UserError where its input can't be used."""
    return TASKS[config.name](config, codec)


__all__ = [
    "TASKS",
    "AnyTaskConfig",
    "SampleRequest",
    "SampleSets",
    "Split",
    "Task",
    "TaskConfig",
    "TokenCodec",
    "make_task",
]
