"""What a run leaves: summary.json and the plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.config import WITHIN_QUERIES, RunConfig
from common.errors import UserError
from common.evaluation import TRAINED
from common.files import write_whole
from common.held_out import Part
from common.json_text import dumps
from common.log import get_logger
from common.tasks import SampleRequest, Task, make_task, task_class
from common.tasks.base import SampleSets
from common.tokens import codec_of
from common.trajectory import Query
from deploy.run.best import in_summary, load_best
from deploy.run.curve import draw_curve, read_metrics

log = get_logger("launcher")

DIAGNOSIS, BEST_DIAGNOSIS = "diagnosis.json", "diagnosis-best.json"
"""In a run's folder: how far its sampler is from the posterior, and that of the adapter which was best."""
CALIBRATION, BEST_CALIBRATION = "calibration", "calibration-best"
"""Of the same two by simulation, each a .json and a .png."""
MOST_ALONE = 0.2
"""Share of steps from which on it is told that they had nothing to compare."""
BOOKKEEPING = {
    "wall_s",
    "elapsed_s",
    "training_s",
    "steps",
    "iterations",
    "trajectories_trained",
    "trajectories_pushed",
    "trajectories_set_aside",
    "tokens_trained",
    "tokens_of_actors",
    "training_tokens",
    "adapter_versions_published",
    "adapter_versions_trained_on",
    "adapter_hand_over_p50_s",
    "adapter_hand_over_p95_s",
    "sampler_gap_mean",
    "sampler_gap_max",
}
"""Numbers of summary.json that say something of the run or the machine, and nothing of the sampler."""


def wanted_requests(task: Task[Any], config: RunConfig) -> list[SampleRequest]:
    """The samples that a run's evaluation takes."""
    requests = task.sample_requests() if config.run.evaluate_samples else []
    return [request for request in requests if request.adapter or request.given or config.run.evaluate_base]


def tokens_per_sample(samples: SampleSets, queries: Sequence[Query]) -> dict[str, float]:
    """What a trained sampler's draw costs, counted as actors count theirs: the prompt and what is drawn behind it, ⊤
    left out. Nothing is scored, which for actors is a text with prompt and target of its own. Empty where none was
    drawn."""
    prompts = {query.id: len(query.prompt_ids) for query in queries}
    read = [prompts[key] + len(item.action_ids) for key, group in samples.get(TRAINED, {}).items() for item in group]
    return {"tokens_per_sample": sum(read) / len(read)} if read else {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if the file isn't there; raises UserError for one that can't be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError("RUN", str(path), f"can't be read ({error})", "mend it, or move it away") from error


def can_go_on(folder: Path) -> bool:
    """Whether a run's folder has what run.resume goes on from: a checkpoint, or the first step of an EM run."""
    found = [path for name in ("step-*", ".step-*.replaced") for path in folder.glob(f"checkpoints/{name}")]
    return bool(found) or (folder / "e1").is_dir()


def write_summary(
    config: RunConfig,
    folder: Path,
    found: Mapping[str, Any],
    wall_s: float,
    fault: str | None,
    *,
    interrupted: bool,
    plots: bool = True,
) -> dict[str, Any]:
    """Bring the learner's summary, the evaluations and what else was found together in summary.json, and draw the
    plots, unless it is to be written again soon."""
    before, after = read_json(folder / "evaluation_before.json"), read_json(folder / "evaluation_after.json")
    samples = read_json(folder / "evaluation_samples.json")
    summary: dict[str, Any] = {
        "task": config.task.name,
        "run": config.run.name,
        "model": config.model.name,
        "objective": config.learner.objective,
        **read_json(folder / "learner_summary.json"),
        **found,
        "wall_s": wall_s,
        **{f"{name}_before": value for name, value in before.get("metrics", {}).items()},
        **after.get("metrics", {}),
        **samples,
        **in_summary(folder),
        **_looks(config, folder),
        **_nothing_compared(config, folder),
        "interrupted": interrupted,
        "fault": fault,
    }
    if "tokens_trained" in summary and "tokens_of_actors" in summary:
        # A step reads its batch forwards and backwards, which is twice as much again.
        summary["training_tokens"] = summary["tokens_of_actors"] + 3 * summary["tokens_trained"]
    drawn = [*draw_plots(config, folder)] if after and plots else []
    if plots:
        drawn += draw_curve(folder, task_class(config.task).main_figures, load_best(folder))
    summary["plots"] = [path.name for path in drawn]
    write_whole(folder / "summary.json", dumps(summary, indent=2))
    return summary


def _looks(config: RunConfig, folder: Path) -> dict[str, str]:
    """How often a run was looked at while it trained, in words; empty where it was not to be. That there was no time
    for it would else show nowhere."""
    rows, parts = read_metrics(folder), []
    for part, every in ((Part.EVALUATION, config.evaluation.every), (Part.DIAGNOSIS, config.diagnose.every)):
        if not every:
            continue
        made = sum(any(name.startswith(part.prefix) for name in row) for row in rows)
        one, many = ("evaluation", "evaluations") if part is Part.EVALUATION else ("diagnosis", "diagnoses")
        parts.append(f"{made} {one if made == 1 else many}")
        if not made:
            share = config.evaluation.share
            parts[-1] += f" (evaluation.share of {share:g} left an actor no time for it: raise it, or train for longer)"
    return {"while_it_trained": ", ".join(parts)} if parts else {}


def _nothing_compared(config: RunConfig, folder: Path) -> dict[str, str]:
    """Steps that had nothing to learn from, in words; empty where there were few. Their loss is 0, as a perfect
    sampler's."""
    if config.learner.objective not in WITHIN_QUERIES:
        return {}
    shares = [row["queries_alone"] for row in read_metrics(folder) if "queries_alone" in row]
    alone = sum(share == 1 for share in shares)
    if alone <= MOST_ALONE * len(shares):
        return {}
    told = (
        f"{alone} of {len(shares)} steps: each query had one trajectory, or the same one again, and "
        f"{config.learner.objective} compares a query's trajectories; heat the actors (actor.tempered_share, "
        "actor.temperature_high), or take learner.objective subtb, which learns of every state of one"
    )
    return {"nothing_compared": told}


def draw_plots(config: RunConfig, folder: Path) -> list[Path]:
    """The task's plots, from the evaluations in the run's folder."""
    before, after = read_json(folder / "evaluation_before.json"), read_json(folder / "evaluation_after.json")
    samples = read_json(folder / "evaluation_samples.json")
    task = make_task(config.task, codec_of(config.model), config.actor.max_model_len)
    try:
        return task.plot(before.get("distribution", {}), {**after.get("distribution", {}), **samples}, folder)
    except Exception:
        # A task can be the user's own, and a picture less is no reason to lose what was measured.
        log.warning("the task's plots can't be drawn", exc_info=True)
        return []
