"""Everything that can be found wrong before minutes of work are spent, found within seconds."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np

from buffer.connection import connect_impatiently
from buffer.embedded import find_redis_server
from common.action_space import ActionSpace
from common.adapter_files import check_adapter
from common.config import FORWARD_LOOKING, WITHOUT_TRAINING, RunConfig
from common.devices import resolve_devices
from common.errors import UserError
from common.evaluation import evaluated_queries
from common.grammar import COMPILE_LIMIT_S, compile_limit
from common.places import Kind, absolute, is_folder, looks_like_path, places
from common.reward_calls import Subject, check_own_reward
from common.seeds import make_seed_jobs, usable_rationales
from common.tasks import Task, make_task
from common.tasks.base import unreadable
from common.tokens import codec_of
from deploy.run.effect_checks import check_effects
from deploy.run.find_model import check_hub, find_model
from deploy.run.inference_checks import check_inference
from deploy.run.model_check import ModelCheck
from deploy.run.own_task_check import check_log_constraint, check_own_task, own_errors
from deploy.run.ray_needs import check_ray
from deploy.run.resuming import adopted, check_resume
from deploy.run.run_folder import Say, check_folder, check_name_in_redis, say
from learner.tracking import check_tracking


def prepare(config: RunConfig, say: Say = say) -> RunConfig:
    """The resolved configuration of a run that can start; raises UserError for the first thing that can't be used.

    Nothing is written, and a run without a name has none yet: `deploy.run.run_folder.claimed` makes its folder. What a
    user should know besides, of the data for example, is told to `say`.
    """
    check_tracking(config.tracking)
    model_name = config.model.name
    # The learner, the actors and later commands may have another working folder.
    config = absolute(config)
    check_folder(config, say)
    if config.run.resume:
        config = adopted(config)
    if config.ray.address is None and config.learner.objective not in WITHOUT_TRAINING:
        check_ray()
    _check_ports(config)
    _check_redis(config)
    check_name_in_redis(config, say)
    _check_models(config)
    config = config.model_copy(update={"model": config.model.model_copy(update={"name": find_model(model_name)})})
    assert config.model.name is not None
    model = ModelCheck.of(config.model.name)
    with compile_limit(COMPILE_LIMIT_S), own_errors(config.task):
        task, n_seeds = _check_task(config, model, say)
    if config.learner.objective == "sft":
        # All of them are waited for, but for those that are set aside, and nothing else; each is as likely as another
        # unless it is said otherwise.
        alike = {"fresh": 0.0, "replay_priority": "uniform", "near_duplicate_tolerance": 0.0}
        unsaid = {name: value for name, value in alike.items() if name not in config.buffer.model_fields_set}
        buffer = config.buffer.model_copy(update={**unsaid, "min_size": n_seeds})
        config = config.model_copy(update={"buffer": buffer})
    lora = config.model.lora
    model.check_target_modules(lora.target_modules)
    model.check_tensor_parallel(config.actor.tensor_parallel_size)
    if lora.start_from is not None:
        check_adapter("model.lora.start_from", lora.start_from, lora, model.name, model.linear_layers, same_rank=True)
    if config.reference.adapter is not None:
        given = config.reference.adapter
        check_adapter("reference.adapter", given, lora, model.name, model.linear_layers, same_rank=False)
    config = resolve_devices(config, model.n_parameters)
    _check_gpus(config)
    if config.run.resume:
        check_resume(config, task)
    return config


def _check_models(config: RunConfig) -> None:
    """Those besides the run's own: most are loaded for the evaluation, when all else is done."""
    for name, kind, found in places(config):
        text = str(found)
        if kind is not Kind.MODEL or name == "model.name" or is_folder(text):
            continue
        if looks_like_path(text):
            raise UserError(name, text, "no such folder", "give an existing folder or a Hugging Face id")
        # Sentence Transformers' own models go without their owner.
        owner = "sentence-transformers/" if name.endswith("embedding_model") and "/" not in text else ""
        check_hub(name, f"{owner}{text}")


def _check_ports(config: RunConfig) -> None:
    section = config.metrics
    if not (section.enabled and section.port):
        return
    for port in range(section.port, section.port + 2 + config.actor.least_count):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((section.host, port))
            except OSError as error:
                raise UserError(
                    "metrics.port",
                    section.port,
                    f"port {port} can't be listened on ({error.strerror})",
                    "choose another, or 0 for free ones",
                ) from error


def _check_redis(config: RunConfig) -> None:
    if config.redis.url is not None:
        connect_impatiently(config.redis).close()
        return
    if config.ray.address is not None:
        raise UserError("redis.url", None, "actors on a cluster can't reach an embedded server", "set redis.url")
    if find_redis_server() is None:
        raise UserError("redis.url", None, "no redis-server binary was found", "run `make setup`, or set redis.url")


