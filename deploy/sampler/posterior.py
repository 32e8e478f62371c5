"""What weighted draws of a trained sampler say of the posterior: each draw's weight, log Z, and p(Y|X)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from common.config import RunConfig
from common.diagnostics.correction import Correction, of_targets, parts_without_target
from common.diagnostics.importance import log_mean_weight, normalized_weights, resample
from common.diagnostics.verdict import estimate_refused
from common.errors import UserError
from common.reward import weighted_sum
from common.tasks import Task
from common.trajectory import Trajectory

CANDIDATES_A_SAMPLE, LEAST_CANDIDATES = 16, 256
"""Drawn for each sample that is resampled, and in all, where nothing else is asked for: of fewer the weights' tail can
hardly be told, and good samplers would be refused by chance."""


@dataclass(frozen=True)
class Sample:
    """One rationale Z that the sampler drew. Log-quantities in nats."""

    text: str
    """Z as it stands in the text, what tools inserted included, without ⊤."""
    token_ids: list[int]
    """The policy's own tokens, without ⊤."""
    log_q: float
    """log q(Z⊤|X) as it was drawn."""
    log_r: float
    """log R as the run's settings have it, with the temperature and weights at their end, and without the likelihood
    where there is no target. GFlowNet objectives train q to be in proportion to it; others aim at something else."""
    log_prior: float
    """log p(Z⊤|X), unweighted and untempered as the next two."""
    log_likelihood: float
    """log p(Y|XZ⊤); 0 where there is no target, which R leaves out then."""
    log_constraint: float
    """Constraint terms, and the reward function of one's own."""
    weight: float
    """Its share of the posterior's estimate, ∝ R/q over all draws, which may be more than are shown, and not smoothed;
    1/n where it was resampled by that."""


@dataclass(frozen=True)
class TargetProbability:
    """p(Y|X) of one target Y, averaged over rationales."""

    text: str
    probability: float
    """Σ w p(Y|XZ⊤) / Σ w with w = R/q, R without the likelihood: under the rationales that the reward alone prefers.
    The tail of w is Pareto-smoothed."""
    plain_mean: float
    """The mean of p(Y|XZ⊤) under the sampler itself."""


@dataclass(frozen=True)
class Posterior:
    """Draws for one prompt, and what they say together."""

    prompt: str
    samples: list[Sample]
    log_z: float
    """log Σ_Z R(Z), estimated by the mean weight; a draw without a valid reward has R = 0."""
    effective_sample_size: float
    """Of how many draws of the posterior itself the weighted draws are worth; of p(Y|X) where targets are given."""
    pareto_k: float | None
    """k̂ of the same weights, how heavy their tail is; None where it can't be told, as of fewer than 25 draws."""
    candidates: int
    """Draws that all of this was estimated from."""
    unreliable: str | None
    """Why estimates by these weights mean nothing, and what helps; None if they mean something."""
    targets: list[TargetProbability]
    target: str | None
    """Y whose likelihood is part of R; None where R has none, as for a prompt alone and for `targets`."""


class UnreliableEstimate(UserError):
    """What was asked for can't be estimated from the draws: their weights say so. What it would be is in `found`."""

    found: Posterior | list[Posterior] | None = None
    """What was drawn, as the call would have returned it; None behind a process' border."""


def refuse(found: Posterior, setting: str, way_out: str) -> UnreliableEstimate | None:
    """Why this posterior's resampled draws or p(Y|X) are no answer to what `setting` asked for, with the remedy and the
    caller's own `way_out`; None if they are one."""
    refused = estimate_refused(found.pareto_k, found.candidates, found.effective_sample_size / found.candidates)
    if refused is None:
        return None
    problem, remedy = refused
    return UnreliableEstimate(setting, None, problem, f"{remedy}, or {way_out}")


def draws_for(n: int, n_targets: int, *, resampled: bool, most: int | None = None) -> int:
    """How many to draw for `n` samples where nothing else is asked for: as many as what is estimated from them takes.

    `most` is how many draws, or texts of `n_targets` a draw, may be scored at a time.
    """
    most_draws = None if most is None else most // max(1, n_targets)
    if resampled:
        return candidates_for(n, most_draws)
    if not n_targets:
        return n
    return max(n, LEAST_CANDIDATES if most_draws is None else min(LEAST_CANDIDATES, most_draws))


