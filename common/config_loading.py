"""A configuration loaded: from what is given to start a run, or as a run has kept it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from common.config import RunConfig
from common.config_files import read_yaml, refuse_half_characters
from common.config_options import known_keys
from common.config_sources import Given, explain, gather
from common.errors import UserError
from common.files import write_whole
from common.places import Kind, moved
from common.tasks import UNREAD, UnreadTask, read_task

REDIS_URL_VARIABLE = "AMORTIS_RUN_REDIS_URL"
"""Hands the Redis URL, which may hold a password, from the launcher to the processes that it starts."""


def load_config(paths: Path | Sequence[Path], overrides: Sequence[str] = ()) -> RunConfig:
    """Read YAML files, later ones over earlier, the environment (`AMORTIS_LEARNER__LR`) and overrides (`--learner.lr
    1e-4`).

    Raises UserError naming the field, its value, where it came from and the remedy.
    """
    return whole(read_given(paths, overrides))


def load_settings(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """The same of sections that a program gives, as a YAML file holds them."""
    return whole(gather([("config", data)], overrides, environment=True))


def read_given(paths: Path | Sequence[Path], overrides: Sequence[str] = ()) -> Given:
    """What `load_config` makes a configuration of, and where each of it came from."""
    files = [paths] if isinstance(paths, Path) else paths
    return gather([(str(path), read_yaml(path)) for path in files], overrides, environment=True)


def whole(given: Given) -> RunConfig:
    """The configuration that settings make; raises UserError."""
    config = given.config()
    refuse_half_characters(config.model_dump())
    return config


def load_resolved(path: Path, *, load_task: bool = True) -> RunConfig:
    """Read a run's saved configuration as it stands; the Redis URL comes from the launcher's environment.

    Without `load_task` a task of the user's own is left unread, as its module may not be there.
    """
    data = read_yaml(path)
    data.setdefault("redis", {})["url"] = os.environ.get(REDIS_URL_VARIABLE)
    try:
        return RunConfig.model_validate(data, context=None if load_task else UNREAD)
    except ValidationError as error:
        raise explain(error, Given()) from error


def load_run(folder: Path, overrides: Sequence[str] = (), *, load_task: bool = True) -> RunConfig:
    """The saved configuration of a run's folder, wherever that is by now, with overrides as `load_config` takes them.

    Paths into the run's folder follow it. Without `load_task` a task of the user's own is left unread. Raises UserError
    naming RUN if it is none.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(
            "RUN", str(folder), "holds no config.yaml, so it is no run's folder", "give a folder such as runs/NAME"
        )
    # The module may have been moved, and the overrides say where to.
    found = in_folder(load_resolved(path, load_task=False), folder)
    if not overrides:
        return with_task(found) if load_task else found
    changed = whole(gather([(str(path), as_data(found))], overrides, environment=False))
    own = found.run
    run = changed.run.model_copy(update={"name": own.name, "folder": own.folder, "redis_name": own.redis_name})
    return changed.model_copy(update={"run": run})


def in_folder(config: RunConfig, folder: Path) -> RunConfig:
    """The saved configuration of a run that lies in this folder now: it may have been moved, or its name changed."""
    folder = folder.resolve()
    if config.run.name is None or config.run_folder == folder:
        return config
    old = config.run_folder

    def follow(kind: Kind, path: Path) -> Path:
        if path.is_relative_to(old):
            return folder / path.relative_to(old)
        # A step of an expectation maximisation goes on from those beside it.
        beside = folder.parent / path.relative_to(old.parent) if path.is_relative_to(old.parent) else path
        return beside if beside.exists() and not path.exists() else path

    run = config.run.model_copy(update={"name": folder.name, "folder": folder.parent, "redis_name": config.redis_name})
    return moved(config, follow).model_copy(update={"run": run})


def save_resolved(config: RunConfig, path: Path) -> None:
    """Write every setting, secrets left out."""
    write_whole(path, yaml.safe_dump(as_data(config), sort_keys=False, allow_unicode=True))


def with_task(config: RunConfig) -> RunConfig:
    """A configuration whose task was left unread, with its task; raises UserError naming what is wrong with it."""
    if not isinstance(config.task, UnreadTask):
        return config
    try:
        return config.model_copy(update={"task": read_task(config.task.model_dump())})
    except ValidationError as error:
        raise explain(error, Given(), "task") from error


def as_data(config: RunConfig) -> dict[str, Any]:
    """Every setting as plain values, secrets left out, that `RunConfig.model_validate` reads back."""
    data = config.model_dump(mode="json")
    data["redis"]["url"] = None
    return data


__all__ = [
    "REDIS_URL_VARIABLE",
    "as_data",
    "in_folder",
    "known_keys",
    "load_config",
    "load_resolved",
    "load_run",
    "read_given",
    "read_yaml",
    "save_resolved",
    "whole",
    "with_task",
]
