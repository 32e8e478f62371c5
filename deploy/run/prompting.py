"""The untrained model under a task's prompt and mask: what prompting alone gives, measured as a trained run is."""

from __future__ import annotations

import time
from typing import Any

import torch

from actors.make_sampler import make_sampler
from common.config import RunConfig
from common.config_loading import save_resolved
from common.json_text import dumps
from common.tasks import make_task
from common.tasks.base import with_samples
from common.tokens import codec_of
from deploy.run.summary import write_summary
from learner.policy import LoraPolicy


def run_prompting(config: RunConfig) -> dict[str, Any]:
    """A run without training: exact figures, then those of samples from the base model; its summary."""
    started, folder = time.monotonic(), config.run_folder
    assert config.model.name is not None
    save_resolved(config, folder / "config.yaml")
    task = make_task(config.task, codec_of(config.model), config.actor.max_model_len, config.final_temperature)
    space, section = task.action_space, config.learner
    # A fresh adapter changes nothing.
    lora, device = config.model.lora, torch.device(section.device)
    policy = LoraPolicy.load(config.model.name, lora, space, dtype=section.dtype, device=device)
    exact = {"metrics": task.evaluate_policy(policy), "distribution": task.distribution(policy)}
    for when in ("before", "after"):
        (folder / f"evaluation_{when}.json").write_text(dumps(exact))
    del policy
    requests = [request for request in task.sample_requests() if not request.adapter]
    if requests:
        sampler, limit = make_sampler(config, task, config.run.seed), config.actor.max_in_flight
        queries = task.queries("test")
        samples = {request.label: sampler.collect(queries, request, None, limit) for request in requests}
        found = task.evaluate_samples(with_samples(samples), config.reward_weights)
        (folder / "evaluation_samples.json").write_text(dumps(found, indent=2))
    return write_summary(
        config, folder, {"trajectories_pushed": 0}, time.monotonic() - started, None, interrupted=False
    )
