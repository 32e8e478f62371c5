"""Expectation maximisation (Hu et al. 2024, section 3.2): the E step is a GFlowNet run, the M step fine-tunes the
reward's model on rationales and targets sampled from it.

Each step is a run of its own, within the folder of the whole: `e1`, `m1`, `e2`, … with their adapters. An interrupted
training goes on with the step it was at.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.config import RunConfig
from common.config_loading import load_run, save_resolved
from common.devices import available_cores
from common.errors import RunFault
from common.files import write_whole
from common.json_text import dumps
from common.tasks import make_task
from common.tokens import codec_of
from deploy.run.best import FOLDER as BEST
from deploy.run.best import best_folder, in_summary
from deploy.run.identity import keep_identity
from deploy.run.launcher import DRAWN, Launcher, Watcher
from deploy.run.run_folder import empty
from deploy.run.summary import read_json
from learner.checkpoint import checkpoints


def run_em(
    config: RunConfig,
    evaluate: Callable[[Path], dict[str, Any]],
    say: Callable[[str], None] = lambda text: None,
    watch: Watcher = lambda state: None,
) -> dict[str, Any]:
    """All iterations, then the evaluation of the last sampler against the last M step's model; the summary, which is
    there too where that evaluation raises RunFault.

    `evaluate` gives the figures of the finished run in a folder; `watch` sees the state of each step's run.
    """
    started, folder = time.monotonic(), config.run_folder
    _begin(config)
    sampler, model = config.model.lora.start_from, config.reference.adapter
    interrupted, stopped_because = False, None
    for iteration in range(1, config.em.iterations + 1):
        say(f"E step {iteration} of {config.em.iterations}")
        e_config = _e_step(config, iteration, sampler, model)
        interrupted, stopped_because = _run(e_config, watch, draw=config.em.samples_per_query)
        if interrupted:
            break
        sampler = e_config.run_folder / "adapter"
        say(f"M step {iteration} of {config.em.iterations}")
        m_config = _m_step(config, iteration, model, e_config.run_folder / DRAWN)
        interrupted, stopped_because = _run(m_config, watch)
        if interrupted:
            break
        model = m_config.run_folder / "adapter"
    done = not interrupted and sampler is not None and model is not None
    figures: dict[str, Any] = {}
    fault: RunFault | None = None
    if done:
        _finish(config, sampler, model)  # type: ignore[arg-type]
        try:
            figures = evaluate(folder)
        except RunFault as error:
            fault = error
    summary: dict[str, Any] = {
        "task": config.task.name,
        "run": config.run.name,
        "model": config.model.name,
        "objective": f"em, E step {config.learner.objective}",
        "iterations": config.em.iterations,
        **figures,
        **(in_summary(folder) if done else {}),
        "wall_s": time.monotonic() - started,
        "interrupted": interrupted,
        "stopped_because": stopped_because,
        "fault": None if fault is None else str(fault),
    }
    write_whole(folder / "summary.json", dumps(summary, indent=2))
    if fault is not None:
        raise fault
    return summary


def _begin(config: RunConfig) -> None:
    """Write what the run is; one that was done already is still judged by its last M step's model until it is again."""
    folder, kept = config.run_folder, config
    if config.run.resume:
        adapter = load_run(folder, load_task=False).reference.adapter
        if adapter is not None and adapter.is_relative_to(folder):
            kept = config.model_copy(update={"reference": config.reference.model_copy(update={"adapter": adapter})})
    save_resolved(kept, folder / "config.yaml")
    task = make_task(config.task, codec_of(config.model), config.actor.max_model_len)
    keep_identity(config, task)


def _e_step(config: RunConfig, iteration: int, sampler: Path | None, model: Path | None) -> RunConfig:
    """The sampler goes on from the one before, for the posterior under the model as it is now."""
    return _step(config, f"e{iteration}", start_from=sampler, reference=model, update={})


def _m_step(config: RunConfig, iteration: int, model: Path | None, drawn: Path) -> RunConfig:
    """Maximum likelihood of (Z, Y), Z drawn ∝ R among what the E step sampled: the posterior on that support."""
    em = config.em
    learner = config.learner.model_copy(
        update={
            "objective": "sft",
            "sft_prompt": "reference",
            "steps": em.m_steps,
            "lr": em.m_lr,
            # That of the E step's training can be longer than the whole M step.
            "warmup_steps": min(config.learner.warmup_steps, em.m_steps // 2),
            "stop_when": None,
            # With `min_size` as below actors have scored all that there is before the first step, and then wait.
            "threads": config.learner.threads or available_cores(),
        }
    )
    buffer = config.buffer.model_copy(
        update={
            "fresh": 0.0,
            "replay_priority": "reward",
            "replay_choice": "drawn",
            "replay_temperature": 1.0,
            "replacement": True,
            "query_selection": "uniform",
            "near_duplicate_tolerance": 0.0,
            "min_size": max(1, len(drawn.read_text(encoding="utf-8").splitlines())),
        }
    )
    seeds = config.seeds.model_copy(update={"file": drawn, "hint": None, "data": False})
    # An M step's adapter is the reward's model, and no sampler that could be evaluated or diagnosed.
    evaluation = config.evaluation.model_copy(update={"every": None})
    diagnose = config.diagnose.model_copy(update={"every": 0})
    update = {"learner": learner, "buffer": buffer, "seeds": seeds, "evaluation": evaluation, "diagnose": diagnose}
    return _step(config, f"m{iteration}", start_from=model, reference=model, update=update)


def _step(
    config: RunConfig, name: str, *, start_from: Path | None, reference: Path | None, update: dict[str, Any]
) -> RunConfig:
    lora = config.model.lora.model_copy(update={"start_from": start_from})
    resume = config.run.resume and bool(checkpoints(config.run_folder / name / "checkpoints"))
    run = config.run.model_copy(
        update={
            "name": name,
            "redis_name": f"{config.redis_name}-{name}",
            "folder": config.run_folder,
            "evaluate_samples": False,
            "evaluate_training": 0,
            "resume": resume,
        }
    )
    return config.model_copy(
        update={
            "run": run,
            "model": config.model.model_copy(update={"lora": lora}),
            "reference": config.reference.model_copy(update={"adapter": reference}),
            "em": config.em.model_copy(update={"iterations": 0}),
            **update,
        }
    )


def _run(config: RunConfig, watch: Watcher, draw: int = 0) -> tuple[bool, str | None]:
    """Run a step unless it is done; whether it was interrupted, and why."""
    if _is_done(config):
        return False, None
    if config.run_folder.exists() and not config.run.resume:
        # This run's own step, which an interruption left without a checkpoint to go on from.
        empty(config.run_folder)
    summary = Launcher(config, watch, draw=draw).run()
    return bool(summary["interrupted"]), summary.get("stopped_because")


def _is_done(config: RunConfig) -> bool:
    summary = read_json(config.run_folder / "summary.json")
    return config.run.resume and bool(summary) and not summary.get("interrupted") and not summary.get("fault")


def _finish(config: RunConfig, sampler: Path, model: Path) -> None:
    """The last sampler, and the last model that it is judged by, are the run's own now."""
    folder = config.run_folder
    shutil.copytree(sampler, folder / "adapter", dirs_exist_ok=True)
    # Earlier E steps' were measured against other models; they stay in those steps' own folders.
    shutil.rmtree(folder / BEST, ignore_errors=True)
    best = best_folder(sampler.parent)
    if best.is_dir():
        shutil.copytree(best, folder / BEST)
    reference = config.reference.model_copy(update={"adapter": model})
    save_resolved(config.model_copy(update={"reference": reference}), folder / "config.yaml")
