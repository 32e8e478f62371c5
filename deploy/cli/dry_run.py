"""`amortis train CONFIG… --dry-run`: every setting with where it came from, and whether a run could start with them."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from common.config import RunConfig
from common.config_loading import whole
from common.config_options import TASK_MODULE, known_keys
from common.config_sources import Given
from common.errors import RunFault, UserError
from common.json_text import dumps
from common.models import hidden
from common.places import places

DEFAULT = "default"
FOUND = {
    "model.name": "found: the default model",
    "run.redis_name": "found: the run to resume",
    "buffer.min_size": "found: the seeds",
    "task.name": f"found: {TASK_MODULE}",
    "task.module_sha256": f"found: {TASK_MODULE}",
}
"""Where a value is from that nobody gave and that is no default; those of all other settings are this machine's."""
THIS_MACHINE = "found: this machine"
_HIDDEN = "**********"
_WIDEST = 56
"""Columns of a setting and its value, behind which the comments stand below each other."""


def dry_run(given: Given, console: Console, *, as_json: bool) -> int:
    """Show it; the exit status is that of a start that would fail. Nothing is started and nothing written."""
    loaded: RunConfig | None = None
    prepared: RunConfig | None = None
    error: UserError | RunFault | None = None
    notes: list[str] = []
    try:
        loaded = whole(given)
        # It takes seconds to import, and nothing of it is needed to say what can't be read.
        _import_transformers()
        from deploy.run.checks import prepare

        prepared = prepare(loaded, notes.append)
    except UserError as problem:
        error = given.located_check(problem)
    except RunFault as problem:
        error = problem
    config = prepared or loaded
    data = _hidden(given.data) if config is None else config.model_dump(mode="json")
    keys = frozenset(known_keys(own=given.own))
    sources = _sources(given, data, keys, loaded, prepared)
    if as_json:
        checks = {"passed": error is None, "notes": notes, "error": None if error is None else str(error)}
        print(dumps({"config": data, "sources": sources, "checks": checks}, indent=2))
    else:
        lines = [*_lines(data, sources, keys), *(Text(f"# note: {note}") for note in notes)]
        lines.append(
            Text("# checks: failed" if error else "# checks: passed, a run can start", "red" if error else "green")
        )
        for line in lines:
            console.print(line, soft_wrap=True, highlight=False)
    if error is not None:
        raise error
    return 0


def _import_transformers() -> None:
    """As far as checks need it, without what serves assisted generation, losses of object detection and compiled
    kernels alone: scikit-learn, and pandas with it, SciPy and Triton are a fifth of a dry run."""
    # Thousands of modules come, all of them to stay: looking for garbage among them takes half a second.
    gc.disable()
    try:
        with hidden("sklearn", "scipy", "triton"):
            importlib.import_module("transformers.models.auto.modeling_auto")
            # What every model's own module begins with.
            importlib.import_module("transformers.modeling_utils")
    finally:
        gc.enable()


def _sources(
    given: Given, data: Mapping[str, Any], keys: frozenset[str], loaded: RunConfig | None, prepared: RunConfig | None
) -> dict[str, str]:
    """Where each value came from, by its setting's name."""
    before = {} if loaded is None else dict(_leaves(loaded.model_dump(mode="json"), keys))
    # A relative path that was made absolute is still what it was.
    paths = set() if loaded is None else {name for name, _, _ in places(loaded)}
    found: dict[str, str] = {}
    for name, value in _leaves(data, keys):
        origin, own = given.origins.get(name), name.startswith("task.mod") or name == "task.name"
        changed = prepared is not None and before.get(name) != value and name not in paths
        if origin is None:
            is_found = value is not None and (changed or (own and given.own is not None))
            found[name] = FOUND.get(name, THIS_MACHINE) if is_found else DEFAULT
        else:
            found[name] = f"{FOUND.get(name, THIS_MACHINE)}, for {before[name]} of {origin}" if changed else origin
    return found


def _leaves(data: Mapping[str, Any], keys: frozenset[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if _is_section(f"{prefix}{name}", value, keys):
            yield from _leaves(value, keys, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_section(name: str, value: Any, keys: frozenset[str]) -> bool:
    return isinstance(value, Mapping) and any(key.startswith(f"{name}.") for key in keys)


def _lines(
    data: Mapping[str, Any], sources: Mapping[str, str], keys: frozenset[str], prefix: str = ""
) -> Iterator[Text]:
    """YAML, a line a setting, with its source as a comment; defaults are dim."""
    indent = "  " * prefix.count(".")
    for name, value in data.items():
        dotted = f"{prefix}{name}"
        if _is_section(dotted, value, keys):
            yield Text(f"{indent}{name}:", "bold")
            yield from _lines(value, sources, keys, f"{dotted}.")
        else:
            line = f"{indent}{name}: {_yaml(value)}".ljust(_WIDEST)
            is_default = sources[dotted] == DEFAULT
            yield Text.assemble(
                (line, "dim" if is_default else ""), (f"  # {sources[dotted]}", "dim" if is_default else "cyan")
            )


def _yaml(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _hidden(data: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, without what may hold a password."""
    redis = data.get("redis")
    if not isinstance(redis, Mapping):
        return dict(data)
    return {**data, "redis": {**redis, **({"url": _HIDDEN} if redis.get("url") is not None else {})}}
