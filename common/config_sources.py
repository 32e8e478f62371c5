"""Where settings come from, files, environment and command line, and which holds where a setting comes several times.

A later source is put over the earlier ones section by section; a value is taken whole, a list or a JSON schema too.
Each value is kept with where it came from, so that an error can say so.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Annotated, Any, NoReturn, get_args

from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic_settings import BaseSettings, CliSettingsSource, EnvSettingsSource, SettingsConfigDict, SettingsError

from common.config import RunConfig
from common.errors import UserError
from common.tasks import TASKS, TaskConfig, own_settings

ENV_PREFIX = "AMORTIS_"
COMMAND_LINE = "command line"
_MODULE = "task.module"


@dataclass
class Given:
    """The settings that were given, nested as in a file, and where each came from by its dotted name."""

    own: type[TaskConfig] | None = None
    """Settings of the user's own task, where one is named."""
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problem: UserError | None = None
    """Why what else was given could not be read."""

    def put(self, data: Mapping[str, Any], origin: str | None, keys: frozenset[str], prefix: str = "") -> None:
        """Put a source over what there is; without an `origin` each value's variable of the environment is it."""
        for name, value in data.items():
            dotted = f"{prefix}{name}"
            if isinstance(value, Mapping) and any(key.startswith(f"{dotted}.") for key in keys):
                if not isinstance(self._at(dotted), dict):
                    self._set(dotted, {})
                self.put(value, origin, keys, f"{dotted}.")
            else:
                self._set(dotted, value)
                self.origins[dotted] = origin or f"environment variable {_variable(dotted)}"

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

    def _at(self, dotted: str) -> Any:
        found: Any = self.data
        for name in dotted.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found

    def _set(self, dotted: str, value: Any) -> None:
        section, _, name = dotted.rpartition(".")
        (self._at(section) if section else self.data)[name] = value
        for key in [key for key in self.origins if key == dotted or key.startswith(f"{dotted}.")]:
            del self.origins[key]


def gather(files: Sequence[tuple[str, Mapping[str, Any]]], overrides: Sequence[str], *, environment: bool) -> Given:
    """Later files, each with what it is called, over earlier ones; the environment over them; the command line last.

    The section `task` begins anew with a file that names another task than those before. What can't be read of
    environment and command line is the result's `problem`.
    """
    first, named = _last_task([_section(data, "task") for _, data in files])
    module = _on_the_command_line(overrides) or (os.environ.get(_variable(_MODULE)) if environment else None)
    found = Given()
    try:
        found.own = own_settings(module or named.get("module"))
    except UserError as error:
        found.problem = error
    keys = frozenset(known_keys(own=found.own))
    for i, (name, data) in enumerate(files):
        found.put({key: value for key, value in data.items() if key != "task" or i >= first}, name, keys)
    if found.problem is None:
        try:
            if environment:
                _check_environment(keys)
            from_environment, from_command_line = _parsed(found.own, overrides, keys)
            if environment:
                found.put(from_environment, None, keys)
            found.put(from_command_line, COMMAND_LINE, keys)
        except UserError as error:
            found.problem = error
    found.problem = found.problem and found.located(found.problem)
    return found


def known_keys(
    model: type[BaseModel] = RunConfig, prefix: str = "", own: type[TaskConfig] | None = None
) -> Iterator[str]:
    """Dotted names of all settings; those of each built-in task among them, or of the user's own alone."""
    for name, item in model.model_fields.items():
        dotted = f"{prefix}{name}"
        yield dotted
        if dotted == "task":
            for config in [own] if own else [task.Config for task in TASKS.values()]:
                yield from known_keys(config, "task.")
        else:
            for inner in [item.annotation, *get_args(item.annotation)]:
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from known_keys(inner, f"{dotted}.")


def explain(error: ValidationError, given: Given, *section: str) -> UserError:
    """The first thing that is wrong in the configuration, or in a section of it, with where it came from."""
    first = error.errors(include_url=False)[0]
    names = [*section, *(str(part) for part in first["loc"])]
    key = ".".join(names) or "configuration"
    if first["type"] == "extra_forbidden":
        return _unknown(key, given.origin(key) or "configuration", known_keys(own=given.own))
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


def _on_the_command_line(overrides: Sequence[str]) -> str | None:
    """The own task's module, whose settings are options too."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(f"--{_MODULE}", dest="module")
    try:
        return parser.parse_known_args(overrides)[0].module
    except argparse.ArgumentError:
        # The parser of all settings says so.
        return None


class _Settings(BaseSettings, RunConfig):
    """What environment and command line are parsed by, and nothing is validated by."""

    model_config = SettingsConfigDict(extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__")


def _parsed(
    own: type[TaskConfig] | None, overrides: Sequence[str], keys: frozenset[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What environment and command line give."""
    tasks: Any = (
        own
        or Annotated[
            reduce(or_, [task.Config for task in TASKS.values()]), Field(discriminator="name")  # type: ignore[arg-type]
        ]
    )
    settings = create_model("Settings", __base__=_Settings, task=(tasks, ...))
    try:
        environment = EnvSettingsSource(settings)()
        command_line: CliSettingsSource[Any] = CliSettingsSource(
            settings, cli_parse_args=list(overrides), root_parser=_Parser(keys), cli_hide_none_type=True
        )
        return environment, command_line()
    except SettingsError as error:
        raise _unreadable(error, keys) from error


class _Parser(argparse.ArgumentParser):
    """Turns argparse's exit into an error that names the nearest setting."""

    def __init__(self, keys: frozenset[str]) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self._keys = keys

    def error(self, message: str) -> NoReturn:
        head, _, rest = message.partition("unrecognized arguments: ")
        if not head and rest:
            key = rest.split()[0].split("=")[0]
            if key in self._keys:
                raise UserError(key, None, f"is written without dashes ({COMMAND_LINE})", f"write --{key} VALUE")
            raise _unknown(key.lstrip("-"), COMMAND_LINE, self._keys)
        if "expected" in message:
            name = message.split(":")[0].removeprefix("argument ").split("/")[0].lstrip("-")
            raise UserError(name, None, message.partition(": ")[2], f"write --{name} VALUE")
        raise UserError(COMMAND_LINE, None, message, "see amortis train --help")


def _check_environment(keys: frozenset[str]) -> None:
    """Refuse `AMORTIS_X__Y` that names no setting: pydantic-settings would pass over it in silence."""
    known = {_variable(key) for key in keys}
    for variable in os.environ:
        name = variable.upper()
        if name.startswith(ENV_PREFIX) and "__" in name and name not in known:
            key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            raise _unknown(key, f"environment variable {variable}", keys)


def _variable(key: str) -> str:
    """The environment's variable of a setting."""
    return ENV_PREFIX + key.upper().replace(".", "__")


def _unreadable(error: SettingsError, keys: frozenset[str]) -> UserError:
    """A value of several parts, on the command line or in the environment, that isn't whole."""
    known = sorted(keys, key=len, reverse=True)
    key = next((key for key in known if key in str(error) or f'"{key.split(".")[-1]}"' in str(error)), COMMAND_LINE)
    problem = str(error).rpartition(": ")[2] if ": " in str(error) else str(error)
    return UserError(key, None, problem or "can't be read", "write it as JSON, in quotes that the shell leaves whole")


def _unknown(key: str, where: str, keys: Iterable[str]) -> UserError:
    near = difflib.get_close_matches(key, list(keys), n=1, cutoff=0.0)[0]
    return UserError(key, None, f"is no setting ({where})", f"did you mean {near}?")
