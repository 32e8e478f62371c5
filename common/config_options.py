"""Settings by their dotted names, as the environment and the command line give them."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, NoReturn, get_args

from pydantic import BaseModel, Field, create_model
from pydantic_settings import BaseSettings, CliSettingsSource, EnvSettingsSource, SettingsConfigDict, SettingsError

from common.config import RunConfig
from common.errors import UserError
from common.tasks import TASKS, TaskConfig

ENV_PREFIX = "AMORTIS_"
COMMAND_LINE = "command line"
TASK_MODULE = "task.module"
ONE_TEXT = {"task.reward": "function"}
"""Sections that may be written as one text, and the setting of theirs that this is."""


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


def module_of(overrides: Sequence[str]) -> str | None:
    """The own task's module, whose settings are options too."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(f"--{TASK_MODULE}", dest="module")
    try:
        return parser.parse_known_args(overrides)[0].module
    except argparse.ArgumentError:
        # The parser of all settings says so.
        return None


class _Settings(BaseSettings, RunConfig):
    """What environment and command line are parsed by, and nothing is validated by."""

    model_config = SettingsConfigDict(extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__")


def parse(
    own: type[TaskConfig] | None, overrides: Sequence[str], keys: frozenset[str], *, environment: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the environment, where it is looked at, and the command line give; raises UserError."""
    if environment:
        _check_environment(keys)
    tasks: Any = (
        own
        or Annotated[
            reduce(or_, [task.Config for task in TASKS.values()]), Field(discriminator="name")  # type: ignore[arg-type]
        ]
    )
    settings = create_model("Settings", __base__=_Settings, task=(tasks, ...))
    try:
        surroundings = _environment(settings, keys) if environment else {}
        if not overrides:
            # A parser of all settings takes a quarter of a second to make.
            return surroundings, {}
        command_line: CliSettingsSource[Any] = CliSettingsSource(
            settings, cli_parse_args=_as_settings(overrides, keys), root_parser=_Parser(keys), cli_hide_none_type=True
        )
        return surroundings, command_line()
    except SettingsError as error:
        raise _unreadable(error, keys) from error


def _environment(settings: type[BaseSettings], keys: frozenset[str]) -> dict[str, Any]:
    source = EnvSettingsSource(settings)
    # A section that is written as one text goes by the setting that this is: its others can then come from elsewhere.
    written = {variable_of(name).lower(): name for name in ONE_TEXT}
    variables: dict[str, str | None] = {}
    for variable, value in source.env_vars.items():
        name = written.get(variable)
        if name is None or value is None or not _is_one_text(name, value, keys):
            variables[variable] = value
        else:
            variables.setdefault(variable_of(f"{name}.{ONE_TEXT[name]}").lower(), value)
    source.env_vars = variables
    return source()


def _is_one_text(name: str, value: str, keys: frozenset[str]) -> bool:
    """Whether this is a section's one text, and neither the whole section as JSON nor nothing."""
    as_json = value.lstrip().startswith("{") or value in ("null", "None", "")
    return f"{name}.{ONE_TEXT.get(name)}" in keys and not as_json


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
            raise unknown(key.lstrip("-"), COMMAND_LINE, self._keys)
        if "expected" in message:
            name = message.split(":")[0].removeprefix("argument ").split("/")[0].lstrip("-")
            dash = f", or --{name}=VALUE where it begins with a dash"
            raise UserError(name, None, message.partition(": ")[2], f"write --{name} VALUE{dash}")
        raise UserError(COMMAND_LINE, None, message, "see amortis train --help")


def _check_environment(keys: frozenset[str]) -> None:
    """Refuse `AMORTIS_X__Y` that names no setting: pydantic-settings would pass over it in silence."""
    known = {variable_of(key) for key in keys}
    for variable in os.environ:
        name = variable.upper()
        if name.startswith(ENV_PREFIX) and "__" in name and name not in known:
            key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            raise unknown(key, f"environment variable {variable}", keys)


def variable_of(key: str) -> str:
    """The environment's variable of a setting."""
    return ENV_PREFIX + key.upper().replace(".", "__")


def variable_given(key: str) -> str:
    """The variable that gave a setting: its own, or that of a section which holds it."""
    given, name = {variable.upper() for variable in os.environ}, key
    while variable_of(name) not in given and "." in name:
        name = name.rpartition(".")[0]
    return variable_of(name)


def _unreadable(error: SettingsError, keys: frozenset[str]) -> UserError:
    """A value of several parts, on the command line or in the environment, that isn't whole."""
    known = sorted(keys, key=len, reverse=True)
    key = next((key for key in known if key in str(error) or f'"{key.split(".")[-1]}"' in str(error)), COMMAND_LINE)
    problem = str(error).rpartition(": ")[2] if ": " in str(error) else str(error)
    return UserError(key, None, problem or "can't be read", "write it as JSON, in quotes that the shell leaves whole")


def unknown(key: str, where: str, keys: Iterable[str]) -> UserError:
    known = list(keys)
    if key in known:
        return UserError(
            key, None, f"is written with a dot ({where})", f"write {key.rpartition('.')[2]} in its section"
        )
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
    return UserError(key, None, f"is no setting ({where})", f"did you mean {near}?")


def _as_settings(overrides: Sequence[str], keys: frozenset[str]) -> list[str]:
    """The same for the command line, where a section as a whole is JSON."""
    found: list[str] = []
    for i, word in enumerate(overrides):
        option, equals, value = word.partition("=")
        name = option.removeprefix("--") if option.startswith("--") else ""
        given = value if equals else "".join(overrides[i + 1 : i + 2])
        found.append(f"{option}.{ONE_TEXT[name]}{equals}{value}" if _is_one_text(name, given, keys) else word)
    return found
