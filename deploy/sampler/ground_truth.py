"""What is known of a posterior without the sampler that is judged: all of it where it can be enumerated, else draws by
Metropolis-Hastings from the base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from actors.engine import LoadedAdapter
from actors.inference import Inference, KnownRationale, too_many
from actors.sampler import TrajectorySampler
from common.config import RunConfig
from common.diagnostics.draws import Draws
from common.diagnostics.enumeration import every_rationale
from common.diagnostics.mcmc import MIN_EFFECTIVE, R_HAT_LIMIT, Convergence
from common.errors import EngineFault, RunFault
from common.tasks import Task
from common.trajectory import Query, Trajectory

if TYPE_CHECKING:
    from learner.policy import LoraPolicy

Method = Literal["enumerate", "mcmc"]
POSTERIOR_DRAWS = 512
"""Draws of the posterior that a sampler is held against, fewer where chains are worth fewer."""


@dataclass(frozen=True)
class GroundTruth:
    """A query's posterior, as far as it is known."""

    method: Method
    log_z: float | None
    """log Σ R, exact; None where it wasn't enumerated."""
    draws: Draws | None
    """Of the posterior, with the judged sampler's log q of each; None of chains that don't agree."""
    convergence: Convergence | None
    """Of the chains; None where there were none."""
    without_reward: int = 0
    """Enumerated rationales that have no reward, taken as R = 0."""
    fault: str | None = None
    """Why nothing is known."""

    def words(self) -> str:
        """Where it is from, and what is wrong with it if something is."""
        if self.fault is not None:
            return f"none: {self.fault}"
        if self.convergence is None:
            found = f"enumerated: log Z = {self.log_z:.4f} nats"
            if self.without_reward:
                found += f", with R = 0 for {self.without_reward} rationales that have no reward"
            return found
        told = (
            f"chains with R̂ = {self.convergence.r_hat:.3f} and {self.convergence.effective_sample_size:.0f} effective "
            "draws"
        )
        if self.draws is not None:
            return told
        return (
            f"{told}, which is no ground truth: R̂ < {R_HAT_LIMIT:g} and {MIN_EFFECTIVE} are asked for; raise "
            "inference.mcmc_steps"
        )


def chosen_method(task: Task[Any], config: RunConfig, asked: Literal["enumerate", "mcmc", "auto"]) -> Method:
    """`auto` enumerates where `inference.enumerate_limit` allows it; no engine is asked for that. Raises UserError
    where there is too much to enumerate."""
    if asked == "mcmc":
        return "mcmc"
    if every_rationale(task.action_space, config.inference.enumerate_limit) is not None:
        return "enumerate"
    if asked == "enumerate":
        raise too_many(config.inference.enumerate_limit)
    return "mcmc"


def inference_of(
    config: RunConfig, sampler: TrajectorySampler, seed: int, adapter: LoadedAdapter | None = None
) -> Inference:
    """Draws of the posterior as a run's settings have them, by an engine that is up; `adapter` proposes them, or else
    the base model."""
    return Inference(
        sampler,
        config.reward_weights,
        config.final_temperature,
        config.inference,
        config.actor.max_in_flight,
        np.random.default_rng(seed),
        adapter,
    )


def ground_truth(
    config: RunConfig,
    sampler: TrajectorySampler,
    policy: Callable[[], LoraPolicy],
    queries: Sequence[Query],
    known: Mapping[str, Sequence[Trajectory]],
    method: Method,
    seed: int = 0,
    adapter: LoadedAdapter | None = None,
) -> dict[str, GroundTruth]:
    """That of each query, by its id; `policy` is the sampler that is judged, whose log q is asked for, and `adapter`
    what the engine knows it by, for `inference.proposals: sampler`. Half of a query's chains start at the rationales
    that are `known` of it.

    A query none of whose rationales has a reward is told so, and the others go on. Raises UserError where there is too
    much to enumerate, RunFault where chains find nothing to start from.
    """
    proposes = adapter if config.inference.proposals == "sampler" else None
    inference = inference_of(config, sampler, seed, proposes)
    found: dict[str, GroundTruth] = {}
    if method == "enumerate":
        for query in queries:
            try:
                exact, trajectories = inference.enumerate(query)
            except EngineFault:
                raise
            except RunFault as error:
                found[query.id] = GroundTruth("enumerate", None, None, None, fault=str(error))
                continue
            chosen = [trajectories[i] for i in exact.draw(POSTERIOR_DRAWS, inference.generator).tolist()]
            draws = _with_log_q(inference, policy(), query, chosen)
            found[query.id] = GroundTruth("enumerate", exact.log_z, draws, None, exact.without_reward)
        return found
    begun = {
        query.id: known_rationales(policy(), query, known[query.id], trained=proposes is not None)
        for query in queries
        if known.get(query.id)
    }
    for query, own in zip(queries, inference.chains(queries, begun).values(), strict=True):
        agreed: Draws | None = None
        if own.convergence.reached:
            # No more than the chains are worth, so that they count as independent.
            n = min(POSTERIOR_DRAWS, int(own.convergence.effective_sample_size))
            spread = [draft.trajectory for draft in own.chains.spread(n)]
            agreed = _with_log_q(inference, policy(), query, [item for item in spread if item is not None])
        found[query.id] = GroundTruth("mcmc", None, agreed, own.convergence)
    return found


def known_rationales(
    policy: LoraPolicy, query: Query, known: Sequence[Trajectory], *, trained: bool
) -> list[KnownRationale]:
    """With log g by what proposes: the sampler, or the base model, which reads the reference's prompt."""
    import torch

    from learner.policy import Actions

    if not trained and len(query.reference_ids):
        query = query.model_copy(update={"prompt_ids": query.reference_ids})
    with torch.no_grad(), nullcontext() if trained else policy.untrained():
        log_g = policy.log_probs([Actions.of(item, query) for item in known]).each()
    return [KnownRationale(tuple(item.action_ids.tolist()), each) for item, each in zip(known, log_g, strict=True)]


def _with_log_q(inference: Inference, policy: LoraPolicy, query: Query, drawn: Sequence[Trajectory]) -> Draws:
    """Each distinct rationale is asked about once."""
    from learner.policy import Actions, log_q

    distinct = {tuple(item.action_ids.tolist()): Actions.of(item, query) for item in drawn}
    found = dict(zip(distinct, log_q(policy, list(distinct.values())).tolist(), strict=True))
    keys = tuple(tuple(item.action_ids.tolist()) for item in drawn)
    return Draws(
        np.array([found[key] for key in keys], np.float64),
        np.array([inference.log_r(item) for item in drawn], np.float64),
        keys,
    )
