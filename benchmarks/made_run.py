"""A run of the default model as training leaves it, its adapter untrained, for what is measured on finished runs."""

from __future__ import annotations

from pathlib import Path

import torch

from common.config_loading import load_config, save_resolved
from common.default_model import ensure_default_model
from common.tasks import make_task
from common.tokens import codec_of
from deploy.run.checks import prepare
from deploy.run.identity import keep_identity
from deploy.run.run_folder import claimed
from deploy.sampler.finished_run import FinishedRun
from learner.policy import LoraPolicy


def untrained_run(given: Path, folder: Path, name: str) -> FinishedRun:
    """The run `name` in `folder`, of a configuration's settings."""
    model = str(ensure_default_model())
    options = ["--model.name", model, "--run.folder", str(folder), "--run.name", name]
    with claimed(prepare(load_config(given, options))) as config:
        save_resolved(config, config.run_folder / "config.yaml")
        made = make_task(config.task, codec_of(config.model), config.actor.max_model_len)
        keep_identity(config, made)
        lora, device = config.model.lora, torch.device("cpu")
        policy = LoraPolicy.load(model, lora, made.action_space, dtype="float32", device=device)
        policy.save_adapter(config.run_folder / "adapter")
        return FinishedRun(config.run_folder)
