"""Settings that name a place: a file, rows, a model's folder. A run keeps them absolute, wherever it is looked at from.

They are found by their type, `Path`, or by a mark in their annotation, and never by what they are called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from common.errors import UserError
from common.rows import HUB
from common.user_code import is_file

ModelT = TypeVar("ModelT", bound=BaseModel)


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


class Kind(Enum):
    """What a text in a setting names."""

    FILE = "a file"
    FOLDER = "a folder"
    ROWS = "a file of rows, or a data set of the hub"
    MODEL = "a model's folder, or its id on the hub"
    MODULE = "a Python file, or the name that Python imports it by"
    FUNCTION = "a function, as my_file.py:function or package.module:function"


@dataclass(frozen=True)
class Place:
    """Marks a setting whose texts name places: `Annotated[str | None, Place(Kind.FILE)]`."""

    kind: Kind


def places(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Kind, str | Path]]:
    """Every place that a section's settings name, with the setting's dotted name."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from places(value, f"{prefix}{name}.")
        else:
            kind = _kind(field.metadata, value)
            if kind is not None:
                yield from ((f"{prefix}{name}", kind, item) for item in _texts(value))


def moved(section: ModelT, move: Callable[[Kind, Path], Path]) -> ModelT:
    """The section with every path that its settings hold replaced; what is on the hub stays."""
    update: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            update[name] = moved(value, move)
        else:
            kind = _kind(field.metadata, value)
            update[name] = value if kind is None else _moved(kind, value, move)
    return section.model_copy(
        update={name: value for name, value in update.items() if value is not getattr(section, name)}
    )


def absolute(section: ModelT) -> ModelT:
    """The section with its places absolute, those that are relative taken from the working folder; raises UserError."""
    for name, kind, text in places(section):
        if isinstance(text, Path) or not on_hub(kind, text):
            _check(name, kind, path_of(kind, text))
    return moved(section, lambda kind, path: path.expanduser().resolve())


def _check(name: str, kind: Kind, text: str | Path) -> None:
    """Raise UserError for what can't be made a path of this machine."""
    scheme = _SCHEME.match(str(text))
    if scheme:
        hub = {Kind.ROWS: f", or {HUB}owner/name", Kind.MODEL: ", or its id on the hub, owner/name"}.get(kind, "")
        problem = f"is an address ({scheme[1]}), and what it names is read from this machine alone"
        raise UserError(name, str(text), problem, f"fetch it and name its path{hub}")
    try:
        Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(name, str(text), f"is no path ({error})", "name a path that there is, or can be") from error


def path_of(kind: Kind, text: str | Path) -> Path | str:
    """The path in what names a place: all of it, but for a function in a file."""
    return str(text).rpartition(":")[0] if kind is Kind.FUNCTION else text


def on_hub(kind: Kind, text: str) -> bool:
    """Whether a text names what is on the hub, or a module, and no file or folder."""
    if kind is Kind.ROWS:
        return text.startswith(HUB)
    if kind is Kind.MODULE:
        return not is_file(text)
    if kind is Kind.FUNCTION:
        return not is_file(text.rpartition(":")[0])
    return kind is Kind.MODEL and not looks_like_path(text) and not is_folder(text)


def looks_like_path(model: str) -> bool:
    """Whether a model's name is meant for a folder, as no id on the hub is written so."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def is_folder(text: str) -> bool:
    """Whether there is such a folder; a text that can't be the name of one, as it is too long, names none."""
    try:
        return Path(text).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):
        return False


def _kind(metadata: list[Any], value: Any) -> Kind | None:
    mark = next((item for item in metadata if isinstance(item, Place)), None)
    if mark is not None:
        return mark.kind
    holds_paths = isinstance(value, Path) or (isinstance(value, list) and any(isinstance(item, Path) for item in value))
    return Kind.FILE if holds_paths else None


def _texts(value: Any) -> Iterator[str | Path]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str | Path):
            yield item


def _moved(kind: Kind, value: Any, move: Callable[[Kind, Path], Path]) -> Any:
    if isinstance(value, list):
        return [_moved(kind, item, move) for item in value]
    if isinstance(value, Path):
        return move(kind, value)
    if not isinstance(value, str) or on_hub(kind, value):
        # Nothing is set, or a value is given in the place of a file's name.
        return value
    moved_path = str(move(kind, Path(path_of(kind, value))))
    return f"{moved_path}:{value.rpartition(':')[2]}" if kind is Kind.FUNCTION else moved_path
