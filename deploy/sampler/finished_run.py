"""A finished run, opened to sample from it or to score with it, without Ray or Redis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.engine import LoadedAdapter
from actors.make_sampler import make_sampler
from actors.sampler import TrajectorySampler
from common.adapter_files import files_sha256
from common.config import RunConfig
from common.config_loading import load_run
from common.devices import resolve_devices
from common.errors import UserError
from common.places import absolute
from common.tasks import Task, make_task
from common.tasks.base import unreadable
from common.tokens import HuggingFaceCodec, codec_of
from common.trajectory import Query
from deploy.run.find_model import find_model
from deploy.run.identity import check_models
from deploy.run.summary import wanted_requests
from learner.policy import LoraPolicy, load_base_model


class FinishedRun:
    """A run's folder with its configuration, task and adapter."""

    def __init__(self, folder: Path, overrides: Sequence[str] = ()) -> None:
        """`overrides` are settings that are others than in training, as `--model.name` where the model lies elsewhere.

        Raises UserError if the folder is no run with an adapter, or its model is gone or another one.
        """
        config = absolute(load_run(folder, overrides))
        self.folder, self.adapter_folder = folder, folder / "adapter"
        if not (self.adapter_folder / "adapter_config.json").is_file():
            raise UserError("RUN", str(folder), "holds no adapter yet", "let the run finish, or stop it with Ctrl-C")
        self.model = find_model(config.model.name)
        config = config.model_copy(update={"model": config.model.model_copy(update={"name": self.model})})
        check_models(config, folder)
        self.config: RunConfig = resolve_devices(config)
        self.codec: HuggingFaceCodec = codec_of(self.config.model)
        self.task: Task[Any] = make_task(self.config.task, self.codec, self.config.actor.max_model_len)

    def query(self, prompt: str | None) -> Query:
        """What to sample for: a prompt of one's own, for which no data is read, or the task's first test query.

        Raises UserError naming --prompt.
        """
        if prompt is None:
            return self.task.queries("test")[0]
        ids = self.codec.encode_prompt(prompt)
        if not ids:
            raise UserError("--prompt", prompt, "is empty", "give some text")
        reason = unreadable(self.codec, ids)
        if reason is not None:
            raise UserError("--prompt", prompt, reason, "leave it out")
        query = Query(task=self.task.name, prompt_ids=ids)
        limit = self.config.actor.max_model_len
        needed = query.tokens_needed(self.task.action_space.max_len)
        if needed > limit:
            problem = f"takes {needed} tokens with its rationale, the engine {limit} (actor.max_model_len)"
            raise UserError("--prompt", prompt, problem, f"shorten it by {needed - limit} tokens")
        return query

    def policy(self) -> LoraPolicy:
        """The trained policy with exact log-probabilities."""
        import torch
        from peft import PeftModel

        section = self.config.learner
        model = PeftModel.from_pretrained(load_base_model(self.model, section.dtype), str(self.adapter_folder))
        return LoraPolicy(model, self.task.action_space, torch.device(section.device))

    def figures(self) -> dict[str, Any]:
        """The evaluation anew: exact figures, then those of samples, as far as the run's configuration wants them."""
        found: dict[str, Any] = dict(self.task.evaluate_policy(self.policy()))
        requests = wanted_requests(self.task, self.config)
        if requests:
            sampler, adapter = self.sampler(self.config.run.seed)
            queries, limit = self.task.queries("test"), self.config.actor.max_in_flight
            samples = {request.label: sampler.collect(queries, request, adapter, limit) for request in requests}
            found.update(self.task.evaluate_samples(samples, self.config.reward_weights))
        return found

    def sampler(self, seed: int = 0) -> tuple[TrajectorySampler, LoadedAdapter]:
        """A sampler with a vLLM engine of its own, and the trained adapter to give it."""
        sampler = make_sampler(self.config, self.task, seed)
        files = {path.name: path.read_bytes() for path in self.adapter_folder.iterdir()}
        return sampler, sampler.policy.load_adapter(1, files_sha256(files), self.adapter_folder.resolve())
