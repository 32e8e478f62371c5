"""Reads docker-compose.yml as Docker does: variables put in, services of a profile, the image's own environment."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::([-?])([^}]*))?\})")


class MissingVariable(Exception):
    """A variable that must be given is not, or is empty."""


def raw() -> dict[str, Any]:
    """The file with its variables still in it."""
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return loaded


def load(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file with variables put in; raises MissingVariable with the file's own message."""
    found: dict[str, Any] = _interpolate(raw(), variables)
    return found


def services(variables: Mapping[str, str], profile: str) -> dict[str, dict[str, Any]]:
    """The services that a profile starts."""
    found = load(variables)["services"].items()
    return {name: service for name, service in found if profile in service["profiles"]}


def start_order(chosen: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of services, each after those that it depends on."""
    order: list[str] = []
    while len(order) < len(chosen):
        ready = [name for name in chosen if name not in order and set(chosen[name].get("depends_on", ())) <= {*order}]
        assert ready, f"services wait for each other: {set(chosen) - set(order)}"
        order += ready
    return order


def variables_in(text: str) -> dict[str, tuple[str, str]]:
    """Name of each variable in a text, with how it is used (`-`, `?` or empty) and its default or message."""
    return {found[2]: (found[3] or "", found[4] or "") for found in _VARIABLE.finditer(text) if not found[1]}


def example_variables() -> dict[str, str]:
    """Variables of .env.example and their values there."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def image_environment(target: str) -> dict[str, str]:
    """ENV of a target of the Dockerfile and of the stages that it is built from."""
    stages: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for instruction, rest in instructions():
        if instruction == "FROM":
            words = rest.split()
            current = stages[words[2]] = dict(stages.get(words[0], {}))
        elif instruction == "ENV":
            current.update(pair.split("=", 1) for pair in shlex.split(rest))
    return stages[target]


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile and their arguments, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined if line.strip()]


def _interpolate(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _interpolate(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolate(item, variables) for item in value]
    return _VARIABLE.sub(lambda match: _value(match, variables), value) if isinstance(value, str) else value


def _value(match: re.Match[str], variables: Mapping[str, str]) -> str:
    dollar, name, kind, rest = match.groups()
    if dollar:
        return "$"
    if variables.get(name):
        return variables[name]
    if kind == "?":
        raise MissingVariable(rest)
    return rest or ""
