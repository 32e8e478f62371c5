"""What a comparison is: conditions × methods × seeds, of one file or of several configurations, and its cells."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from common.config_loading import read_yaml
from common.errors import UserError
from common.rows import HUB
from deploy.comparison.table import PlotSection

DATA_SETTINGS = ("train_path", "test_path")
DEFAULT_SEEDS = [0, 1]
SEED = "{seed}"
"""Stands for the cell's seed where a setting of a comparison should follow it."""
_ADAPTER = re.compile(r"\{adapter:(.+)\}")
"""Stands for the adapter that another method gives under the same condition and seed."""


class ComparisonFile(BaseModel):
    """A comparison: settings that all cells share, those of each condition, and those of each method."""

    model_config = ConfigDict(extra="forbid")

    base: dict[str, Any] = Field({}, description="settings of every cell, as in a run's configuration")
    conditions: dict[str, dict[str, Any]] = Field({"": {}}, min_length=1, description="by name: other data, …")
    methods: dict[str, dict[str, Any]] = Field(min_length=1, description="by name: other objectives, …")
    seeds: list[int] = Field(DEFAULT_SEEDS, min_length=1, description="seeds of every cell")
    figures: list[str] = Field([], description="names of the table's figures; the task's own without it")
    plot: PlotSection = Field(PlotSection(), description="what the plot shows")

    @field_validator("base", mode="before")
    @classmethod
    def _nothing(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("conditions", "methods", mode="before")
    @classmethod
    def _nothing_more(cls, value: Any) -> Any:
        """YAML has null where a name is followed by nothing, as of a method that only the base describes."""
        if not isinstance(value, dict):
            return value
        return {name: {} if settings is None else settings for name, settings in value.items()}


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    condition: str
    method: str
    seed: int
    settings: Mapping[str, Any]
    after: str | None = None
    """The cell whose adapter it starts from."""

    @property
    def name(self) -> str:
        """Of the run."""
        return cell_name(self.condition, self.method, self.seed)


def cell_name(condition: str, method: str, seed: int) -> str:
    """Of a cell's run."""
    parts = [part for part in (condition, method) if part]
    latin = [re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in parts]
    words = "-".join(filter(None, latin)) or "cell"
    # Two names that differ in signs only must not share a folder.
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:6]
    return f"{words}-{digest}-seed{seed}"


@dataclass(frozen=True)
class Comparison:
    """What is to be run."""

    name: str
    file: ComparisonFile
    overrides: tuple[str, ...]

    @classmethod
    def load(
        cls, paths: Sequence[Path], *, seeds: Sequence[int] | None, data: Path | None, overrides: Sequence[str]
    ) -> Self:
        """One comparison file, or run configurations, each a method named as its file.

        Raises UserError for what can't be used.
        """
        found = [read_yaml(path) for path in paths]
        if any("methods" in content for content in found):
            if len(paths) > 1:
                raise UserError(
                    "CONFIG", [str(path) for path in paths], "mixes a comparison with others", "give it alone"
                )
            content = found[0]
        else:
            names = [path.stem for path in paths]
            if len(set(names)) < len(names):
                raise UserError("CONFIG", names, "two files have the same name", "rename one: it names the method")
            content = {"methods": dict(zip(names, found, strict=True))}
        try:
            file = ComparisonFile.model_validate(content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(map(str, first["loc"])) or "CONFIG"
            raise UserError(field, None, first["msg"], "see the docs on comparing") from error
        if seeds is not None:
            file = file.model_copy(update={"seeds": list(seeds)})
        if len(set(file.seeds)) < len(file.seeds) or min(file.seeds) < 0:
            raise UserError("--seeds", file.seeds, "repeats or is below 0", "give distinct seeds from 0 on")
        if data is not None:
            file = _with_data(file, data)
        return cls("-".join(path.stem for path in paths), file, tuple(overrides))

    def cells(self, folder: Path) -> Iterator[Cell]:
        """One seed of everything first, so that an early look at the table is of use."""
        for seed in self.file.seeds:
            for condition, own in self.file.conditions.items():
                done: list[str] = []
                for method, settings in self.file.methods.items():
                    merged = _merged(_merged(self.file.base, own), settings)
                    needed = sorted(set(_needed(merged)))
                    if len(needed) > 1 or not set(needed) <= set(done):
                        raise UserError(
                            f"methods.{method}", needed, "names adapters of no one earlier method", "put it after it"
                        )
                    after = cell_name(condition, needed[0], seed) if needed else None
                    adapter = "" if after is None else str((folder / "cells" / after / "adapter").resolve())
                    yield Cell(condition, method, seed, _filled(merged, seed, adapter), after)
                    done.append(method)


@dataclass(frozen=True)
class Part:
    """The cells of a comparison that are to be run, by name; None for all."""

    conditions: Sequence[str] | None = None
    methods: Sequence[str] | None = None

    def check(self, file: ComparisonFile) -> None:
        """Raises UserError for a name that the comparison doesn't have."""
        for option, given, known in (
            ("--conditions", self.conditions, file.conditions),
            ("--methods", self.methods, file.methods),
        ):
            for name in given or ():
                if name not in known:
                    raise UserError(option, name, "is none of the comparison's", f"name one of {', '.join(known)}")

    def __contains__(self, cell: Cell) -> bool:
        chosen = ((cell.condition, self.conditions), (cell.method, self.methods))
        return all(names is None or name in names for name, names in chosen)


WHOLE = Part()


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """`second` over `first`, section by section."""
    out = dict(first)
    for key, value in second.items():
        before = out.get(key)
        nested = isinstance(before, Mapping) and isinstance(value, Mapping)
        out[key] = _merged(before, value) if nested else value  # type: ignore[arg-type]
    return out


def _filled(settings: Any, seed: int, adapter: str) -> Any:
    if isinstance(settings, Mapping):
        return {key: _filled(value, seed, adapter) for key, value in settings.items()}
    if isinstance(settings, str) and _ADAPTER.fullmatch(settings):
        return adapter
    return seed if settings == SEED else settings


def _needed(settings: Any) -> Iterator[str]:
    """Methods whose adapters are named."""
    if isinstance(settings, Mapping):
        for value in settings.values():
            yield from _needed(value)
    elif isinstance(settings, str) and (found := _ADAPTER.fullmatch(settings)):
        yield found[1]


def _with_data(file: ComparisonFile, data: Path) -> ComparisonFile:
    """Relative paths of data made paths within `data`."""

    def placed(settings: Mapping[str, Any]) -> dict[str, Any]:
        task = settings.get("task")
        if not isinstance(task, Mapping):
            return dict(settings)
        paths = {key: _within(data, task[key]) for key in DATA_SETTINGS if task.get(key) is not None}
        return {**settings, "task": {**task, **paths}}

    return file.model_copy(
        update={
            "base": placed(file.base),
            "conditions": {name: placed(settings) for name, settings in file.conditions.items()},
            "methods": {name: placed(settings) for name, settings in file.methods.items()},
        }
    )


def _within(data: Path, value: Any) -> Any:
    if isinstance(value, list):
        return [_within(data, item) for item in value]
    if not isinstance(value, str) or value.startswith(HUB):
        return value
    return str(data.expanduser().resolve() / Path(value).expanduser())
