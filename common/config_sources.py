"""Where settings come from, files, environment and command line, and which holds where a setting comes several times.

A later source is put over the earlier ones section by section; a value is taken whole, a list or a JSON schema too.
Each value is kept with where it came from, so that an error can say so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from common.config import RunConfig
from common.config_options import (
    COMMAND_LINE,
    ONE_TEXT,
    TASK_MODULE,
    known_keys,
    module_of,
    parse,
    unknown,
    variable_given,
    variable_of,
)
from common.errors import UserError
from common.tasks import TASKS, TaskConfig, own_settings


@dataclass
class Given:
    """The settings that were given, nested as in a file, and where each came from by its dotted name."""

    own: type[TaskConfig] | None = None
    """Settings of the user's own task, where one is named."""
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problem: UserError | None = None
    """Why what else was given could not be read."""
    n_files: int = 1

    def put(self, data: Mapping[str, Any], origin: str | None, keys: frozenset[str]) -> None:
        """Put a source over what there is; without an `origin` it is the environment's variable that gave a value."""
        self._put(self.data, data, origin, keys, "")

    def _put(
        self, below: dict[str, Any], data: Mapping[str, Any], origin: str | None, keys: frozenset[str], prefix: str
    ) -> None:
        for name, value in data.items():
            dotted = f"{prefix}{name}"
            is_section = "." not in str(name) and any(key.startswith(f"{dotted}.") for key in keys)
            if is_section and isinstance(value, Mapping):
                if not isinstance(below.get(name), dict):
                    below[name] = {}
                    self.origins.pop(dotted, None)
                self._put(below[name], value, origin, keys, f"{dotted}.")
            else:
                below[name] = value
                for key in [key for key in self.origins if key.startswith(f"{dotted}.")]:
                    del self.origins[key]
                self.origins[dotted] = origin or f"environment variable {variable_given(dotted)}"

    def origin(self, name: str) -> str | None:
        """Where a setting came from, or what in it comes first; None for what nobody gave."""
        near = (key for key in self.origins if key.startswith(f"{name}.") or name.startswith(f"{key}."))
        return self.origins.get(name, self.origins.get(next(near, "")))

    def located(self, error: UserError) -> UserError:
        """An error that says where its setting came from."""
        where = self.origin(error.field)
        if where is None or f"({where})" in error.problem:
            return error
        return UserError(error.field, error.value, f"{error.problem} ({where})", error.remedy)

    def located_check(self, error: UserError) -> UserError:
        """The same for what a check found later: of a single file nobody asks which."""
        return self.located(error) if self.n_files > 1 else error

    def config(self) -> RunConfig:
        """The configuration that they make; raises UserError naming the setting and where it came from."""
        if self.problem is not None:
            raise self.problem
        try:
            return RunConfig.model_validate(self.data)
        except UserError as error:
            raise self.located(error) from error
        except ValidationError as error:
            raise explain(error, self) from error


def gather(files: Sequence[tuple[str, Mapping[str, Any]]], overrides: Sequence[str], *, environment: bool) -> Given:
    """Later files, each with what it is called, over earlier ones; the environment over them; the command line last.

    The section `task` begins anew with a file that names another task than those before. What can't be read of
    environment and command line is the result's `problem`.
    """
    first, named = _last_task([_section(data, "task") for _, data in files])
    module = module_of(overrides) or (os.environ.get(variable_of(TASK_MODULE)) if environment else None)
    found = Given(n_files=len(files))
    try:
        found.own = own_settings(module or named.get("module"))
    except UserError as error:
        found.problem = error
    keys = frozenset(known_keys(own=found.own))
    for i, (name, data) in enumerate(files):
        holds = {key: value for key, value in data.items() if key != "task" or i >= first}
        found.put(_as_sections(holds, keys), name, keys)
    if found.problem is None:
        try:
            surroundings, options = parse(found.own, overrides, keys, environment=environment)
            found.put(_as_sections(surroundings, keys), None, keys)
            found.put(_as_sections(options, keys), COMMAND_LINE, keys)
        except UserError as error:
            found.problem = error
    found.problem = found.problem and found.located(found.problem)
    return found


def explain(error: ValidationError, given: Given, *section: str) -> UserError:
    """The first thing that is wrong in the configuration, or in a section of it, with where it came from."""
    first = error.errors(include_url=False)[0]
    names = [*section, *(str(part) for part in first["loc"])]
    key = ".".join(names) or "configuration"
    if first["type"] == "extra_forbidden":
        having = [task for task in TASKS.values() if names[:-1] == ["task"] and names[-1] in task.Config.model_fields]
        if having:
            problem = f"is no setting of this task ({given.origin(key) or 'configuration'})"
            return UserError(key, None, problem, f"leave it out, or take one of {', '.join(t.name for t in having)}")
        return unknown(key, given.origin(key) or "configuration", known_keys(own=given.own))
    if first["type"] == "missing":
        return UserError(key, None, "is missing", f"set `{names[-1]}` in the file or give --{key}")
    value = first.get("input")
    value = value.get("name", None) if isinstance(value, dict) else value
    problem = first["msg"].removeprefix("Value error, ")
    return given.located(UserError(key, value, problem, f"see {key} in the configuration reference"))


def _last_task(tasks: Sequence[Mapping[str, Any]]) -> tuple[int, dict[str, Any]]:
    """Which of several files begins the section `task` that holds, and what is said of the task's name and module."""
    first, named = 0, dict[str, Any]()
    for i, task in enumerate(tasks):
        if _is_another(named, task):
            first, named = i, {}
        named |= {key: task[key] for key in ("name", "module") if task.get(key) is not None}
    return first, named


def _is_another(named: Mapping[str, Any], task: Mapping[str, Any]) -> bool:
    name, module = task.get("name"), task.get("module")
    if module is not None:
        return bool(named) and named.get("module") != module
    if named.get("module") is not None:
        # The name of an own task may be said too.
        return name in TASKS
    return name is not None and named.get("name", name) != name


def _section(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = data.get(name)
    return found if isinstance(found, Mapping) else {}


def _as_sections(data: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """The values of a source, a text that stands for a section as that: its settings can then come from elsewhere."""
    found = dict(data)
    for name, setting in ONE_TEXT.items():
        part, _, last = name.partition(".")
        section = found.get(part)
        if f"{name}.{setting}" in keys and isinstance(section, Mapping) and isinstance(section.get(last), str):
            found[part] = {**section, last: {setting: section[last]}}
    return found
