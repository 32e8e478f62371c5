"""What the reference must read to score a trajectory, and the reward components that follow. No engine inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.reward import FloatArray
from common.trajectory import Query, ToolEvent


@dataclass(frozen=True)
class ScoreText:
    """A text for the reference; the log-probabilities of its tokens from index `first` on are wanted."""

    ids: tuple[int, ...]
    first: int
    of_query: bool = False
    """Whether it is the same for all rationales of a query."""


@dataclass(frozen=True)
class TokenScores:
    """What the reference says of a text, one entry a token from `first` on, in nats."""

    actual: NDArray[np.float64]
    """Log-probability of the token that stands there."""
    terminator: NDArray[np.float64]
    """Log-probability of ⊤ at the same place."""


@dataclass(frozen=True)
class Scored:
    """A scored text."""

    request_id: str
    scores: TokenScores


@dataclass(frozen=True)
class Rollout:
    """A finished sample with its context, before it is scored."""

    query: Query
    action_ids: NDArray[np.int32]
    input_ids: NDArray[np.int32]
    action_positions: NDArray[np.int32]
    tool_events: tuple[ToolEvent, ...] = ()

    @property
    def state_ends(self) -> NDArray[np.int64]:
        """How many of `input_ids` each decision state s_0..s_K has read; shape (K+1,)."""
        return np.append(self.action_positions.astype(np.int64), len(self.input_ids))


@dataclass(frozen=True)
class RewardComponents:
    """What the reference gives at every decision state; arrays of shape (K+1,)."""

    log_prior: FloatArray
    log_prefix: FloatArray
    """log p(z₁ … z_t|X) without ⊤ behind it."""
    log_likelihood: FloatArray
    misleads: NDArray[np.bool_]
    """Whether stopping there makes an alternative target likelier than the query's own."""
    log_alternatives: FloatArray
    """log p of each alternative target at the last state; shape (alternatives,)."""
    log_choices: FloatArray
    """log p of all targets there as the model has them, then behind the content-free text; shape (2 targets,), empty
    where there is none."""


def states_to_score(stoppable: NDArray[np.bool_], every: int | None) -> NDArray[np.bool_]:
    """Of the states where the policy can stop the first, every so many behind it, and the last of all, which is always
    wanted; None: that one alone. Both masks have shape (K+1,)."""
    wanted = np.zeros(len(stoppable), bool)
    if every is not None:
        wanted[np.flatnonzero(stoppable)[::every]] = True
    wanted[-1] = True
    return wanted


def texts_to_score(
    rollout: Rollout,
    terminator_id: int,
    wanted: NDArray[np.bool_],
    *,
    terminator_in_text: bool,
) -> list[ScoreText]:
    """One pass over X Z ⊤ Y gives the prior at every state and the likelihood at the last.

    With Y, each other state that is wanted has a short text of its own. Alternative targets follow the target of their
    state, one text each. Without `terminator_in_text` the target follows Z at once, as ⊤ is then the policy's stop sign
    alone. The last state is always wanted.

    Where the query has a content-free text, further texts have that one in place of X Z, with each target behind it.
    """
    prompt, inputs = rollout.query.scored_prompt_ids.tolist(), rollout.input_ids.tolist()
    targets = _targets(rollout.query)
    stop = (terminator_id,) if terminator_in_text else ()
    if not targets:
        return [ScoreText((*prompt, *inputs, terminator_id), first=len(prompt))]
    *ends, last = rollout.state_ends[wanted].tolist()
    texts = [ScoreText((*prompt, *inputs, *stop, *targets[0]), first=len(prompt))]
    for end, wanted_targets in [*((end, targets) for end in ends), (last, targets[1:])]:
        head = (*prompt, *inputs[:end], *stop)
        texts += [ScoreText((*head, *target), first=len(head)) for target in wanted_targets]
    content_free = rollout.query.content_free_ids.tolist()
    if content_free:
        head = (*content_free, *stop)
        texts += [ScoreText((*head, *target), first=len(head), of_query=True) for target in targets]
    return texts


def reward_components(
    rollout: Rollout,
    scores: Sequence[TokenScores],
    *,
    terminator_in_reward: bool,
    stoppable: NDArray[np.bool_],
    wanted: NDArray[np.bool_],
    calibrated: bool = False,
) -> RewardComponents:
    """The components at every decision state, from the scores of `texts_to_score`.

    Tokens that tools inserted are context: they don't count. The log-likelihood is 0 where the policy can't
    stop, and NaN where it can but nobody asked; both masks have shape (K+1,). Where it is `calibrated` it is less
    what the target has more than the query's least likely one behind the content-free text (Zhao et al. 2021):
    log p(Y|XZ⊤) − log p(Y|X₀Z₀⊤) + min over Y' of log p(Y'|X₀Z₀⊤), which is still below 0.
    """
    whole, *target_scores = scores
    targets = _targets(rollout.query)
    log_prior = log_prefix = np.concatenate([[0.0], np.cumsum(whole.actual[rollout.action_positions])])
    if terminator_in_reward:
        log_prior = log_prefix + whole.terminator[rollout.state_ends]
    log_likelihood, misleads = np.zeros(len(log_prior)), np.zeros(len(log_prior), bool)
    others, choices = np.zeros(0), np.zeros(0)
    if targets:
        log_likelihood[stoppable & ~wanted] = np.nan
        # The last state's target ends the first text.
        sums = [float(found.actual.sum()) for found in target_scores]
        sums.insert(len(targets) * (int(wanted.sum()) - 1), float(whole.actual[-len(targets[0]) :].sum()))
        table, content_free = np.split(np.reshape(sums, (-1, len(targets))), [int(wanted.sum())])
        if len(content_free):
            choices = np.concatenate([table[-1], content_free[0]])
        if calibrated:
            table = table - content_free + content_free.min()
        log_likelihood[wanted], misleads[wanted] = table[:, 0], (table[:, 1:] > table[:, :1]).any(axis=1)
        others = table[-1, 1:]
    prior, prefix, likelihood = (each.astype(np.float32) for each in (log_prior, log_prefix, log_likelihood))
    return RewardComponents(prior, prefix, likelihood, misleads, others.astype(np.float32), choices.astype(np.float32))


def values_at_states(values: Sequence[float], *, stoppable: NDArray[np.bool_], wanted: NDArray[np.bool_]) -> FloatArray:
    """What a reward of the user's own gives at every decision state, from its values at those that are wanted: like the
    log-likelihood 0 where the policy can't stop, and NaN where it can but nobody asked; shape (K+1,)."""
    found = np.where(stoppable, np.nan, 0.0)
    found[wanted] = values
    return found.astype(np.float32)


def _targets(query: Query) -> list[list[int]]:
    """The target, then its alternatives; none without a target."""
    return [ids.tolist() for ids in (query.target_ids, *query.alternatives)] if len(query.target_ids) else []