def _check_task(config: RunConfig, model: ModelCheck, say: Say) -> tuple[Task[Any], int]:
    """Make the task's queries, mask and seeds, and hold them against the model's and the engine's limits.

    Returns the task, and how many distinct seeds there are at most.
    """
    assert config.model.name is not None
    task = make_task(config.task, codec_of(config.model), config.actor.max_model_len)
    if config.task.module is not None:
        check_own_task(task)
        written = [_written(task.action_space, random.Random(0), shortest=shortest) for shortest in (True, False)]
        check_log_constraint(task, task.queries("train")[0], written)
    space = task.action_space
    # Made here, so that a user's tool that can't be imported shows at once.
    _ = task.tool
    _check_own_reward(task, every_state=config.learner.objective in FORWARD_LOOKING)
    for note in task.data_notes():
        say(note)
    for setting, every, n in (
        ("evaluation.every", config.evaluation.every, config.evaluation.queries),
        ("diagnose.every", config.diagnose.every, config.diagnose.queries),
    ):
        queries, trained_on = evaluated_queries(task, n) if every else ([], 0)
        if trained_on:
            say(f"{trained_on} of the {len(queries)} queries that {setting} looks at are trained on as well")
    needed = max(query.tokens_needed(space.max_len) for query in (*task.queries("train"), *task.queries("test")))
    if needed > config.actor.max_model_len:
        raise UserError(
            "actor.max_model_len",
            config.actor.max_model_len,
            f"the longest prompt, rationale and target take {needed} tokens",
            f"raise it to {needed}",
        )
    for query in (*task.queries("train"), *task.queries("test")):
        for what, ids in query.texts():
            reason = unreadable(task.codec, ids)
            if reason is not None:
                raise UserError("task.name", config.task.name, f"{what}: {reason}", "choose another text or model")
    check_inference(config, task)
    if not config.run.resume:
        check_effects(config, task, say)
    learner = config.learner
    can_be_empty = bool(space.stoppable(np.zeros(0, np.int32))[0])
    if not can_be_empty and learner.objective in ("subtb", "db") and learner.trajectories_per_query < 2:
        where = "until a rationale may end, by task.min_len or a grammar"
        raise UserError(
            "learner.trajectories_per_query",
            learner.trajectories_per_query,
            f"{learner.objective} compares trajectories of a query {where}",
            "give 2 or more",
        )
    jobs = make_seed_jobs(config.seeds, task)
    if config.seeds.data:
        _, unusable = usable_rationales(task.rationales(), task)
        if unusable is not None:
            say(f"no seeds are {unusable}")
    for job in jobs:
        if job.hint_ids is not None and len(job.hint_ids) + space.max_len + 2 > config.actor.max_model_len:
            raise UserError(
                "actor.max_model_len",
                config.actor.max_model_len,
                f"the longest hint and rationale take {len(job.hint_ids) + space.max_len + 2} tokens",
                "raise it, or shorten seeds.hint",
            )
    limit = model.context_length
    if limit is not None and config.actor.max_model_len > limit:
        raise UserError(
            "actor.max_model_len",
            config.actor.max_model_len,
            f"the model's context has {limit} tokens",
            f"lower it to {limit}",
        )
    given = {(job.query_id, job.action_ids) for job in jobs if job.action_ids is not None}
    return task, max(1, len(given) + sum(job.n for job in jobs if job.hint_ids is not None))


def _check_own_reward(task: Task[Any], *, every_state: bool) -> None:
    """Load a reward function of the user's own and try it on a training query, as it fails in seconds here; with
    `every_state` on the unfinished texts too that it will be asked about."""
    section, query = task.own_reward, task.queries("train")[0]
    if section is None:
        return
    codec, generator = task.codec, random.Random(0)
    given = task.rationales().get(query.id, [])[:1]
    written = [*given, *(_written(task.action_space, generator, shortest=shortest) for shortest in (True, False))]
    subject = Subject(query.id, codec.decode_prompt(query.prompt_ids), query.row)

    def texts(ids: Sequence[int]) -> list[str]:
        ends = [len(ids)]
        if every_state:
            ends = np.flatnonzero(task.action_space.stoppable(np.asarray(ids, np.int32))).tolist()
        return [codec.decode(ids[:end]) for end in ends]

    check_own_reward(section, subject, [texts(ids) for ids in written])


def _written(space: ActionSpace, generator: random.Random, *, shortest: bool) -> list[int]:
    """Some rationale that the policy can write, of random tokens."""
    ids: list[int] = []
    while True:
        allowed = space.allowed_array[space.mask(ids)].tolist()
        stops = space.terminator_id in allowed
        others = [token for token in allowed if token != space.terminator_id]
        if not others or (stops and shortest and ids):
            return ids
        ids.append(generator.choice(others))


def _check_gpus(config: RunConfig) -> None:
    """The GPUs of this machine against what a learner and an actor need of them at once."""
    import torch

    n, actor = config.learner.num_processes, config.actor
    found = torch.cuda.device_count()
    if config.learner.device == "cuda" and not found and config.learner.objective not in WITHOUT_TRAINING:
        raise UserError("learner.device", "cuda", "torch sees no GPU on this machine", "leave it out, or give cpu")
    if config.learner.device == "cuda" and n > max(1, found):
        raise UserError(
            "learner.num_processes", n, f"each needs a GPU, and this machine has {found}", f"lower it to {found}"
        )
    needed = actor.num_gpus or 0.0
    if config.ray.address is None and needed > found:
        name = "num_gpus" if actor.tensor_parallel_size == 1 else "tensor_parallel_size"
        raise UserError(
            f"actor.{name}",
            getattr(actor, name),
            f"an actor needs {needed:g} GPUs on one node, and this machine has {found}",
            f"{f'lower it to {found}' if found else 'leave it out'}, or set ray.address to a cluster with such nodes",
        )
