"""Trajectories as text for people: on a terminal, in a tracker, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.reward import RewardWeights
from common.tasks.base import TokenCodec
from common.trajectory import Query, Trajectory


def shortened(text: str, most: int) -> str:
    """The end of a long text: where a rationale goes on from."""
    return text if len(text) <= most else f"…{text[len(text) - most + 1 :]}"


def as_row(item: Trajectory, query: Query, codec: TokenCodec, weights: RewardWeights) -> dict[str, Any]:
    """Prompt, Z with what tools wrote, log R in all and by component as it is stored, untempered and unweighted."""
    return {
        "prompt": codec.decode_prompt(query.prompt_ids),
        "text": codec.decode(item.input_ids),
        "log_r": float(item.log_reward(weights)[-1]),
        "log_prior": float(item.log_prior[-1]),
        "log_likelihood": float(item.log_likelihood[-1]),
        "log_constraint": float(item.log_constraint[-1]),
        "adapter_version": item.behaviour.adapter_version,
        "source": item.source,
    }


def as_rows(
    items: Sequence[Trajectory], queries: dict[str, Query], codec: TokenCodec, weights: RewardWeights
) -> list[dict[str, Any]]:
    """A row each, in their order."""
    return [as_row(item, queries[item.query_id], codec, weights) for item in items]
