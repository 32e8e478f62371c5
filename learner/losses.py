"""GFlowNet objectives: pure functions of tensors, no model inside.

Every loss takes a batch of trajectories, padded to the longest: `log_pf[b, t]` is the policy's log-probability of
action t, `log_pterm[b, t]` that of stopping at decision state t, `log_reward[b, t]` the log-reward of stopping there,
`n_actions[b]` = K. Whatever stands in the padding, NaN included, is ignored, and so is everything before `min_len`,
where the policy can't stop. All are 0 exactly where q(Z⊤|X) is the normalised reward, whatever policy drew the batch.

Balance is measured through h_t = log R_t − log_pterm_t − Σ_{i<t} log_pf_i: stopping at s_t with probability
exp(log_pterm_t) implies the log-flow log R_t − log_pterm_t there, and carried back to the start it implies log Z. A
policy is exact when h is one constant, log Z, over all states that can stop. Each objective penalises its spread:

  subtb    between all pairs of states of a trajectory (Hu et al. 2024, equation 3), weighted λ^(distance − 1)
  db       between neighbouring states: the same at λ = 0 (modified detailed balance, Deleu et al. 2022)
  tb       of the last state against a learned log Z (Malkin et al. 2022)
  vargrad  of the last state against the mean over trajectories of its query (Richter et al. 2020; TBA 2025)

The spread is squared, or penalised by another function that is 0 at 0 alone (`residual`; arXiv 2410.02596).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from beartype import BeartypeConf, beartype
from jaxtyping import Bool, Float, Int, jaxtyped
from torch import Tensor

Normalize = Literal["pairs", "trajectory"]
Residual = Literal["square", "huber", "linex", "shifted_cosh"]
EXPONENTIAL_UP_TO = 4.0
typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))


class Flows(NamedTuple):
    log_z: Float[Tensor, "batch states"]
    """h_t, the log Z that state t implies; 0 where it is not valid."""
    valid: Bool[Tensor, "batch states"]
    """States that can stop: min_len <= t <= K, and allowed to by `can_stop`."""


@jaxtyped(typechecker=typechecker)
def subtb_loss(
    log_pf: Float[Tensor, "batch steps"],
    log_pterm: Float[Tensor, "batch states"],
    log_reward: Float[Tensor, "batch states"],
    n_actions: Int[Tensor, " batch"],
    *,
    lam: float = 1.0,
    min_len: int = 0,
    can_stop: Bool[Tensor, "batch states"] | None = None,
    group: Int[Tensor, " batch"] | None = None,
    normalize: Normalize = "pairs",
    residual: Residual = "square",
) -> Float[Tensor, ""]:
    """Modified sub-trajectory balance: Σ λ^(j−i−1) (h_i − h_j)² / Σ λ^(j−i−1) over 0 <= i < j <= K.

    `normalize="pairs"` takes both sums over the whole batch (the paper's: a trajectory weighs as its number of pairs),
    `"trajectory"` divides within each trajectory and averages. With `min_len` > 0 the pairs start at state min_len, and
    h there is tied to its mean over the trajectories of the same query (`group`: query index of each; None: all of one
    query) as one more term a trajectory: no state before it implies a flow, and without this term nothing would train
    the actions before min_len. `can_stop` rules further states out, e.g. those where a grammar forbids ⊤; the first
    that is left then takes min_len's part. Raises ValueError for lengths or shapes that don't fit.
    """
    arguments = (log_pf, log_pterm, log_reward, n_actions, lam, min_len, can_stop, group)
    return _normalized(*_subtb_sums(*arguments, residual), normalize)


@jaxtyped(typechecker=typechecker)
def subtb_residuals(
    log_pf: Float[Tensor, "batch steps"],
    log_pterm: Float[Tensor, "batch states"],
    log_reward: Float[Tensor, "batch states"],
    n_actions: Int[Tensor, " batch"],
    *,
    lam: float = 1.0,
    min_len: int = 0,
    can_stop: Bool[Tensor, "batch states"] | None = None,
    group: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """How far each trajectory is from balance: the root of its weighted mean of (h_i − h_j)², in nats."""
    arguments = (log_pf, log_pterm, log_reward, n_actions, lam, min_len, can_stop, group)
    squares, weights = _subtb_sums(*arguments, "square")
    return (squares / weights.clamp_min(1)).clamp_min(0).sqrt()


@jaxtyped(typechecker=typechecker)
def db_loss(
    log_pf: Float[Tensor, "batch steps"],
    log_pterm: Float[Tensor, "batch states"],
    log_reward: Float[Tensor, "batch states"],
    n_actions: Int[Tensor, " batch"],
    *,
    min_len: int = 0,
    can_stop: Bool[Tensor, "batch states"] | None = None,
    group: Int[Tensor, " batch"] | None = None,
    normalize: Normalize = "pairs",
    residual: Residual = "square",
) -> Float[Tensor, ""]:
    """Modified detailed balance: mean (h_t − h_{t+1})² over neighbouring states, `subtb_loss` at λ = 0."""
    return subtb_loss(
        log_pf,
        log_pterm,
        log_reward,
        n_actions,
        lam=0.0,
        min_len=min_len,
        can_stop=can_stop,
        group=group,
        normalize=normalize,
        residual=residual,
    )


@jaxtyped(typechecker=typechecker)
def tb_loss(
    log_pf: Float[Tensor, "batch steps"],
    log_pterm: Float[Tensor, "batch states"],
    log_reward: Float[Tensor, "batch states"],
    n_actions: Int[Tensor, " batch"],
    *,
    log_z: Float[Tensor, " batch"] | Float[Tensor, ""],
    min_len: int = 0,
    residual: Residual = "square",
) -> Float[Tensor, ""]:
    """Trajectory balance: mean (log Z + log q(Z⊤|X) − log R_K)².

    `log_z` is that of each trajectory's query, or one for all.
    """
    check_lengths(log_pf, log_pterm, n_actions, min_len)
    return penalty(terminal_log_z(log_pf, log_pterm, log_reward, n_actions) - log_z, residual).mean()


@jaxtyped(typechecker=typechecker)
def vargrad_loss(
    log_pf: Float[Tensor, "batch steps"],
    log_pterm: Float[Tensor, "batch states"],
    log_reward: Float[Tensor, "batch states"],
    n_actions: Int[Tensor, " batch"],
    *,
    group: Int[Tensor, " batch"] | None = None,
    min_len: int = 0,
    residual: Residual = "square",
) -> Float[Tensor, ""]:
    """Trajectory balance with log Ẑ of a query = batch mean of log R_K − log q(Z⊤|X), its gradient stopped.

    `group` holds the query index of each trajectory; None takes all for one query's. A query with a single trajectory
    contributes nothing.
    """
    check_lengths(log_pf, log_pterm, n_actions, min_len)
    estimates = terminal_log_z(log_pf, log_pterm, log_reward, n_actions)
    return penalty(estimates - group_mean(estimates, group), residual).mean()


def terminal_log_z(
    log_pf: Float[Tensor, "batch steps"],
    log_pterm: Float[Tensor, "batch states"],
    log_reward: Float[Tensor, "batch states"],
    n_actions: Int[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """log R_K − log q(Z⊤|X) of each trajectory: an estimate of its query's log Z, exact for an exact policy."""
    flows = implied_log_z(log_pf, log_pterm, log_reward, n_actions, min_len=0)
    return flows.log_z.gather(1, n_actions.long()[:, None])[:, 0]


def _subtb_sums(
    log_pf: Tensor,
    log_pterm: Tensor,
    log_reward: Tensor,
    n_actions: Tensor,
    lam: float,
    min_len: int,
    can_stop: Tensor | None,
    group: Tensor | None,
    residual: Residual,
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Weighted penalties and weights of each trajectory's pairs of states, the term of its first state among them."""
    check_lengths(log_pf, log_pterm, n_actions, min_len)
    flows = implied_log_z(log_pf, log_pterm, log_reward, n_actions, min_len, can_stop)
    penalties, weights = _pair_sums(flows, lam) if residual == "square" else _pair_penalties(flows, lam, residual)
    late = ~flows.valid[:, 0]
    if bool(late.any()):
        # Of the first state that can stop; all trajectories share state 0 where that one can.
        first = flows.log_z.gather(1, flows.valid.int().argmax(1, keepdim=True))[:, 0]
        penalties = penalties + torch.where(late, penalty(first - group_mean(first, group), residual), 0)
        weights = weights + late
    return penalties, weights


def check_lengths(log_pf: Tensor, log_pterm: Tensor, n_actions: Tensor, min_len: int) -> None:
    steps, states = log_pf.shape[1], log_pterm.shape[1]
    if states != steps + 1:
        raise ValueError(f"log_pterm has {states} states for {steps} steps, expected {steps + 1}")
    if n_actions.numel() == 0:
        raise ValueError("the batch is empty")
    lowest, highest = int(n_actions.min()), int(n_actions.max())
    if lowest < min_len or highest > steps:
        raise ValueError(f"n_actions spans {lowest}..{highest}, outside of min_len = {min_len}..{steps} steps")


def implied_log_z(
    log_pf: Tensor,
    log_pterm: Tensor,
    log_reward: Tensor,
    n_actions: Tensor,
    min_len: int,
    can_stop: Tensor | None = None,
) -> Flows:
    """h_t at every state. Padding is replaced before any arithmetic, so neither it nor its gradient gets through."""
    time = torch.arange(log_pterm.shape[1], device=log_pterm.device)
    last = n_actions[:, None]
    valid = (time >= min_len) & (time <= last)
    if can_stop is not None:
        valid = valid & can_stop
    steps = torch.where(time[:-1] < last, log_pf, 0)
    # c_t, the log-probability of the first t actions.
    to_state = torch.nn.functional.pad(steps.cumsum(1), (1, 0))
    log_z = torch.where(valid, log_reward, 0) - torch.where(valid, log_pterm, 0) - to_state
    return Flows(torch.where(valid, log_z, 0), valid)


def _pair_sums(flows: Flows, lam: float) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Σ_{i<j} w_ij (h_i − h_j)² and Σ_{i<j} w_ij of each trajectory, w_ij = λ^(j−i−1).

    Written out, the first sum is Σ_i h_i² (W·1)_i − Σ_i h_i (W·h)_i with W symmetric: linear in the length for λ = 1,
    one matrix product shared by the batch otherwise. h is centred first: both terms are then of the residuals' size,
    and nothing cancels.
    """
    mask = flows.valid.to(flows.log_z.dtype)
    counts = mask.sum(1)
    centre = (flows.log_z * mask).sum(1) / counts
    h = (flows.log_z - centre.detach()[:, None]) * mask
    if lam == 1.0:
        return counts * h.square().sum(1) - h.sum(1).square(), counts * (counts - 1) / 2
    # Neighbours in this sense are states that can stop with none such between them.
    order = (~flows.valid).int().argsort(dim=1, stable=True)
    h, mask = h.gather(1, order), mask.gather(1, order)
    weights = _distance_weights(h.shape[1], lam, h)
    per_state = (mask @ weights) * mask
    return (h.square() * per_state).sum(1) - (h * (h @ weights)).sum(1), per_state.sum(1) / 2


def _pair_penalties(
    flows: Flows, lam: float, residual: Residual
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """As `_pair_sums` of g(h_j − h_i), pair by pair, batch × states² numbers: only the square can be summed apart."""
    order = (~flows.valid).int().argsort(dim=1, stable=True)
    h, mask = flows.log_z.gather(1, order), flows.valid.gather(1, order).to(flows.log_z.dtype)
    weights = _distance_weights(h.shape[1], lam, h).triu() * mask[:, :, None] * mask[:, None, :]
    later_less_earlier = torch.where(weights > 0, h[:, None, :] - h[:, :, None], 0)
    return (weights * penalty(later_less_earlier, residual)).sum((1, 2)), weights.sum((1, 2))


def penalty(gap: Tensor, residual: Residual) -> Tensor:
    """g of each gap t = log(target flow / policy's flow), in nats: 0 at 0 alone, convex, g''(0) = 2 as of the square.

    `huber` is linear from 1 nat on. `linex` is 2 (e^t − t − 1), which minds most what the policy misses; `shifted_cosh`
    is e^t + e^−t − 2, which minds what it misses and what it overrates (arXiv 2410.02596, section 4). Their
    exponentials go on linearly beyond `EXPONENTIAL_UP_TO` nats: before training a gap may be of tens of nats.
    """
    if residual == "square":
        return gap.square()
    if residual == "huber":
        return 2 * torch.nn.functional.huber_loss(gap, torch.zeros_like(gap), reduction="none")
    if residual == "linex":
        return 2 * (_exponential_less_1(gap) - gap)
    return _exponential_less_1(gap) + _exponential_less_1(-gap)


def _exponential_less_1(x: Tensor) -> Tensor:
    """e^x − 1, from the bound on its tangent there."""
    within = x.clamp_max(EXPONENTIAL_UP_TO)
    return within.expm1() + (x - within) * math.exp(EXPONENTIAL_UP_TO)


def _distance_weights(n_states: int, lam: float, like: Tensor) -> Float[Tensor, "states states"]:
    """λ^(|i−j|−1) off the diagonal, 0 on it; 0⁰ is 1, so λ = 0 leaves the neighbours."""
    time = torch.arange(n_states, device=like.device)
    distance = (time[:, None] - time[None, :]).abs()
    powers = torch.as_tensor(lam, dtype=like.dtype, device=like.device) ** (distance - 1).clamp_min(0)
    return torch.where(distance > 0, powers, 0)


def _normalized(penalties: Tensor, weights: Tensor, normalize: Normalize) -> Tensor:
    if normalize == "pairs":
        return penalties.sum() / weights.sum().clamp_min(1)
    counted = weights > 0
    return torch.where(counted, penalties / weights.clamp_min(1), 0).sum() / counted.sum().clamp_min(1)


def group_mean(values: Float[Tensor, " batch"], group: Tensor | None) -> Float[Tensor, " batch"]:
    """The mean of each value's group, its gradient stopped."""
    values = values.detach()
    if group is None:
        return values.mean().expand_as(values)
    _, index = group.unique(return_inverse=True)
    sums = torch.zeros(int(index.max()) + 1, dtype=values.dtype, device=values.device)
    means = sums.index_add(0, index, values) / torch.bincount(index)
    return means[index]
