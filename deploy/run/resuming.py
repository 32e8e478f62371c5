"""What a resumed run may have otherwise than it had, held against its own configuration before anything is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.config import RunConfig
from common.config_loading import load_run
from common.errors import UserError
from common.places import Kind, places
from common.tasks import Task
from deploy.run.identity import QUERIES, REFERENCE, has_own_reference, identity_of, load_identity

FIXED: dict[str, str] = {
    "task": "its buffer holds trajectories under that mask with rewards for that task",
    "model": "its adapter, optimiser and stored rewards are that model's",
    "model.lora": "its checkpoints and published adapters are of that make",
    "reference": "its stored rewards were scored so",
    "learner.objective": "optimiser state, log Z and the states that were scored are that objective's",
    "buffer.shards": "its stored buffer is laid out so",
    "seeds": "they were queued when it began",
    "run.redis_name": "its buffer and adapters go by that name",
}
"""Settings, or sections of them, that a run keeps, each with the reason."""

FREE: dict[str, str] = {
    "run": "the folder may have been moved, and seeds of draws and what is evaluated change nothing that is stored",
    "actor": "actors are started anew; each trajectory carries how it was sampled",
    "reference.scorer": "what reads the texts, and not what it says of them",
    "learner": "steps, rates, weights of the reward and schedules are applied to each step; components are stored, and "
    "log Z, the best adapter and diagnoses of another reward begin anew",
    "buffer": "capacities, priorities and limits are applied to each call",
    "evaluation": "it changes nothing that is stored; a best adapter by another metric is looked for anew",
    "diagnose": "it changes nothing that is stored",
    "inference": "of draws without training, of which nothing is gone on with",
    "em": "steps that are still to come follow it; whether a run has any is looked at on its own",
    "redis": "an address; that the buffer is there is looked at on its own",
    "ray": "actors are started anew",
    "metrics": "endpoints are opened anew",
    "tracking": "files of figures are opened anew",
    "model.lora.start_from": "the checkpoint's weights take its place",
    "task.module_sha256": "of a module that is looked at on its own",
    "task.test_path": "the test is done at the end",
    "task.test_skip": "of test rows",
    "task.corrected_samples": "the test is done at the end",
    "task.calibrate": "of figures; what the reward is calibrated by is looked at on its own",
    "task.on_overlap": "of test rows",
    "task.on_bad_row": "the rows that are left are held against the run's",
    "task.limit": "the rows that are left are held against the run's",
    "task.test_size": "the rows that are left for training are held against the run's",
    "task.size": "the questions are held against the run's",
    "task.evaluation_": "the test is done at the end",
    "task.embedding_model": "the test is done at the end",
    "task.tool.folder": "a place",
    "task.tool.timeout_s": "a limit on this machine",
    "task.reward.folder": "a place",
    "task.reward.batch_size": "how the function is called, and not what it says",
    "task.reward.processes": "how the function is called, and not what it says",
    "task.reward.timeout_s": "a limit on this machine",
    "task.reward.start_timeout_s": "a limit on this machine",
}
"""Settings, or sections of them, or what their names begin with, that may change, each with the reason.

The longest name in both lists decides. What is in neither is kept by nobody's decision, so a test asks for one.
"""


def check_resume(config: RunConfig, task: Task[Any]) -> None:
    """Raises UserError naming the first setting that the run in the configuration's folder can't go on with."""
    own = load_run(config.run_folder, load_task=False)
    if bool(config.em.iterations) != bool(own.em.iterations):
        raise _refusal("em.iterations", config.em.iterations, own.em.iterations, "its folder is laid out so")
    kept, found = load_identity(config.run_folder), identity_of(config, task)
    same_place = {name for name in kept.keys() & found.keys() if kept[name] == found[name]}
    named = {name for name, kind, _ in places(config) if kind is not Kind.FOLDER}
    before, after = _values(own), _values(config)
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name) or name in same_place or reason_to_keep(name) is None:
            continue
        if name == QUERIES and name in kept:
            # Rows may lie elsewhere: what they hold is looked at below.
            continue
        if name == REFERENCE and has_own_reference(own):
            continue
        raise _refusal(name, after.get(name), before.get(name), reason_to_keep(name) or "")
    for name in sorted(kept.keys() & found.keys() - same_place):
        if name == REFERENCE and has_own_reference(config):
            continue
        if name == QUERIES or (name in named and reason_to_keep(name) is not None):
            raise _replaced(name, after.get(name), config.run_folder)


def adopted(config: RunConfig) -> RunConfig:
    """The configuration of a run to be resumed, under the name in Redis that it has had, if its folder was renamed."""
    if config.run.redis_name is not None:
        return config
    own = load_run(config.run_folder, load_task=False)
    if own.redis_name == config.redis_name:
        return config
    return config.model_copy(update={"run": config.run.model_copy(update={"redis_name": own.redis_name})})


def reason_to_keep(name: str) -> str | None:
    """Why a run keeps this setting, or None if it may change."""
    return FIXED.get(max((head for head in (*FIXED, *FREE) if is_below(name, head)), key=len))


def is_below(name: str, head: str) -> bool:
    """Whether a dotted name is `head`, is in that section, or begins with it where it ends in an underscore."""
    return name == head or name.startswith(head if head.endswith("_") else f"{head}.")


def _values(config: RunConfig) -> dict[str, Any]:
    """Every setting's value, by its dotted name."""
    data = config.model_dump(mode="json")
    data["run"]["redis_name"] = config.redis_name
    return dict(leaves(data))


def leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested settings, by their dotted names."""
    for name, value in data.items():
        # A JSON schema that is given in place of a file is one value.
        if isinstance(value, dict) and name != "json_schema":
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _refusal(name: str, value: Any, before: Any, reason: str) -> UserError:
    shown = json.dumps(before, ensure_ascii=False)
    shown = shown if len(shown) <= 80 else f"{shown[:79]}…"
    return UserError(
        name,
        "null" if value is None else value,
        f"the run to resume has {shown}, and {reason}",
        f"give --{name} as it was (the run's config.yaml holds it), or start another run by --run.name",
    )


def _replaced(name: str, value: Any, folder: Path) -> UserError:
    what = "gives other training queries than" if name == QUERIES else "is not, by its content, what"
    whose = "the run to resume has" if name == QUERIES else "the run to resume was trained with"
    return UserError(
        name, value, f"{what} {whose}", f"give that which {folder} began with, or start another run by --run.name"
    )
