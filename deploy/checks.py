"""Everything that can be found wrong before minutes of work are spent, found within seconds."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

from buffer.connection import connect
from buffer.embedded import find_redis_server, running_server
from common.adapter_files import check_adapter
from common.config import RunConfig
from common.devices import resolve_devices
from common.errors import UserError
from common.rows import HUB
from common.seeds import make_seed_jobs
from common.tasks import make_task
from common.tasks.base import unreadable
from common.tokens import codec_of
from deploy.model_check import ModelCheck
from learner.tracking import check_tracking

HUB_LIMIT_S = 5.0
QUANTIZED = ("quantization_config", "compression_config", "quantization")
"""Keys under which a model's config.json says how its weights were quantized: transformers', and MLX' last."""


def prepare(config: RunConfig) -> RunConfig:
    """The resolved configuration of a run that can start; raises UserError for the first thing that can't be used."""
    check_tracking(config.tracking)
    config = _named(config)
    _check_folder(config)
    _check_ports(config)
    _check_redis(config)
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"name": find_model(config.model.name)})}
    )
    assert config.model.name is not None
    model = ModelCheck.of(config.model.name)
    n_seeds = _check_task(config, model)
    if config.learner.objective == "sft":
        # All of them are waited for, and nothing else.
        config = config.model_copy(update={"buffer": config.buffer.model_copy(update={"min_size": n_seeds})})
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
    return config


def find_model(name: str | None) -> str:
    """A local folder or hub id that exists as far as can be told without loading it; the default model for None."""
    if name is None:
        from common.default_model import default_model_path, verify_default_model

        path = default_model_path()
        problems = verify_default_model(path)
        if problems:
            raise UserError("model.name", None, f"the default model is not ready ({problems[0]})", "run `make setup`")
        return str(path)
    path = Path(name).expanduser()
    if path.is_dir():
        for pattern in ("config.json", "*.safetensors"):
            if not any(path.glob(pattern)):
                raise UserError("model.name", name, f"the folder has no {pattern}", "give a Hugging Face model folder")
        _check_not_quantized(name, path)
        return str(path.resolve())
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_like_path:
        raise UserError("model.name", name, "no such folder", "give an existing folder or a Hugging Face id")
    _check_hub(name)
    _check_not_quantized(name, None)
    return name


def _check_not_quantized(name: str, folder: Path | None) -> None:
    """Refuse weights of few bits: the reward would be another model's than the one they were made from."""
    if folder is None:
        from transformers import PretrainedConfig

        found, _ = PretrainedConfig.get_config_dict(name)
    else:
        found = _read_config(folder / "config.json", name)
        # What GPTQ and AWQ wrote before there was a place for it in config.json.
        for old in ("quantize_config.json", "quant_config.json"):
            if (folder / old).is_file():
                found = {"quantization_config": {**_read_config(folder / old, name), "quant_method": old}, **found}
    for part in (found, found.get("text_config") or {}):
        settings = next((part[key] for key in QUANTIZED if part.get(key)), None)
        if settings is not None:
            raise UserError(
                "model.name",
                name,
                f"its weights are quantized ({_quantization(settings)}), and so its probabilities, which the reward is "
                "made of, are not those of the model it was made from",
                "give the model that is not quantized; to save the learner's memory set learner.dtype: bfloat16",
            )


def _quantization(settings: Any) -> str:
    """What a config says of its quantization, e.g. "bitsandbytes, 4 bits"."""
    if not isinstance(settings, dict):
        return "says its config.json"
    bits = settings.get("bits") or settings.get("w_bit")
    bits = bits or next((n for n in (4, 8) if settings.get(f"load_in_{n}bit")), None)
    said = [str(settings.get("quant_method", "")), f"{bits} bits" if bits else ""]
    return ", ".join(filter(None, said)) or "says its config.json"


def _read_config(path: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "give a complete Hugging Face model folder"
        raise UserError("model.name", name, f"its {path.name} can't be read ({error})", remedy) from error
    if not isinstance(found, dict):
        raise UserError("model.name", name, f"its {path.name} holds no object", "give a Hugging Face model folder")
    return found


def _check_hub(name: str) -> None:
    """Ask the hub once: transformers would try for half a minute before it says that a model can't be had."""
    import huggingface_hub as hub

    cached = isinstance(hub.try_to_load_from_cache(name, "config.json"), str)
    if os.environ.get("HF_HUB_OFFLINE") and cached:
        return
    try:
        hub.HfApi().model_info(name, timeout=HUB_LIMIT_S)
    except Exception as error:
        if not cached:
            reason = type(error).__name__
            raise UserError(
                "model.name",
                name,
                f"is no local folder, and the hub gave no such model ({reason})",
                "give a local folder, or a Hugging Face id that can be reached",
            ) from error
        # Known from an earlier run, and the hub can't be reached: the processes of this run need not try either.
        os.environ["HF_HUB_OFFLINE"] = "1"
        hub.constants.HF_HUB_OFFLINE = True


def _named(config: RunConfig) -> RunConfig:
    name = config.run.name or f"{config.task.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    # Absolute, as the learner, the actors and later commands may have another working folder.
    folder = config.run.folder.expanduser().resolve()
    paths = {
        key: _absolute(value)
        for key, value in config.task
        if isinstance(value, Path) or (key.endswith("_path") and value is not None)
    }
    model, reference = config.model, config.reference
    if model.lora.start_from is not None:
        start = model.lora.start_from.expanduser().resolve()
        model = model.model_copy(update={"lora": model.lora.model_copy(update={"start_from": start})})
    if reference.adapter is not None:
        reference = reference.model_copy(update={"adapter": reference.adapter.expanduser().resolve()})
    seeds = config.seeds
    if seeds.file is not None:
        seeds = seeds.model_copy(update={"file": seeds.file.expanduser().resolve()})
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"name": name, "folder": folder}),
            "task": config.task.model_copy(update=paths),
            "seeds": seeds,
            "model": model,
            "reference": reference,
        }
    )


