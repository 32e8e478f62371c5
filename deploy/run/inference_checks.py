"""Whether a run can draw from its posterior without training, found before an engine is started."""

from __future__ import annotations

from typing import Any

from common.config import POSTERIOR_DRAWS, RunConfig
from common.errors import UserError
from common.tasks import SampleRequest, Task


def check_inference(config: RunConfig, task: Task[Any]) -> None:
    """Raises UserError where the objective is one of these and can't be used for the task."""
    objective = config.learner.objective
    if objective not in POSTERIOR_DRAWS:
        return
    if not replaced_requests(task):
        problem = f"draws the samples of an evaluation, and that of the task {task.name} wants none"
        raise UserError("learner.objective", objective, problem, "ask for some, see task.evaluation_samples")
    if config.inference.proposals == "sampler":
        problem = "are those of a trained sampler, and this run trains none"
        raise UserError("inference.proposals", "sampler", problem, "leave it out")
    if objective == "rejection":
        log_bound(config, task)


def log_bound(config: RunConfig, task: Task[Any]) -> float:
    """What log R − log g is nowhere above, in nats, where g is the base model under the mask.

    The mask only takes from a token's rivals, so p(Z⊤|X) ≤ g(Z⊤|X), and a likelihood is 1 at most. Raises UserError
    naming what keeps it from being known.
    """
    remedy = "use the objective smc or mcmc, which need no bound"
    weights, tau = config.reward_weights, config.final_temperature
    if weights.prior < tau:
        problem = f"is below the temperature {tau:g} of log R, so that log R − log q has no known bound for rejection"
        raise UserError("learner.reward.prior_weight", weights.prior, problem, remedy)
    if not task.terminator_in_reward:
        problem = "leaves the terminator out of log R, so that log R − log q has no known bound for rejection"
        raise UserError("task.terminator_in_text", False, problem, remedy)
    if config.reference.adapter is not None:
        problem = "is what log R is made of, and rejection proposes from the model without it"
        raise UserError("reference.adapter", str(config.reference.adapter), problem, remedy)
    bound = config.inference.constraint_bound
    if bound is None and task.own_reward is None:
        bound = task.constraint_bound
    if bound is None:
        problem = "isn't set, and what the constraint or task.reward adds to log R at most is not known for rejection"
        raise UserError("inference.constraint_bound", None, problem, f"set it, or {remedy}")
    return bound / tau


def replaced_requests(task: Task[Any]) -> list[SampleRequest]:
    """The samples of the trained sampler that the evaluation asks for, which these stand in for."""
    return [request for request in task.sample_requests() if request.adapter and not request.beams]
