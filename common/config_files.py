"""A configuration's YAML files: what YAML takes in silence, or fails at, is an error that names the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError
from common.text_files import UnreadableFile, has_half_pair, read_text

_MERGE = "tag:yaml.org,2002:merge"


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's sections; raises UserError naming CONFIG."""
    try:
        text = read_text(path)
        _refuse_repeated_keys(path, text)
        data = yaml.safe_load(text)
        refuse_half_characters(data)
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
    if data is None:
        raise UserError("CONFIG", str(path), "is empty", "write sections such as `task:`")
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


def refuse_half_characters(value: Any, name: str = "") -> None:
    """Such text, an escape of YAML or a byte on the command line that is no UTF-8, could not be written again."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            refuse_half_characters(str(key), "CONFIG")
            refuse_half_characters(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            refuse_half_characters(item, name)
    elif isinstance(value, str | Path) and has_half_pair(str(value)):
        raise UserError(name, str(value), "holds half a character", "write it in UTF-8")
