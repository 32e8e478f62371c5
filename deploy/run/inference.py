"""Runs that draw from the posterior itself in place of training: by rejection, MCMC or sequential Monte Carlo.

Measured as a trained run is, with what a sample costs: what one would do without training, on the same axis.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from actors.drafting import Draft
from actors.inference import Inference
from actors.make_sampler import make_sampler
from common.config import RunConfig
from common.config_loading import save_resolved
from common.diagnostics.mcmc import R_HAT_LIMIT
from common.diagnostics.rejection import TOKEN_ERROR
from common.errors import RunFault
from common.files import write_whole
from common.json_text import dumps
from common.log import get_logger
from common.tasks import make_task
from common.tasks.base import with_samples
from common.tokens import codec_of
from common.trajectory import Query, Trajectory
from deploy.run.inference_checks import log_bound, replaced_requests
from deploy.run.kept_samples import SAMPLES, keep_samples
from deploy.run.progress import progress
from deploy.run.summary import write_summary

log = get_logger("inference")
DRAWS = "samples.jsonl"
"""The samples, which `seeds.file` takes as well."""
Drawn = tuple[dict[str, list[Draft]], dict[str, float], float]
"""Samples by query id, figures of how they were drawn, and of how many independent ones all is worth that was drawn for
them."""


def run_inference(config: RunConfig, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Samples of the posterior for each test query, and their figures; the run's summary.

    `say` hears now and then how far it is.
    """
    started, folder = time.monotonic(), config.run_folder
    save_resolved(config, folder / "config.yaml")
    task = make_task(config.task, codec_of(config.model), config.actor.max_model_len)
    queries, requests = task.queries("test"), replaced_requests(task)
    n = max(request.n for request in requests)
    sampler = make_sampler(config, task, config.run.seed)
    try:
        inference = Inference(
            sampler,
            config.reward_weights,
            config.final_temperature,
            config.inference,
            config.actor.max_in_flight,
            np.random.default_rng(config.run.seed),
            told=progress(say, _UNITS[config.learner.objective]),
            token_error=max(TOKEN_ERROR[config.actor.dtype], TOKEN_ERROR[config.reference.dtype]),
        )
        drafts, figures, worth = _METHODS[config.learner.objective](inference, queries, n, config)
        drawn = {key: [item.trajectory for item in group if item.trajectory] for key, group in drafts.items()}
        n_drawn = sum(map(len, drawn.values()))
        if not n_drawn:
            raise RunFault(f"no sample was drawn of any query: {json.dumps(figures)}")
        _keep(drawn, config)
        figures |= {
            "tokens_per_sample": sampler.tokens / worth,
            "samples_missing": float(n * len(queries) - n_drawn),
            "without_reward": float(inference.without_reward),
        }
        exact = {key: of_no_policy(group) for key, group in drawn.items()}
        samples = {request.label: {key: group[: request.n] for key, group in exact.items()} for request in requests}
        keep_samples(folder / SAMPLES, config, task, {"test": samples})
        found = {**task.evaluate_samples(with_samples(samples), config.reward_weights), **figures}
        (folder / "evaluation_samples.json").write_text(dumps(found, indent=2))
    finally:
        sampler.close()
    counts = {"trajectories_pushed": 0}
    return write_summary(config, folder, counts, time.monotonic() - started, None, interrupted=False)


def of_no_policy(group: Sequence[Trajectory]) -> list[Trajectory]:
    """The posterior's own draws as what they are: the policy that proposed them says nothing of how often they come, so
    that nothing may weigh them by it."""
    return [item.model_copy(update={"source": "dataset"}) for item in group]


def _keep(drawn: Mapping[str, Sequence[Trajectory]], config: RunConfig) -> None:
    rows = [
        {
            "query_id": key,
            "rationale_ids": item.action_ids.tolist(),
            "log_r": float(item.log_reward(config.reward_weights, config.final_temperature)[-1]),
        }
        for key, group in drawn.items()
        for item in group
    ]
    write_whole(config.run_folder / DRAWS, "".join(f"{dumps(row)}\n" for row in rows))


def _rejection(inference: Inference, queries: Sequence[Query], n: int, config: RunConfig) -> Drawn:
    found = inference.reject(queries, n, log_bound(config, inference.sampler.task))
    acceptance = sum(len(each.kept) for each in found.values()) / sum(each.proposals for each in found.values())
    missing = [key for key, each in found.items() if len(each.kept) < n]
    if missing:
        log.warning("%d of %d queries have fewer than %d samples: inference.max_proposals", len(missing), len(found), n)
    drafts = {key: each.kept for key, each in found.items()}
    above = float(np.mean([each.excess.share for each in found.values()]))
    bias = float(np.max([each.excess.bias for each in found.values()]))
    if above:
        log.warning("rounding put %.1f%% of the weights above their bound: a bias of %.3f at most", 100 * above, bias)
    figures = {"acceptance": acceptance, "above_bound": above, "above_bound_bias": bias}
    return drafts, figures, float(sum(map(len, drafts.values())))


def _mcmc(inference: Inference, queries: Sequence[Query], n: int, config: RunConfig) -> Drawn:
    found = inference.chains(queries)
    told = [each.convergence for each in found.values()]
    # Of chains that never moved it isn't known: they are worth one draw each at most.
    sizes = [size if np.isfinite(size) else config.inference.chains for size in (c.effective_sample_size for c in told)]
    figures = {
        "acceptance": float(np.mean([each.acceptance for each in told])),
        "r_hat": float(np.max([each.r_hat for each in told])),
        "unconverged": float(np.mean([not each.r_hat < R_HAT_LIMIT for each in told])),
        "chains_effective_sample_size": float(np.min(sizes)),
    }
    drafts = {key: each.chains.spread(n) for key, each in found.items()}
    return drafts, figures, float(sum(sizes))


def _smc(inference: Inference, queries: Sequence[Query], n: int, config: RunConfig) -> Drawn:
    found = {}
    for query in queries:
        found[query.id] = inference.particles(query)
        inference.told(len(found), len(queries))
    living = {key: each for key, each in found.items() if np.isfinite(each.log_z)}
    if len(living) < len(found):
        log.warning("%d of %d queries have no particle with a reward", len(found) - len(living), len(found))
    sizes = [each.effective_families for each in living.values()]
    figures = {
        "log_z": float(np.mean([each.log_z for each in living.values()])) if living else float("-inf"),
        "particles_effective_sample_size": float(np.min(sizes, initial=np.inf)),
    }
    drafts = {key: each.draw(n, inference.generator) for key, each in living.items()}
    return drafts, figures, float(sum(sizes))


_UNITS = {"rejection": "queries", "mcmc": "steps of all chains", "smc": "queries"}
_METHODS = {"rejection": _rejection, "mcmc": _mcmc, "smc": _smc}
