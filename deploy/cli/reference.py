"""Writes docs/configuration.md from the pydantic models: `python -m deploy.cli.reference > docs/configuration.md`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from common.config import RunConfig
from common.tasks import TASKS, TaskConfig

_INTRODUCTION = """# Configuration reference

Generated from the pydantic models by `make docs`; don't edit it by hand.

A setting can stand in YAML files, in the environment and on the command line; the later one wins. `learner.lr`, for
example, is

```yaml
task: {name: rng}
learner:
  lr: 1.0e-4
```

in the file, `AMORTIS_LEARNER__LR=1e-4` in the environment, and `--learner.lr 1e-4` on the command line. An unknown name
is an error that gives the nearest known one. The resolved configuration of a run is kept in its `config.yaml`, without
the Redis URL, which may hold a password.
"""


_OF_OWN_TASKS = ("module", "module_sha256")
_OF_ALL_TASKS = {f"task.{name}" for name in _OF_OWN_TASKS}


def reference() -> str:
    """The whole page, Markdown."""
    own = {name: TaskConfig.model_fields[name] for name in _OF_OWN_TASKS}
    about = "A task that a module of your own defines: [Tasks](tasks.md#your-own-task) shows one."
    parts = [_INTRODUCTION, _table("`task` with `module`", about, _rows(own, "task."))]
    for name, task in sorted(TASKS.items()):
        parts.append(_section(f"`task` with `name: {name}`", task.Config, "task."))
    for name, field in RunConfig.model_fields.items():
        if name != "task" and isinstance(field.annotation, type):
            parts.append(_section(f"`{name}`", field.annotation, f"{name}."))
    return "\n".join(parts)


def _section(title: str, model: type[BaseModel], prefix: str) -> str:
    fields = {name: field for name, field in model.model_fields.items() if f"{prefix}{name}" not in _OF_ALL_TASKS}
    # The first paragraph, however many lines it has.
    about = inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
    return _table(title, about, _rows(fields, prefix))


def _table(title: str, text: str, rows: Iterator[str]) -> str:
    table = "\n".join(["| setting | type | default | what it does |", "|---|---|---|---|", *rows])
    return f"## {title}\n\n{text}\n\n{table}\n"


def _rows(fields: Mapping[str, FieldInfo], prefix: str) -> Iterator[str]:
    for name, field in fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _rows(kind.model_fields, f"{prefix}{name}.")
        elif f"{prefix}{name}" != "task.name":
            default = "required" if field.default is PydanticUndefined else f"`{_shown(field.default)}`"
            text = (field.description or "").replace("|", "\\|")
            yield f"| `{prefix}{name}` | {_type(kind)} | {default} | {text} |"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).replace("|", "\\|") if isinstance(value, str | Path) else repr(value)


def _type(kind: Any) -> str:
    """In words: a constraint of a value is told by its description."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    if not arguments:
        return str(getattr(kind, "__name__", kind))
    return " or ".join(_type(part) for part in arguments if part is not type(None))


if __name__ == "__main__":
    sys.stdout.write(reference())
