"""Weighted draws of the posterior: a request becomes one draw with scores, and its trajectories an answer."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from common.trajectory import Query, Trajectory
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.posterior import PosteriorMaker, draws_for, refuse
from deploy.sampler.service.errors import ApiError, refused, unreliable, without_folders
from deploy.sampler.service.loop import Draw, Job
from deploy.sampler.service.schemas import PosteriorRequest


def query_of(run: FinishedRun, request: PosteriorRequest) -> Query:
    """The request's query. Raises UserError, or ApiError, naming the parameter."""
    if request.prompt is None and request.row is None:
        raise refused("prompt", None, "is missing", "give a prompt, or a row of the columns that the run's task names")
    if request.prompt is not None and not run.task.takes_prompts:
        problem = f"is none of the problems of the task {run.task.name}, whose rewards it knows alone"
        raise refused("prompt", request.prompt, problem, "ask /v1/completions, which scores nothing")
    return run.query(request.prompt, row=request.row, target=request.target, targets=request.targets, setting="prompt")


def draw_of(request: PosteriorRequest, query: Query, trained: bool, max_samples: int) -> Draw:
    """What the engine is to do. Raises ApiError."""
    if request.candidates is not None and not (request.resample or request.targets):
        problem = "is given without resample or targets"
        raise refused("candidates", request.candidates, problem, "set resample to true, or give n")
    if request.candidates is not None and request.candidates < request.n and not request.resample:
        problem = f"is fewer than the {request.n} samples of the answer (n)"
        raise refused("candidates", request.candidates, problem, "ask for as many, or give a lower n")
    default = draws_for(request.n, len(request.targets), resampled=request.resample, most=max_samples)
    n = request.candidates or default
    for param, wanted in (("n", request.n), ("candidates", n)):
        if wanted > max_samples:
            problem = "makes more samples than the service takes at a time"
            raise refused(param, wanted, problem, f"ask for {max_samples} or fewer (--max-samples)")
    if n * len(request.targets) > max_samples:
        problem = f"times {n} draws are more texts to score than the service takes at a time"
        raise refused("targets", len(request.targets), problem, f"ask for {max_samples} or fewer (--max-samples)")
    return Draw(query, n, trained, seed=None if request.seed is None else str(request.seed), score=True)


async def answer(run: FinishedRun, request: PosteriorRequest, query: Query, model: str, job: Job) -> dict[str, Any]:
    """The answer, when all is drawn and scored, of the draws that have a valid reward; raises ApiError if none has, or
    if their weights say that what was asked for can't be estimated from them."""
    drawn, rejected, reason = dict[int, Trajectory](), 0, None
    async for update in job.updates():
        if update.draft.trajectory is None:
            rejected, reason = rejected + 1, update.draft.rejected
        else:
            drawn[update.draft.number] = update.draft.trajectory
    if not drawn:
        why = without_folders(reason or "")
        raise ApiError(500, f"none of the {rejected} draws has a valid reward ({why}); see the run's task")
    # Beside the event loop: of a thousand draws it takes a while.
    found = await asyncio.to_thread(
        PosteriorMaker(run.config, run.task).make,
        run.codec.decode_prompt(query.prompt_ids) if request.prompt is None else request.prompt,
        # In an order that a seed decides, and not who finished first.
        [drawn[number] for number in sorted(drawn)],
        target=run.target_of(query),
        targets=request.targets,
        resampled=request.n if request.resample else None,
        shown=request.n,
        seed=None if request.seed is None else abs(request.seed),
        missing=rejected,
    )
    if (request.resample or request.targets) and not request.allow_unreliable:
        way_out = "ask for weighted draws alone, or for this all the same with allow_unreliable: true"
        error = refuse(found, "resample" if request.resample else "targets", way_out)
        if error is not None:
            raise unreliable(error)
    return {"object": "posterior", "model": model, **asdict(found), "rejected": rejected}
