"""Losses of objectives that are there to be compared with: those of rewards to be maximised, and of other targets.

Each says where it ends. None but `alpha_dpg` ends at the normalised reward by itself, rloo at kl_coef 1 does.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, jaxtyped
from torch import Tensor

from learner.losses import check_lengths, group_mean, implied_log_z, terminal_log_z, typechecker

_DISCOUNT, _SHORTEST, _SHARPNESS = 0.99, 2, 5.0
"""Of RapTB: a target's weight falls as this per state before the end; prefixes from so many actions on; β of the soft
maximum."""


def reinforce_advantages(
    rewards: Float[Tensor, " batch"], group: Int[Tensor, " batch"], *, standardize: bool
) -> Float[Tensor, " batch"]:
    """Each reward against the others of its group: minus their mean (RLOO, Ahmadian et al. 2024), or standardised over
    the group (GRPO, Shao et al. 2024). A group of one has advantage 0."""
    rewards = rewards.detach()
    _, index = group.unique(return_inverse=True)
    counts = torch.bincount(index)[index]
    centred = rewards - group_mean(rewards, group)
    if standardize:
        return centred / (group_mean(centred.square(), group).sqrt() + 1e-4)
    return centred * counts / (counts - 1).clamp_min(1)


@jaxtyped(typechecker=typechecker)
def importance_weights(
    log_q: Float[Tensor, " batch"], log_behaviour: Float[Tensor, " batch"], *, cap: float
) -> Float[Tensor, " batch"]:
    """min(cap, q/b) of whole trajectories, without gradient: the policy's probability over that by which they were
    sampled (truncated importance sampling, Ionides 2008). 1 where nobody sampled them (NaN), as a seed."""
    log_ratio = torch.where(torch.isnan(log_behaviour), 0.0, log_q.detach() - log_behaviour)
    return log_ratio.exp().clamp_max(cap)


@jaxtyped(typechecker=typechecker)
def rloo_loss(
    log_q: Float[Tensor, " batch"],
    log_prior: Float[Tensor, " batch"],
    reward: Float[Tensor, " batch"],
    importance: Float[Tensor, " batch"],
    *,
    group: Int[Tensor, " batch"],
    kl_coef: float,
) -> Float[Tensor, ""]:
    """REINFORCE leave-one-out on r − β (log q(Z⊤|X) − log p(Z⊤|X)), whose mean is r − β KL(q ‖ p).

    At β = 1 the maximiser is the posterior p(Z⊤|X) e^r / Z; at β = 0 it is the best Z alone. What another policy than
    the present one drew counts by its `importance_weights`, 1 on-policy: without them what is worse than the mean would
    be made ever less likely, however rarely the policy still draws it.
    """
    regularised = reward - kl_coef * (log_q.detach() - log_prior)
    return -(reinforce_advantages(regularised, group, standardize=False) * importance * log_q).mean()


@jaxtyped(typechecker=typechecker)
def grpo_loss(
    log_pf: Float[Tensor, "batch states"],
    log_behaviour: Float[Tensor, "batch states"],
    valid: Bool[Tensor, "batch states"],
    log_prior: Float[Tensor, " batch"],
    reward: Float[Tensor, " batch"],
    *,
    group: Int[Tensor, " batch"],
    kl_coef: float,
    clip_ratio: float,
) -> Float[Tensor, ""]:
    """Group-relative policy optimisation with a clipped ratio a token, and β · ½ (log q − log p)² of the sequence.

    `log_pf` holds the policy's log-probability of each action and of stopping, `log_behaviour` that of the sampler, NaN
    where it is not known (the ratio is then 1). The square's gradient is that of KL(q ‖ p) on-policy.
    """
    behaviour = torch.where(torch.isnan(log_behaviour), log_pf.detach(), log_behaviour)
    ratio = torch.where(valid, log_pf - behaviour, 0).exp()
    advantage = reinforce_advantages(reward, group, standardize=True)[:, None]
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    gain = torch.where(valid, torch.minimum(ratio * advantage, clipped * advantage), 0)
    log_q = torch.where(valid, log_pf, 0).sum(1)
    divergence = 0.5 * (log_q - log_prior).square()
    return -(gain.sum(1) / valid.sum(1).clamp_min(1)).mean() + kl_coef * divergence.mean()


@jaxtyped(typechecker=typechecker)
def alpha_dpg_loss(
    log_q: Float[Tensor, " batch"],
    log_weights: Float[Tensor, " batch"],
    importance: Float[Tensor, " batch"],
    *,
    group: Int[Tensor, " batch"],
    alpha: float,
) -> Float[Tensor, ""]:
    """Distributional policy gradient of an α-divergence to p ∝ R (Go et al. 2023; Kruszewski et al. 2025), of
    `log_weights` = log R − log q without gradient.

    The pseudo-reward is ((p/q)^α − 1)/α less its mean over the query: α = 1 is that of KL(p ‖ q), which covers every
    mode, α = 0 that of KL(q ‖ p), log p/q. log Ẑ is the log-mean of a query's R/q, its own included, which bounds p/q
    by their number. It ends at p for every α, on-policy: elsewhere draws count by their `importance_weights`, but log Ẑ
    is of the draws as they come.
    """
    log_ratio = log_weights - _group_log_mean_exp(log_weights, group)
    gain = log_ratio if alpha == 0 else torch.expm1(alpha * log_ratio) / alpha
    return -((gain - group_mean(gain, group)) * importance * log_q).mean()


@jaxtyped(typechecker=typechecker)
def flowrl_loss(
    log_q: Float[Tensor, " batch"],
    log_prior: Float[Tensor, " batch"],
    reward: Float[Tensor, " batch"],
    n_decisions: Int[Tensor, " batch"],
    *,
    log_z: Float[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """FlowRL's (Zhu et al. 2025, arXiv 2509.15207): mean (log Z + (log q − log p)/n − r)², n the decisions of a
    trajectory, ⊤ among them.

    Where it is 0, q is p (e^r / Z)^n, the sharper the longer, and not p e^r / Z. Its importance weights are left out.
    """
    return (log_z + (log_q - log_prior) / n_decisions - reward).square().mean()


@jaxtyped(typechecker=typechecker)
def raptb_loss(
    log_pf: Float[Tensor, "batch steps"],
    log_pterm: Float[Tensor, "batch states"],
    log_reward: Float[Tensor, "batch states"],
    task_reward: Float[Tensor, "batch states"],
    n_actions: Int[Tensor, " batch"],
    *,
    log_z: Float[Tensor, " batch"],
    weight: float,
    min_len: int = 0,
    can_stop: Bool[Tensor, "batch states"] | None = None,
) -> Float[Tensor, ""]:
    """Rooted absorbed prefix trajectory balance (Wang et al. 2026, arXiv 2603.00454, section 3.4).

    Trajectory balance, and `weight` times the mean over a trajectory's prefixes of (h_0 − h_t)², with log R_t in h_t
    raised towards what its own continuation comes to: `task_reward`, log R without the prior, is replaced by its
    absorbed target, the mean of the maximum over the states from t on and of their soft maximum, discounted per state
    before the end. log P(⊤) has no gradient there, so that no prefix is taught when to stop.

    The raised prefixes ask for more than R allows them, so that trajectory balance and they are not 0 together: it does
    not end at the normalised R. The authors raise only prefixes that earn nothing at all, which their tasks have, and
    a log-likelihood never does: here each is raised.
    """
    check_lengths(log_pf, log_pterm, n_actions, min_len)
    anchor = (terminal_log_z(log_pf, log_pterm, log_reward, n_actions) - log_z).square()
    flows = implied_log_z(log_pf, log_pterm.detach(), log_reward, n_actions, min_len, can_stop)
    time = torch.arange(log_pterm.shape[1], device=log_pterm.device)
    root = flows.valid.int().argmax(1, keepdim=True)
    rooted = flows.valid & (time >= _SHORTEST) & (time > root)
    raised = torch.where(flows.valid, absorbed_targets(task_reward, flows.valid) - task_reward, 0)
    discount = _DISCOUNT ** (n_actions[:, None] - time).clamp_min(0)
    gaps = flows.log_z + discount * raised - flows.log_z.gather(1, root)
    prefixes = torch.where(rooted, gaps.square(), 0).sum(1) / rooted.sum(1).clamp_min(1)
    return (anchor + weight * prefixes).mean()


def absorbed_targets(
    task_reward: Float[Tensor, "batch states"], valid: Bool[Tensor, "batch states"]
) -> Float[Tensor, "batch states"]:
    """For each valid state the mean of max u_j and (1/β) log Σ exp(β u_j) over the valid j from it on; no gradient."""
    backwards = torch.where(valid, task_reward.detach(), -torch.inf).flip(1)
    highest = backwards.cummax(1).values
    soft = (_SHARPNESS * backwards).logcumsumexp(1) / _SHARPNESS
    return (0.5 * (highest + soft)).flip(1)


def _group_log_mean_exp(values: Float[Tensor, " batch"], group: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    found = torch.empty_like(values)
    for row in group.unique():
        own = group == row
        found[own] = values[own].logsumexp(0) - own.sum().log()
    return found
