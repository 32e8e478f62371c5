"""How a configuration comes together: command line over environment over YAML file over defaults."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from common.config import RunConfig
from common.errors import UserError
from common.files import write_whole
from common.places import Kind, moved
from common.tasks import TASKS
from common.text_files import UnreadableFile, has_half_pair, read_text

ENV_PREFIX = "AMORTIS_"
REDIS_URL_VARIABLE = "AMORTIS_RUN_REDIS_URL"
"""Hands the Redis URL, which may hold a password, from the launcher to the processes that it starts."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, the environment (`AMORTIS_LEARNER__LR`) and overrides (`--learner.lr 1e-4`).

    Raises UserError naming the field, its value and the remedy.
    """
    data = read_yaml(path)
    _check_environment()
    return _from_sources(data, overrides, environment=True)


ONE_TEXT = {"task.reward": "function"}
"""Sections that may be written as one text, and the setting of theirs that this is."""


def _as_sections(data: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file with such texts as sections, so that single settings of them can come from elsewhere."""
    found = dict(data)
    for name, setting in ONE_TEXT.items():
        part, _, last = name.partition(".")
        section = found.get(part)
        if isinstance(section, dict) and isinstance(section.get(last), str):
            found[part] = {**section, last: {setting: section[last]}}
    return found


def _as_settings(overrides: Sequence[str]) -> list[str]:
    """The same for the command line, where a section as a whole is JSON."""
    found: list[str] = []
    for i, word in enumerate(overrides):
        option, equals, value = word.partition("=")
        setting = ONE_TEXT.get(option.removeprefix("--")) if option.startswith("--") else None
        given = value if equals else "".join(overrides[i + 1 : i + 2])
        as_json = given.lstrip().startswith("{") or given in ("null", "None", "")
        found.append(word if setting is None or as_json else f"{option}.{setting}{equals}{value}")
    return found