def candidates_for(n: int, most: int | None = None) -> int:
    """How many to draw where `n` are resampled and nothing else is asked for; `most` is what may be drawn at a time,
    which may still be too few for so many samples."""
    least = LEAST_CANDIDATES if most is None else min(LEAST_CANDIDATES, most)
    return max(CANDIDATES_A_SAMPLE * n, least)


class PosteriorMaker:
    """Turns a run's trajectories of one query into a `Posterior`."""

    def __init__(self, config: RunConfig, task: Task[Any]) -> None:
        self._task, self._weights = task, config.reward_weights
        self._temperature = config.final_temperature

    def make(
        self,
        prompt: str,
        drawn: Sequence[Trajectory],
        *,
        target: str | None = None,
        targets: Sequence[str] = (),
        resampled: int | None = None,
        shown: int | None = None,
        seed: int | None = None,
        missing: int = 0,
    ) -> Posterior:
        """`drawn` are of one query, sampled at temperature 1, and `target` is its target as text; with `targets` the
        first of these is that query's target and the others its alternatives, in that order.

        `missing` more were drawn that have no valid reward: their R is 0, which log Z takes into account.

        With `resampled` so many are drawn from them again ∝ their weights (sampling-importance-resampling); else the
        first `shown` come back as they are, all without it, and all of them are estimated from.
        """
        log_q = np.array([item.behaviour.log_prob for item in drawn], np.float64)
        parts = [self._parts(item, with_target=not targets) for item in drawn]
        log_r = np.array([self._of_parts(*part) for part in parts], np.float64)
        if targets:
            correction, log_p = of_targets(drawn, self._weights, self._temperature, self._task.misleading_penalty)
        else:
            correction, log_p = Correction.of(log_r - log_q, drawn), np.zeros((0, len(drawn)))
        if resampled is None:
            chosen, weights = np.arange(len(drawn))[:shown], normalized_weights(correction.log_weights)
        else:
            chosen = resample(correction.log_weights, resampled, np.random.default_rng(seed))
            weights = np.full(len(drawn), 1.0 / resampled)
        return Posterior(
            prompt=prompt,
            samples=[self._sample(drawn[i], log_q[i], log_r[i], parts[i], weights[i]) for i in chosen.tolist()],
            log_z=log_mean_weight(correction.log_weights) - math.log1p(missing / len(drawn)),
            effective_sample_size=correction.effective_sample_size,
            pareto_k=correction.pareto_k,
            candidates=len(drawn),
            unreliable="; ".join(correction.refused) if correction.refused else None,
            targets=[
                TargetProbability(text, correction.mean(column), float(column.mean()))
                for text, column in zip(targets, np.exp(log_p), strict=True)
            ],
            target=None if targets else target,
        )

    def log_r(self, trajectory: Trajectory) -> float:
        """log R as the run's settings have it, in nats."""
        return self._of_parts(*self._parts(trajectory, with_target=True))

    def row(self, trajectory: Trajectory) -> dict[str, Any]:
        """A draw at whatever temperature, as a `Sample` has it but for its weight."""
        parts, log_r = self._parts(trajectory, with_target=True), self.log_r(trajectory)
        whole = self._sample(trajectory, trajectory.behaviour.log_prob, log_r, parts, math.nan)
        return {name: value for name, value in asdict(whole).items() if name != "weight"}

    def _parts(self, item: Trajectory, *, with_target: bool) -> tuple[float, float, float]:
        """log_prior, log_likelihood and log_constraint of the whole rationale, as they enter R."""
        if not with_target:
            return parts_without_target(item, self._task.misleading_penalty)
        return float(item.log_prior[-1]), float(item.log_likelihood[-1]), float(item.log_constraint[-1])

    def _of_parts(self, prior: float, likelihood: float, constraint: float) -> float:
        return weighted_sum(prior, likelihood, constraint, self._weights) / self._temperature

    def _sample(
        self, item: Trajectory, log_q: float, log_r: float, parts: tuple[float, float, float], weight: float
    ) -> Sample:
        prior, likelihood, constraint = parts
        return Sample(
            text=self._task.codec.decode(item.input_ids),
            token_ids=item.action_ids.tolist(),
            log_q=float(log_q),
            log_r=float(log_r),
            log_prior=prior,
            log_likelihood=likelihood,
            log_constraint=constraint,
            weight=float(weight),
        )
