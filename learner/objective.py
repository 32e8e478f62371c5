"""From a batch and its log-probabilities to the configured loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from common.config import LearnerSection
from common.reward import RewardWeights
from common.trajectory import Trajectory
from learner.comparison_losses import (
    alpha_dpg_loss,
    flowrl_loss,
    grpo_loss,
    importance_weights,
    raptb_loss,
    rloo_loss,
)
from learner.losses import (
    db_loss,
    group_mean,
    subtb_loss,
    subtb_residuals,
    tb_loss,
    terminal_log_z,
    vargrad_loss,
)
from learner.policy import LogProbs

GFLOWNET = ("subtb", "tb", "vargrad", "db")
"""Objectives that end at the normalised reward, whatever drew the batch; the others are there for comparison."""


LOG_Z_EPS = 1e-3
"""Of log Z's optimiser, as AdamW's eps: gradients of rounding alone, far below it, move nothing."""


class LogZTable(torch.nn.Module):
    """A learned log Z for each query, started at the first batch mean that is seen of it."""

    def __init__(self, query_ids: Sequence[str]) -> None:
        super().__init__()
        self.index = {query_id: i for i, query_id in enumerate(sorted(query_ids))}
        self.values = torch.nn.Parameter(torch.zeros(len(self.index)))
        self.register_buffer("started", torch.zeros(len(self.index), dtype=torch.bool))

    def group(self, lr: float) -> dict[str, Any]:
        """Its parameters as an optimiser takes them."""
        return {"params": [self.values], "lr": lr, "weight_decay": 0.0, "eps": LOG_Z_EPS}

    def start_anew(self, optimizer: torch.optim.Optimizer) -> None:
        """Of another reward: every query's is the first batch mean that is seen of it from here on."""
        self.started.zero_()
        for name in ("exp_avg", "exp_avg_sq"):
            if (moment := optimizer.state[self.values].get(name)) is not None:
                moment.zero_()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Around an optimiser's step: a query without a gradient, as it isn't in the batch, stays where it is, whatever
        momentum it has."""
        before = self.values.detach().clone()
        yield
        if self.values.grad is not None:
            with torch.no_grad():
                self.values.copy_(torch.where(self.values.grad == 0, before, self.values))

    def rows(self, trajectories: Sequence[Trajectory]) -> Int[Tensor, " batch"]:
        """The index of each trajectory's query."""
        return torch.tensor([self.index[item.query_id] for item in trajectories], device=self.values.device)

    def learned(self, rows: Int[Tensor, " batch"], estimates: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Each trajectory's log Z. That of a query not seen before is the mean of its estimates: it may lie many nats
        from 0."""
        with torch.no_grad():
            for row in rows.unique().tolist():
                if not self.started[row]:
                    self.values[row] = estimates[rows == row].mean()
                    self.started[row] = True
        return self.values[rows]


@dataclass(frozen=True)
class Evaluation:
    """A loss, and what it says of log Z."""

    loss: Float[Tensor, ""]
    log_z_batch: float
    """Mean over the batch of log R_K − log q(Z⊤|X)."""
    log_z_learned: float | None
    """Mean of the learned head, where the objective has one."""
    effective_sample_size: float
    """Of the weights R/q, over their number, mean over queries: 1 where q is the posterior, 1/n where one dominates."""
    residuals: Float[Tensor, " batch"]
    """How far each trajectory is from balance, in nats, before the step; detached."""


def stack_rewards(
    trajectories: Sequence[Trajectory], weights: RewardWeights, temperature: float, device: torch.device
) -> Float[Tensor, "batch states"]:
    """Tempered log R at every decision state, padded with 0; NaN where it wasn't scored."""
    width = max(len(item.log_prior) for item in trajectories)
    out = torch.zeros(len(trajectories), width)
    for row, item in zip(out, trajectories, strict=True):
        row[: len(item.log_prior)] = torch.as_tensor(item.log_reward(weights, temperature))
    return out.to(device)


def evaluate(
    section: LearnerSection,
    log_probs: LogProbs,
    log_reward: Float[Tensor, "batch states"],
    rows: Int[Tensor, " batch"],
    log_z: LogZTable,
    min_len: int,
) -> Evaluation:
    """The configured objective of a batch; `rows` is the query index of each trajectory."""
    arguments = (log_probs.log_pf, log_probs.log_pterm, log_reward, log_probs.n_actions)
    estimates = terminal_log_z(*arguments).detach()
    # A state whose reward nobody asked for implies no log Z, as one where the policy can't stop.
    can_stop = log_probs.can_stop & ~log_reward.isnan()
    learned: float | None = None
    if section.objective == "tb":
        heads = log_z.learned(rows, estimates)
        learned = float(heads.detach().mean())
        loss = tb_loss(*arguments, log_z=heads, min_len=min_len, residual=section.residual)
        residuals = (heads.detach() - estimates).abs()
    elif section.objective == "vargrad":
        loss = vargrad_loss(*arguments, group=rows, min_len=min_len, residual=section.residual)
        residuals = (group_mean(estimates, rows) - estimates).abs()
    else:
        normalize, residual = section.normalize, section.residual
        if section.objective == "db":
            lam = 0.0
            loss = db_loss(
                *arguments, min_len=min_len, can_stop=can_stop, group=rows, normalize=normalize, residual=residual
            )
        else:
            lam = section.subtb_lambda
            loss = subtb_loss(
                *arguments,
                lam=lam,
                min_len=min_len,
                can_stop=can_stop,
                group=rows,
                normalize=normalize,
                residual=residual,
            )
        with torch.no_grad():
            residuals = subtb_residuals(*arguments, lam=lam, min_len=min_len, can_stop=can_stop, group=rows)
    return Evaluation(loss, float(estimates.mean()), learned, effective_sample_size(estimates, rows), residuals)


def evaluate_comparison(
    section: LearnerSection,
    log_probs: LogProbs,
    batch: Sequence[Trajectory],
    weights: RewardWeights,
    temperature: float,
    rows: Int[Tensor, " batch"],
    log_z: LogZTable,
    min_len: int,
) -> Evaluation:
    """An objective of `comparison_losses`; its reward is tempered log R without the prior, which is the KL term's."""
    device = log_probs.log_pf.device
    log_reward = stack_rewards(batch, weights, temperature, device)
    task_reward = stack_rewards(batch, weights.model_copy(update={"prior": 0.0}), temperature, device)
    reward = task_reward.gather(1, log_probs.n_actions[:, None])[:, 0]
    log_prior = torch.tensor([float(item.log_prior[-1]) for item in batch], device=device)
    log_q = log_probs.total()
    estimates = terminal_log_z(log_probs.log_pf, log_probs.log_pterm, log_reward, log_probs.n_actions).detach()
    heads: Tensor | None = None
    log_behaviour = torch.tensor([item.behaviour.log_prob for item in batch], device=device)
    importance = importance_weights(log_q, log_behaviour, cap=section.importance_sampling_cap)
    if section.objective == "rloo":
        loss = rloo_loss(log_q, log_prior, reward, importance, group=rows, kl_coef=section.kl_coef)
    elif section.objective == "alpha_dpg":
        loss = alpha_dpg_loss(log_q, estimates, importance, group=rows, alpha=section.alpha)
    elif section.objective == "flowrl":
        decisions = log_probs.n_actions + 1
        heads = log_z.learned(rows, (reward - (log_q - log_prior) / decisions).detach())
        loss = flowrl_loss(log_q, log_prior, reward, decisions, log_z=heads)
    elif section.objective == "raptb":
        heads = log_z.learned(rows, estimates)
        loss = raptb_loss(
            log_probs.log_pf,
            log_probs.log_pterm,
            log_reward,
            task_reward,
            log_probs.n_actions,
            log_z=heads,
            weight=section.raptb_weight,
            min_len=min_len,
            can_stop=log_probs.can_stop & ~log_reward.isnan(),
        )
    else:
        chosen, behaviour, valid = _with_stop(log_probs, batch)
        loss = grpo_loss(
            chosen,
            behaviour,
            valid,
            log_prior,
            reward,
            group=rows,
            kl_coef=section.kl_coef,
            clip_ratio=section.clip_ratio,
        )
    return Evaluation(
        loss,
        float(estimates.mean()),
        None if heads is None else float(heads.detach().mean()),
        effective_sample_size(estimates, rows),
        (estimates - group_mean(estimates, rows)).abs(),
    )


def _with_stop(log_probs: LogProbs, batch: Sequence[Trajectory]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of all decisions, stopping the last: the policy's, the sampler's, and which aren't padding."""
    n, width = log_probs.log_pterm.shape
    last = log_probs.n_actions[:, None]
    time = torch.arange(width, device=last.device)
    actions = torch.nn.functional.pad(log_probs.log_pf, (0, 1))
    stops = log_probs.log_pterm.gather(1, last).expand(n, width)
    chosen = torch.where(time < last, actions, stops)
    behaviour = torch.full((n, width), torch.nan)
    for row, item in zip(behaviour, batch, strict=True):
        k = len(item.action_ids)
        row[:k] = torch.as_tensor(item.behaviour.sampler_log_prob.copy())
        row[k] = item.behaviour.stop_log_prob
    return chosen, behaviour.to(chosen.device), time <= last


def evaluate_likelihood(log_likelihood: Float[Tensor, " batch"], rows: Int[Tensor, " batch"]) -> Evaluation:
    """sft: the mean negative log-likelihood of what is stored."""
    found = log_likelihood.detach()
    # There are no weights: what is stored is the target itself.
    return Evaluation(-log_likelihood.mean(), float(found.mean()), None, 1.0, (found - group_mean(found, rows)).abs())


def effective_sample_size(log_weights: Float[Tensor, " batch"], rows: Int[Tensor, " batch"]) -> float:
    """(Σw)² / Σw² over the number of weights, mean over queries; in 0..1 (Kish 1965, Survey Sampling)."""
    shares = []
    for row in rows.unique():
        own = log_weights[rows == row].double()
        log_size = 2 * own.logsumexp(0) - (2 * own).logsumexp(0)
        shares.append(float(log_size.exp()) / len(own))
    return sum(shares) / len(shares)


def queries_alone(batch: Sequence[Trajectory]) -> float:
    """Share of a batch's queries whose trajectories are all one and the same: they have no other to be compared with
    (for rewards TRL calls it `frac_reward_zero_std`)."""
    different: dict[str, set[str]] = {}
    for item in batch:
        different.setdefault(item.query_id, set()).add(item.id)
    return sum(len(ids) == 1 for ids in different.values()) / len(different)
