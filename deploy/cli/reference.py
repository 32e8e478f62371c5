"""Writes docs/configuration.md from the pydantic models: `python -m deploy.cli.reference > docs/configuration.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from common.config import RunConfig
from common.tasks import TASKS

_INTRODUCTION = """# Configuration reference

Generated from the pydantic models by `make docs`; don't edit it by hand.

A setting can stand in the YAML file, in the environment and on the command line; the later one wins. `learner.lr`, for
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


def reference() -> str:
    """The whole page, Markdown."""
    parts = [_INTRODUCTION]
    for name, task in sorted(TASKS.items()):
        parts.append(_section(f"`task` with `name: {name}`", task.Config, "task."))
    for name, field in RunConfig.model_fields.items():
        if name != "task" and isinstance(field.annotation, type):
            parts.append(_section(f"`{name}`", field.annotation, f"{name}."))
    return "\n".join(parts)


def _section(title: str, model: type[BaseModel], prefix: str) -> str:
    text = (model.__doc__ or "").strip().splitlines()[0]
    rows = "\n".join(_rows(model, prefix))
    return f"## {title}\n\n{text}\n\n| setting | type | default | what it does |\n|---|---|---|---|\n{rows}\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _rows(kind, f"{prefix}{name}.")
        elif f"{prefix}{name}" != "task.name":
            default = "required" if field.default is PydanticUndefined else f"`{_shown(field.default)}`"
            text = (field.description or "").replace("|", "\\|")
            yield f"| `{prefix}{name}` | {_type(kind)} | {default} | {text} |"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return str(value).replace("|", "\\|") if isinstance(value, str | Path) else repr(value)


def _type(kind: Any) -> str:
    arguments = get_args(kind)
    if not arguments:
        return str(getattr(kind, "__name__", kind))
    if getattr(kind, "__origin__", None) is list:
        return f"list of {_type(arguments[0])}"
    named = [_type(part) if isinstance(part, type) else str(part) for part in arguments if part is not type(None)]
    return " or ".join(named)


if __name__ == "__main__":
    sys.stdout.write(reference())
