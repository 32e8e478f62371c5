"""Runs as they lie on the disk, made without training anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from common.config import RunConfig
from common.config_loading import load_config, load_run, save_resolved
from common.tasks import make_task
from common.tokens import codec_of
from deploy.run.checks import prepare
from deploy.run.identity import keep_identity
from deploy.run.run_folder import claimed
from learner.checkpoint import save_checkpoint
from learner.policy import LoraPolicy


def config_of(folder: Path, model: Path, *overrides: str, task: str = "task: {name: rng}") -> RunConfig:
    """A run's configuration as the command line gives it."""
    path = folder / "given.yaml"
    path.write_text(f"{task}\nactor: {{max_model_len: 64}}\n", encoding="utf-8")
    return load_config(path, ["--model.name", str(model), "--run.folder", str(folder / "runs"), *overrides])


def make_run(config: RunConfig) -> Path:
    """What a run of two checkpoints leaves in its folder, adapter and server's data left out."""
    with claimed(prepare(config)) as named:
        folder = named.run_folder
        save_resolved(named, folder / "config.yaml")
        keep_identity(named, make_task(named.task, codec_of(named.model), named.actor.max_model_len))
        for step in (5, 10):
            tensors = {"adapter.x": torch.full((3,), float(step)), "rng": torch.get_rng_state()}
            save_checkpoint(folder / "checkpoints", step, tensors, {"version": step}, keep=2)
        for name in ("summary", "learner_summary", "evaluation_after", "evaluation_samples"):
            (folder / f"{name}.json").write_text(json.dumps({"of": "the good run"}), encoding="utf-8")
        (folder / "redis").mkdir()
    return folder


def put_adapter(folder: Path, scale: float) -> None:
    """An adapter as training leaves it, of a strength that is chosen; 0 is an untrained one."""
    config = load_run(folder)
    assert config.model.name is not None
    space = make_task(config.task, codec_of(config.model), config.actor.max_model_len).action_space
    policy = LoraPolicy.load(config.model.name, config.model.lora, space, dtype="float32", device=torch.device("cpu"))
    torch.manual_seed(0)
    for name, weight in policy.trainable().items():
        if "lora_B" in name:
            weight.data.normal_(0, scale)
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    policy.save_adapter(folder / "adapter")


def contents(folder: Path) -> dict[str, Any]:
    """Every file's bytes, locks left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", ".learner.lock")
    }


def other_weights(model: Path, folder: Path) -> Path:
    """A model of equal shapes, one weight of which is another."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] += 1.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
