"""Checkpoints: adapter, optimiser, log Z, random state and step, so that a resumed run continues the same curve.

Tensors are kept as safetensors and the rest as JSON: nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import UserError
from common.files import free_name, sync
from common.log import get_logger

log = get_logger("learner")
_STATE = "state.json"
_TENSORS = "tensors.safetensors"
_SHA256 = "tensors_sha256"
_REPLACED = ".replaced"
UNREADABLE = "unreadable-"
"""Put before the name of a checkpoint that could not be read, so that it is neither tried nor counted again."""


class Found(NamedTuple):
    """The newest checkpoint that can be read, and those newer that can't."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    unreadable: dict[Path, str]
    """Each with the reason, newest first."""


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Write `folder`/step-N completely or not at all, then drop all but the newest `keep`."""
    target, draft = folder / f"step-{step:06d}", folder / f".step-{step:06d}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, draft / _TENSORS)
    (draft / _STATE).write_text(json.dumps({**state, "step": step, _SHA256: _sha256(draft / _TENSORS)}))
    # On the disk before it has its name, and the older ones after that: power may fail at any instant.
    for path in (draft / _TENSORS, draft / _STATE, draft):
        _sync(path)
    replaced = folder / f".{target.name}{_REPLACED}"
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    draft.rename(target)
    _sync(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    drop_older(folder, keep)
    return target


def drop_older(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, 1 or more."""
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first. One that was to be replaced when a crash came still counts."""
    replaced = [path for path in folder.glob(f".step-*{_REPLACED}") if not place_of(path).exists()]
    whole = [path for path in (*folder.glob("step-*"), *replaced) if _step_of(path) >= 0 and (path / _STATE).is_file()]
    return sorted(whole, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    """By its name, whose number is longer from step 1,000,000 on; -1 for what is none."""
    number = place_of(checkpoint).name.removeprefix("step-")
    return int(number) if number.isdecimal() else -1


def place_of(checkpoint: Path) -> Path:
    """Where it belongs: one that was to be replaced has another name."""
    return checkpoint.with_name(checkpoint.name.removeprefix(".").removesuffix(_REPLACED))


def find_checkpoint(folder: Path) -> Found:
    """The newest checkpoint that is whole; raises UserError if there is none, with what is wrong with each."""
    unreadable: dict[Path, str] = {}
    for path in reversed(checkpoints(folder)):
        try:
            tensors, state = _read(path)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            unreadable[path] = " ".join(str(error).split()) or type(error).__name__
        else:
            return Found(path, tensors, state, unreadable)
    what = "; ".join(f"{path.name}: {why}" for path, why in unreadable.items())
    raise UserError(
        "run.resume",
        True,
        f"no checkpoint in {folder}{' can be read' if what else ''}{f' ({what})' if what else ''}",
        "start the run anew: another run.name, without run.resume",
    )


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of the newest checkpoint that is whole; newer ones are put aside, with a warning.

    Raises UserError as `find_checkpoint`.
    """
    # Only here, where no other process can be about to replace one.
    for path in checkpoints(folder):
        if path != place_of(path):
            path.rename(place_of(path))
    found = find_checkpoint(folder)
    for path, why in found.unreadable.items():
        log.warning("checkpoint %s can't be read (%s): going on from %s", path.name, why, found.path.name)
        path.rename(free_name(path.with_name(f"{UNREADABLE}{path.name}")))
    return found.tensors, found.state


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = dict(json.loads((path / _STATE).read_text(encoding="utf-8")))
    # Those of an older amortis have none.
    expected = state.pop(_SHA256, None)
    tensors = load_file(path / _TENSORS)
    if expected is not None and _sha256(path / _TENSORS) != expected:
        raise ValueError(f"{_TENSORS} is not as it was written")
    if "step" not in state:
        raise ValueError(f"{_STATE} holds no step")
    return tensors, state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state, flat."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, slots in state.items() for name, value in slots.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put `optimizer_tensors` back; the optimiser's parameters and groups must be the same."""
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
