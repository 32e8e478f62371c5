"""The untrained model under a task's prompt and mask: what prompting alone gives, measured as a trained run is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from actors.make_sampler import make_sampler
from common.config import RunConfig
from common.config_loading import save_resolved
from common.evaluation import spread
from common.json_text import dumps
from common.tasks import SampleRequest, make_task
from common.tasks.base import with_samples
from common.tokens import codec_of
from common.trajectory import Query
from deploy.run.diagnosis import UNFINISHED, Diagnose, Subject, diagnosed, is_wanted
from deploy.run.kept_samples import SAMPLES, keep_samples
from deploy.run.progress import of_samples
from deploy.run.summary import write_summary
from learner.policy import LoraPolicy


def run_prompting(
    config: RunConfig, diagnose: Diagnose | None = None, say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """A run without training: exact figures, then those of samples from the base model; its summary.

    `say` hears now and then how far it is.
    """
    started, folder = time.monotonic(), config.run_folder
    assert config.model.name is not None
    save_resolved(config, folder / "config.yaml")
    task = make_task(config.task, codec_of(config.model), config.actor.max_model_len, config.final_temperature)
    space, section = task.action_space, config.learner
    lora, device = config.model.lora, torch.device(section.device)

    def untrained() -> LoraPolicy:
        # A fresh adapter changes nothing.
        assert config.model.name is not None
        return LoraPolicy.load(config.model.name, lora, space, dtype=section.dtype, device=device)

    policy = untrained()
    exact = {"metrics": task.evaluate_policy(policy), "distribution": task.distribution(policy)}
    for when in ("before", "after"):
        (folder / f"evaluation_{when}.json").write_text(dumps(exact))
    del policy
    of_task = task.sample_requests() if config.run.evaluate_samples else []
    requests = [request for request in of_task if not request.adapter]
    found: dict[str, Any] = {"trajectories_pushed": 0}
    if requests:
        sampler, limit = make_sampler(config, task, config.run.seed), config.actor.max_in_flight

        def collect(wanted: Sequence[SampleRequest], queries: Sequence[Query]) -> dict[str, Any]:
            return {
                request.label: sampler.collect(queries, request, None, limit, of_samples(say, request.label))
                for request in wanted
            }

        samples = collect(requests, task.queries("test"))
        keep_samples(folder / SAMPLES, config, task, {"test": samples})
        figures = task.evaluate_samples(with_samples(samples), config.reward_weights)
        (folder / "evaluation_samples.json").write_text(dumps(figures, indent=2))
        few = spread(task.queries("test"), config.diagnose.queries)
        subject = Subject(folder, config, task, None, few, partial(collect, queries=few), untrained, None)
        if diagnose is not None and is_wanted(config):
            so_far = {**found, **UNFINISHED}
            write_summary(config, folder, so_far, time.monotonic() - started, None, interrupted=False, plots=False)
        found |= diagnosed(config, diagnose, lambda: subject)
    return write_summary(config, folder, found, time.monotonic() - started, None, interrupted=False)
