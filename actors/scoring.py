"""What the reference must read to score a trajectory, and the reward components that follow. No engine inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.reward import FloatArray
from common.trajectory import Query


@dataclass(frozen=True)
class ScoreText:
    """A text for the reference; the log-probabilities of its tokens from index `first` on are wanted."""

    ids: tuple[int, ...]
    first: int


@dataclass(frozen=True)
class TokenScores:
    """What the reference says of a text, one entry a token from `first` on, in nats."""

    actual: NDArray[np.float64]
    """Log-probability of the token that stands there."""
    terminator: NDArray[np.float64]
    """Log-probability of ⊤ at the same place."""


@dataclass(frozen=True)
class Rollout:
    """A finished sample with its context, before it is scored."""

    query: Query
    action_ids: NDArray[np.int32]
    input_ids: NDArray[np.int32]
    action_positions: NDArray[np.int32]

    @property
    def state_ends(self) -> NDArray[np.int64]:
        """How many of `input_ids` each decision state s_0..s_K has read; shape (K+1,)."""
        return np.append(self.action_positions.astype(np.int64), len(self.input_ids))


def texts_to_score(rollout: Rollout, terminator_id: int, min_len: int) -> list[ScoreText]:
    """One pass over X Z ⊤ gives the prior at every state; with Y, one short text more for each state that can stop."""
    prompt, inputs = rollout.query.prompt_ids.tolist(), rollout.input_ids.tolist()
    texts = [ScoreText((*prompt, *inputs, terminator_id), first=len(prompt))]
    target = rollout.query.target_ids.tolist()
    if target:
        for end in rollout.state_ends[min_len:]:
            head = (*prompt, *inputs[:end], terminator_id)
            texts.append(ScoreText((*head, *target), first=len(head)))
    return texts


def reward_components(
    rollout: Rollout, scores: Sequence[TokenScores], *, terminator_in_reward: bool, min_len: int
) -> tuple[FloatArray, FloatArray]:
    """log_prior and log_likelihood at every decision state, both (K+1,), from the scores of `texts_to_score`.

    Tokens that tools inserted are context: they don't count. States before min_len have log-likelihood 0, as the policy
    can't stop there.
    """
    prior_scores, *target_scores = scores
    actions = prior_scores.actual[rollout.action_positions]
    log_prior = np.concatenate([[0.0], np.cumsum(actions)])
    if terminator_in_reward:
        log_prior = log_prior + prior_scores.terminator[rollout.state_ends]
    log_likelihood = np.zeros(len(log_prior))
    for t, found in enumerate(target_scores, start=min_len):
        log_likelihood[t] = found.actual.sum()
    return log_prior.astype(np.float32), log_likelihood.astype(np.float32)