def _from_sources(data: Mapping[str, Any], overrides: Sequence[str], *, environment: bool) -> RunConfig:
    class Settings(BaseSettings, RunConfig):
        model_config = SettingsConfigDict(
            extra="forbid", env_prefix=ENV_PREFIX, env_nested_delimiter="__", validate_default=True, allow_inf_nan=False
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            parser = _Parser(add_help=False, allow_abbrev=False)
            command_line: CliSettingsSource[Any] = CliSettingsSource(
                settings_cls, cli_parse_args=_as_settings(overrides), root_parser=parser, cli_hide_none_type=True
            )
            surroundings = (EnvSettingsSource(settings_cls),) if environment else ()
            return (command_line, *surroundings, InitSettingsSource(settings_cls, _as_sections(data)))

    try:
        settings = Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        raise _explain(error) from error
    except SettingsError as error:
        raise _unreadable(error) from error
    values = _dump(settings)
    _refuse_half_characters(values)
    # A plain RunConfig: the sources must not be consulted again by whoever copies it.
    return RunConfig.model_validate(values)


def load_resolved(path: Path) -> RunConfig:
    """Read a run's saved configuration as it stands; the Redis URL comes from the launcher's environment."""
    data = read_yaml(path)
    data.setdefault("redis", {})["url"] = os.environ.get(REDIS_URL_VARIABLE)
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise _explain(error) from error


def load_run(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The saved configuration of a run's folder, wherever that is by now, with overrides as `load_config` takes them.

    Paths into the run's folder follow it. Raises UserError naming RUN if it is none.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(
            "RUN", str(folder), "holds no config.yaml, so it is no run's folder", "give a folder such as runs/NAME"
        )
    found = in_folder(load_resolved(path), folder)
    if not overrides:
        return found
    changed = _from_sources(_without_secrets(found), overrides, environment=False)
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
    write_whole(path, yaml.safe_dump(_without_secrets(config), sort_keys=False, allow_unicode=True))


def _without_secrets(config: RunConfig) -> dict[str, Any]:
    data = config.model_dump(mode="json")
    data["redis"]["url"] = None
    return data


def known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings, each task's among them."""
    for name, field in model.model_fields.items():
        dotted = f"{prefix}{name}"
        yield dotted
        if dotted == "task":
            for task in TASKS.values():
                yield from known_keys(task.Config, "task.")
        else:
            for inner in [field.annotation, *get_args(field.annotation)]:
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from known_keys(inner, f"{dotted}.")


_MERGE = "tag:yaml.org,2002:merge"


class _Parser(argparse.ArgumentParser):
    """Turns argparse's exit into an error that names the nearest setting."""

    def error(self, message: str) -> NoReturn:
        head, _, rest = message.partition("unrecognized arguments: ")
        if not head and rest:
            key = rest.split()[0].split("=")[0]
            if key in known_keys():
                raise UserError(key, None, "is written without dashes (command line)", f"write --{key} VALUE")
            raise _unknown(key.lstrip("-"), "command line")
        if "expected" in message:
            field = message.split(":")[0].removeprefix("argument ").split("/")[0].lstrip("-")
            raise UserError(field, None, message.partition(": ")[2], f"write --{field} VALUE")
        raise UserError("command line", None, message, "see amortis train --help")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's sections; raises UserError naming CONFIG."""
    try:
        text = read_text(path)
        _refuse_repeated_keys(path, text)
        data = yaml.safe_load(text)
        _refuse_half_characters(data)
    except OSError as error:
        raise UserError("CONFIG", str(path), f"can't be read ({error.strerror})", "name a YAML file") from error
    except UnreadableFile as error:
        raise UserError("CONFIG", str(path), f"can't be read ({error.problem})", error.remedy) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError("CONFIG", str(path), f"is not valid YAML{where}", "mend the file") from error
    except (ValueError, RecursionError) as error:
        # A date that is none, an integer of thousands of digits, thousands of brackets, a list that holds itself.
        raise UserError("CONFIG", str(path), f"holds a value that can't be read ({error})", "mend the file") from error
    if not isinstance(data, dict):
        raise UserError("CONFIG", str(path), f"holds a {type(data).__name__}", "write sections such as `task:`")
    for key in data:
        if not isinstance(key, str):
            raise UserError("CONFIG", str(path), f"has a section {key!r}", "write sections such as `task:`")
    return data


def _refuse_repeated_keys(path: Path, text: str) -> None:
    """YAML takes the last of two values in silence, so that a whole section would go unread."""
    waiting, seen = [yaml.compose(text, Loader=yaml.SafeLoader)], set[int]()
    while waiting:
        node = waiting.pop()
        # What an alias stands for comes more than once, and may hold itself.
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                waiting.append(value)
                if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                    continue
                line = key.start_mark.line + 1
                if key.value in lines:
                    problem = f"{key.value!r} stands twice, in line {lines[key.value]} and in line {line}"
                    raise UserError("CONFIG", str(path), problem, "bring the two together")
                lines[key.value] = line


def _refuse_half_characters(value: Any, name: str = "") -> None:
    """Such text, an escape of YAML or a byte on the command line that is no UTF-8, could not be written again."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_half_characters(str(key), "CONFIG")
            _refuse_half_characters(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_half_characters(item, name)
    elif isinstance(value, str | Path) and has_half_pair(str(value)):
        raise UserError(name, str(value), "holds half a character", "write it in UTF-8")


def _check_environment() -> None:
    """Refuse `AMORTIS_X__Y` that names no setting: pydantic-settings would pass over it in silence."""
    known = {key.upper().replace(".", "__"): key for key in known_keys()}
    for variable in os.environ:
        name = variable.upper().removeprefix(ENV_PREFIX)
        if variable.upper().startswith(ENV_PREFIX) and "__" in name and name not in known:
            raise _unknown(name.lower().replace("__", "."), f"environment variable {variable}")


def _unreadable(error: SettingsError) -> UserError:
    """A value of several parts, on the command line or in the environment, that isn't whole."""
    known = sorted(known_keys(), key=len, reverse=True)
    key = next((key for key in known if key in str(error) or f'"{key.split(".")[-1]}"' in str(error)), "command line")
    problem = str(error).rpartition(": ")[2] if ": " in str(error) else str(error)
    return UserError(key, None, problem or "can't be read", "write it as JSON, in quotes that the shell leaves whole")


def _unknown(key: str, where: str) -> UserError:
    near = difflib.get_close_matches(key, list(known_keys()), n=1, cutoff=0.0)[0]
    return UserError(key, None, f"is no setting ({where})", f"did you mean {near}?")


def _explain(error: ValidationError) -> UserError:
    first = error.errors(include_url=False)[0]
    names = [str(part) for part in first["loc"]]
    if len(names) > 1 and names[0] == "task" and names[1] in TASKS:
        del names[1]
    key = ".".join(names) or "configuration"
    if first["type"] == "extra_forbidden":
        return _unknown(key, "configuration file")
    if first["type"] == "missing":
        return UserError(key, None, "is missing", f"set `{names[-1]}` in the file or give --{key}")
    if first["type"].startswith("union_tag"):
        return UserError("task.name", _value(first), "names no task", f"choose one of {', '.join(sorted(TASKS))}")
    problem = first["msg"].removeprefix("Value error, ")
    return UserError(key, _value(first), problem, f"see {key} in the configuration reference")


def _value(first: Any) -> object:
    value = first.get("input")
    if isinstance(value, dict):
        return value.get("name", None)
    return value


def _dump(settings: RunConfig) -> dict[str, Any]:
    data = settings.model_dump()
    url = settings.redis.url
    data["redis"]["url"] = url.get_secret_value() if isinstance(url, SecretStr) else None
    return data
