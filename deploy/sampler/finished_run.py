"""A finished run, opened to sample from it or to score with it, without Ray or Redis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.engine import LoadedAdapter
from actors.make_sampler import make_sampler
from actors.sampler import TrajectorySampler
from common.adapter_files import files_sha256
from common.chat import split_turn
from common.config import WITHOUT_TRAINING, RunConfig
from common.config_loading import load_run
from common.devices import has_gpu, resolve_devices
from common.errors import UserError
from common.evaluation import measures, spread
from common.metrics import ActorMetrics
from common.places import absolute
from common.reward_calls import load_own_reward
from common.row import BadRow, Row
from common.tasks import SampleRequest, Split, Task, make_task
from common.tasks.base import SampleSets, check_trained, missing_samples, unreadable, with_samples
from common.tasks.template import TemplateTask
from common.tasks.text import TextTask
from common.tokens import HuggingFaceCodec, codec_of
from common.trajectory import Query
from deploy.run.best import Best, best_folder, load_best
from deploy.run.find_model import find_model
from deploy.run.identity import QUERIES, check_models, load_identity, queries_digest
from deploy.run.kept_samples import keep_samples
from deploy.run.progress import of_samples
from deploy.run.summary import wanted_requests
from learner.policy import LoraPolicy


class FinishedRun:
    """A run's folder with its configuration, task and adapter."""

    def __init__(self, folder: Path, overrides: Sequence[str] = (), *, best: bool = False) -> None:
        """`overrides` are settings that are others than in training, as `--model.name` where the model lies elsewhere.

        The adapter is the last one, or the one that was best while it trained. Raises UserError if the folder is no run
        with an adapter, or its model is gone or another one.
        """
        config = absolute(load_run(folder, overrides))
        self.folder, self.adapter_folder = folder, best_folder(folder) if best else folder / "adapter"
        self.best: Best | None = load_best(folder) if best else None
        """What the adapter was best by; None where it is the last one."""
        if best and self.best is None:
            problem = "holds no best adapter: none was measured while it trained"
            raise UserError("best", str(folder), problem, "leave it out, or train with evaluation.every")
        if not (self.adapter_folder / "adapter_config.json").is_file():
            if config.learner.objective in WITHOUT_TRAINING:
                problem = f"has trained nothing, by learner.objective: {config.learner.objective}"
                remedy = "what it drew lies in it, in files ending in samples.jsonl"
            else:
                problem, remedy = "holds no adapter yet", "let the run finish, or stop it with Ctrl-C"
            raise UserError("RUN", str(folder), problem, remedy)
        self.model = find_model(config.model.name)
        config = config.model_copy(update={"model": config.model.model_copy(update={"name": self.model})})
        check_models(config, folder)
        self.config: RunConfig = resolve_devices(_chosen_anew(config, overrides))
        self.codec: HuggingFaceCodec = codec_of(self.config.model)
        self.task: Task[Any] = make_task(
            self.config.task, self.codec, self.config.actor.max_model_len, self.config.final_temperature
        )

    def query(
        self,
        prompt: str | None = None,
        *,
        row: Mapping[str, Any] | None = None,
        target: str | None = None,
        targets: Sequence[str] = (),
        setting: str = "--prompt",
    ) -> Query:
        """What to sample for: a prompt of one's own, or a row of data; else the task's first test query.

        For a prompt no data is read; for a row it is where training rows stand before it, with task.policy_shots or
        task.reference_shots.

        `target` is the text Y behind the rationale, in place of the row's. With `targets` the first is the query's
        target and the others are its alternatives, whose p(Y|XZ⊤) is scored as well. Raises UserError naming `setting`.
        """
        if prompt is None and row is None:
            query = self.task.queries("test")[0]
        elif row is None:
            query = self._of_prompt(prompt or "", setting)
        elif prompt is None:
            query = self._of_row(row)
        else:
            raise UserError(setting, prompt, "is given beside a row, which has its own prompt", "give one of the two")
        if isinstance(targets, str):
            raise UserError("targets", targets, "is one text", "give a list of texts, or target")
        if target is not None and targets:
            raise UserError("target", target, "is given beside targets", "give one of the two")
        asked = [target] if target is not None else list(targets)
        if len(set(asked)) < len(asked):
            raise UserError("targets", asked, "holds a text twice", "name each once")
        if asked:
            own, *others = (self._target_ids(text, "targets" if targets else "target") for text in asked)
            if not targets:
                others = [self._target_ids(text, "target") for text in self._other_choices(asked[0])]
            if self.task.calibrated_reward and not others:
                problem = "is none of task.choices, by which the reward calibrates it"
                raise UserError("target", asked[0], problem, "give one of them, or several as targets")
            query = query.model_copy(update={"target_ids": own, "alternatives": tuple(others)})
        self._check_length(query, setting, prompt)
        return query

    def target_of(self, query: Query) -> str | None:
        """The text whose likelihood is part of the query's reward; None where there is none, as for a prompt alone."""
        return self.codec.decode(query.target_ids) if len(query.target_ids) else None

    def leaves_target_out(self, query: Query) -> bool:
        """Whether rows have a target, whose likelihood the run was trained on, and this query none."""
        return getattr(self.task.config, "target", None) is not None and not len(query.target_ids)

    def leaves_reference_prompt_out(self, query: Query) -> bool:
        """Whether the reward reads another prompt of rows than the policy does, and of this query the same."""
        if not isinstance(self.task, TemplateTask) or len(query.reference_ids):
            return False
        return bool(self.task.config.reference_prompt or self.task.config.reference_shots)

    def query_of_ids(self, ids: Sequence[int], setting: str) -> Query:
        """What to sample for, as the tokens that the model is to read. Raises UserError naming `setting`."""
        if not ids:
            raise UserError(setting, list(ids), "holds no token", "give some")
        if min(ids) < 0:
            raise UserError(setting, min(ids), "is no token", f"give 0 to {self.codec.vocab_size - 1}")
        if max(ids) >= self.codec.vocab_size:
            problem = f"is beyond the model's vocabulary of {self.codec.vocab_size}"
            raise UserError(setting, max(ids), problem, "encode with the tokenizer of the run's model")
        query = Query(
            task=self.task.name,
            prompt_ids=np.asarray(ids, np.int32),
            content_free_ids=self.task.content_free_ids,
        )
        self._check_length(query, setting, None)
        return query

    def query_of_messages(self, messages: Sequence[Any], setting: str) -> Query:
        """What to sample for, as a conversation that the assistant goes on with. Raises UserError naming `setting`."""
        if self.task.chat is None:
            problem = "is a conversation, and the run was trained on plain text"
            raise UserError(setting, None, problem, "ask for a completion of a prompt, or train with task.chat")
        try:
            conversation, turn = split_turn(messages)
            if turn is not None:
                raise BadRow("the last message is the assistant's, who is to speak next")
            ids = self.task.chat.ids(conversation)
        except BadRow as error:
            raise UserError(setting, None, str(error), "give messages of role and content") from error
        return self.query_of_ids(ids, setting)

    def _of_prompt(self, prompt: str, setting: str) -> Query:
        if not self.task.takes_prompts:
            problem = f"is none of the problems of the task {self.task.name}, whose rewards it knows alone"
            raise UserError(setting, prompt, problem, "leave it out: then the task's first test query is taken")
        try:
            ids = self.task.prompt_ids(prompt)
        except BadRow as error:
            raise UserError(setting, prompt, str(error), "leave it out") from error
        if not ids:
            raise UserError(setting, prompt, "is empty", "give some text")
        reason = unreadable(self.codec, ids)
        if reason is not None:
            raise UserError(setting, prompt, reason, "leave it out")
        return Query(task=self.task.name, prompt_ids=ids, content_free_ids=self.task.content_free_ids)

    def _of_row(self, row: Mapping[str, Any]) -> Query:
        if not isinstance(self.task, TextTask):
            problem = f"is nothing that the task {self.task.name} makes queries from"
            raise UserError("row", dict(row), problem, "give a prompt, or a run of a task on rows")
        try:
            return self.task.checked_example(Row(1, row, unit="row")).query
        except BadRow as error:
            raise UserError("row", dict(row), str(error), "give the columns that the run's task names") from error

    def _other_choices(self, target: str) -> list[str]:
        """What the task holds a target against, where it is one of its choices."""
        choices = self.task.config.choices if isinstance(self.task, TemplateTask) else []
        return [choice for choice in choices if choice != target] if target in choices else []

    def _target_ids(self, text: str, setting: str) -> NDArray[np.int32]:
        ids = self.codec.encode(text)
        if not ids:
            raise UserError(setting, text, "is empty", "give the text that follows the rationale, its space included")
        reason = unreadable(self.codec, ids)
        if reason is not None:
            raise UserError(setting, text, reason, "leave it out")
        return np.asarray(ids, np.int32)

    def _check_length(self, query: Query, setting: str, prompt: str | None) -> None:
        limit = self.config.actor.max_model_len
        needed = query.tokens_needed(self.task.action_space.max_len)
        if needed > limit:
            problem = f"takes {needed} tokens with its rationale, the engine {limit} (actor.max_model_len)"
            raise UserError(setting, prompt, problem, f"shorten it by {needed - limit} tokens")

    def policy(self) -> LoraPolicy:
        """The trained policy with exact log-probabilities."""
        import torch

        section, space = self.config.learner, self.task.action_space
        return LoraPolicy.trained(
            self.model, self.adapter_folder, space, dtype=section.dtype, device=torch.device(section.device)
        )

    def figures(
        self,
        policy: LoraPolicy | None = None,
        start: Callable[[], tuple[TrajectorySampler, LoadedAdapter]] | None = None,
        say: Callable[[str], None] = lambda text: None,
        *,
        corrected: bool = True,
        keep: Path | None = None,
    ) -> dict[str, Any]:
        """The evaluation anew: exact figures, then those of samples, as far as the run's configuration wants them.

        `policy` and what `start` gives are used where they are there already; `say` is told how far the drawing is.
        `corrected` draws as many samples as figures that are corrected by weights take, which at a run's end are left
        out. `keep` is the file to write the samples to.
        """
        self.check_held_out()
        requests = wanted_requests(self.task, self.config)
        if requests and corrected:
            requests += self.task.correction_requests()
        if requests:
            self.check_own_reward()
        found: dict[str, Any] = dict(self.task.evaluate_policy(policy or self.policy()))
        if requests:
            sampler, adapter = start() if start is not None else self.sampler(self.config.run.seed)
            config = self.config
            limit, most, weights = config.actor.max_in_flight, config.run.evaluate_training, config.reward_weights

            def drawn(wanted: Sequence[SampleRequest], queries: Sequence[Query], where: str = "") -> SampleSets:
                found = {}
                for request in wanted:
                    told = of_samples(say, f"{request.label}{where}")
                    found[request.label] = sampler.collect(queries, request, adapter, limit, told)
                return found

            samples: dict[Split, SampleSets] = {"test": drawn(requests, self.task.queries("test"))}
            if most:
                trained = [request for request in wanted_requests(self.task, config) if request.adapter]
                queries = spread(self.task.queries("train"), most)
                samples["train"] = drawn(trained, queries, " on training queries")
            if keep is not None:
                keep_samples(keep, self.config, self.task, samples)
            found |= self.task.evaluate_samples(check_trained(samples["test"]), weights)
            found |= missing_samples(requests, samples["test"])
            on_training = with_samples(samples.get("train", {}))
            if on_training:
                found["training"] = measures(self.task.evaluate_samples(on_training, weights))
        return found

    def check_held_out(self) -> None:
        """Raises UserError where test queries are held out of other rows than in training: some were trained on."""
        config = self.task.config
        if getattr(config, "test_path", None) is not None or not hasattr(config, "test_size"):
            return
        kept = load_identity(self.folder).get(QUERIES)
        if kept is not None and kept != queries_digest(self.task):
            problem = "with what limits and splits it holds out other test queries than in training, some trained on"
            remedy = "leave these settings and the file as they were, or give test rows by --task.test_path"
            raise UserError(QUERIES, getattr(config, "train_path", None), problem, remedy)

    def check_own_reward(self) -> None:
        """Raises UserError if a reward function of the user's own can't be loaded here and now."""
        if self.task.own_reward is not None:
            load_own_reward(self.task.own_reward)

    def seed(self, given: int | None) -> int:
        """Of draws: the one that is given, or the run's. Raises UserError."""
        if given is not None and given < 0:
            raise UserError("seed", given, "is below 0", "give 0 or more")
        return self.config.run.seed if given is None else given

    def sampler(self, seed: int = 0, metrics: ActorMetrics | None = None) -> tuple[TrajectorySampler, LoadedAdapter]:
        """A sampler with a vLLM engine of its own, and the trained adapter to give it; raises UserError, for what can
        be known before an engine is started."""
        self.check_own_reward()
        sampler = make_sampler(self.config, self.task, seed, metrics=metrics)
        files = {path.name: path.read_bytes() for path in self.adapter_folder.iterdir()}
        return sampler, sampler.policy.load_adapter(1, files_sha256(files), self.adapter_folder.resolve())


def _chosen_anew(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Leave what follows from the machine and the precision to the machine that the run is opened on, unless it is
    among the settings that are given: GPUs too, where there are none any more."""

    def is_given(name: str) -> bool:
        return any(text.lstrip("-").partition("=")[0] == name for text in overrides)

    anew: dict[str, Any] = {"actor.adapters": "auto", "reference.scorer": "auto"}
    if not has_gpu():
        if config.actor.num_gpus:
            anew |= {"actor.num_gpus": None, "actor.dtype": "auto", "actor.tensor_parallel_size": 1}
        if config.learner.device == "cuda":
            anew["learner.device"] = "auto"
    sections: dict[str, Any] = {}
    for name, value in anew.items():
        section, _, field = name.partition(".")
        if not is_given(name):
            sections[section] = sections.get(section, getattr(config, section)).model_copy(update={field: value})
    return config.model_copy(update=sections)
