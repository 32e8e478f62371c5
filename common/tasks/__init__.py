"""The tasks, one file each; a file that defines a `Task` with a `Config` is found by itself."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from common.tasks.base import SampleRequest, SampleSets, Split, Task, TaskConfig, TokenCodec

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

if TYPE_CHECKING:
    AnyTaskConfig = TaskConfig
else:
    AnyTaskConfig = Annotated[reduce(or_, [cls.Config for cls in TASKS.values()]), Field(discriminator="name")]


def make_task(config: TaskConfig, codec: TokenCodec, max_model_len: int | None = None) -> Task[Any]:
    """The task that a configuration describes; raises UserError where its input can't be used.

    `max_model_len` is what prompt, rationale and target may take together, in tokens.
    """
    return TASKS[config.name](config, codec, max_model_len)


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