def _absolute(value: str | Path | list[str]) -> str | Path | list[str]:
    """Of a task's setting, which may be several paths, or a name on the hub."""
    if isinstance(value, list):
        return [str(_absolute(item)) for item in value]
    if isinstance(value, Path):
        return value.expanduser().resolve()
    return value if value.startswith(HUB) else str(Path(value).expanduser().resolve())


def _check_folder(config: RunConfig) -> None:
    folder, run = config.run_folder, config.run
    # An expectation maximisation's steps have a server each.
    if any(running_server(data) for data in (folder / "redis", *folder.glob("*/redis"))):
        raise UserError(
            "run.name", run.name, "is in progress", f"stop it with `amortis stop {folder}` or choose another name"
        )
    if run.resume:
        if not (folder / ("e1" if config.em.iterations else "checkpoints")).is_dir():
            raise UserError("run.resume", True, f"no checkpoint of a run {run.name!r}", "leave run.resume out")
        return
    if folder.exists() and not run.overwrite:
        raise UserError(
            "run.name",
            run.name,
            "a run of this name exists",
            "choose another, go on with --run.resume true, or replace it with --run.overwrite true",
        )
    parent = next(path for path in folder.parents if path.exists())
    if not parent.is_dir() or shutil.disk_usage(parent).free < 2**30:
        raise UserError(
            "run.folder", str(run.folder), "less than 1 GiB free, or no folder", "choose another run.folder"
        )


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
        # One short attempt: the patience that a run has with a restarting server would only delay the answer.
        impatient = {"retries": 1, "timeout_s": min(3.0, config.redis.timeout_s)}
        connect(config.redis.model_copy(update=impatient)).close()
        return
    if config.ray.address is not None:
        raise UserError("redis.url", None, "actors on a cluster can't reach an embedded server", "set redis.url")
    if find_redis_server() is None:
        raise UserError("redis.url", None, "no redis-server binary was found", "run `make setup`, or set redis.url")


def _check_task(config: RunConfig, model: ModelCheck) -> int:
    """Make the task's queries, mask and seeds, and hold them against the model's and the engine's limits.

    Returns how many distinct seeds there are.
    """
    assert config.model.name is not None
    task = make_task(config.task, codec_of(config.model), config.actor.max_model_len)
    space = task.action_space
    # Made here, so that a user's tool that can't be imported shows at once.
    _ = task.tool
    for note in task.data_notes():
        print(f"amortis: {note}", file=sys.stderr)
    needed = max(query.tokens_needed(space.max_len) for query in task.queries("train"))
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
    learner = config.learner
    if space.min_len > 0 and learner.objective in ("subtb", "db") and learner.trajectories_per_query < 2:
        raise UserError(
            "learner.trajectories_per_query",
            learner.trajectories_per_query,
            f"with task.min_len = {space.min_len}, {learner.objective} compares trajectories of a query up to min_len",
            "give 2 or more",
        )
    jobs = make_seed_jobs(config.seeds, task)
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
    return max(1, len({(job.query_id, job.action_ids) for job in jobs}))


def _check_gpus(config: RunConfig) -> None:
    """The GPUs of this machine against what a learner and an actor need of them at once."""
    import torch

    n, actor = config.learner.num_processes, config.actor
    found = torch.cuda.device_count()
    if config.learner.device == "cuda" and n > max(1, found):
        raise UserError(
            "learner.num_processes", n, f"each needs a GPU, and this machine has {found}", f"lower it to {found}"
        )
    needed = actor.num_gpus or 0.0
    if config.ray.address is None and needed > max(1, found):
        name = "num_gpus" if actor.tensor_parallel_size == 1 else "tensor_parallel_size"
        raise UserError(
            f"actor.{name}",
            getattr(actor, name),
            f"an actor needs {needed:g} GPUs on one node, and this machine has {found}",
            f"lower it to {found}, or set ray.address to a cluster that has such nodes",
        )
