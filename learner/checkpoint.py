"""Checkpoints: adapter, optimiser, log Z, random state and step, so that a resumed run continues the same curve.

Tensors are kept as safetensors and the rest as JSON: nothing is ever unpickled.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import UserError

_STATE = "state.json"
_TENSORS = "tensors.safetensors"


def save_checkpoint(folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Write `folder`/step-N completely or not at all, then drop all but the newest `keep`."""
    target, draft = folder / f"step-{step:06d}", folder / f".step-{step:06d}.draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, draft / _TENSORS)
    (draft / _STATE).write_text(json.dumps({**state, "step": step}))
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / _STATE).is_file())


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The newest checkpoint's tensors and state; raises UserError if there is none."""
    found = checkpoints(folder)
    if not found:
        raise UserError("run.resume", True, f"no checkpoint in {folder}", "start the run anew without run.resume")
    return load_file(found[-1] / _TENSORS), json.loads((found[-1] / _STATE).read_text())


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
