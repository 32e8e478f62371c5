"""The policy's token mask: which tokens it may emit at each decision state, and when it may or must stop.

The same object masks the sampler's logits, inside vLLM, and the learner's, so both sides speak of the same
distribution.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from common.errors import UserError
from common.grammar import Grammar


class ActionSpace(BaseModel):
    """Allowed tokens, the terminator, and the bounds on the number of actions.

    At decision state t (after t actions) the policy may emit any allowed token if t < max_len, and the
    terminator if t >= min_len; at t = max_len the terminator is the only choice, with log-probability 0.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    vocab_size: int
    terminator_id: int
    allowed_ids: tuple[int, ...] | None = None
    """Allowed tokens with the terminator among them; None allows the whole vocabulary."""
    min_len: int = 0
    max_len: int
    trigger_ids: tuple[int, ...] = ()
    """Allowed tokens after which a tool is asked what to insert."""
    grammar: Grammar | None = None
    """What may follow what; it knows min_len and max_len too."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_len < 1:
            raise UserError("task.max_len", self.max_len, "no action fits", "give at least 1")
        if not 0 <= self.min_len <= self.max_len:
            raise UserError("task.min_len", self.min_len, "is not within 0..max_len", f"give 0 to {self.max_len}")
        if not 0 <= self.terminator_id < self.vocab_size:
            raise UserError(
                "task.terminator",
                self.terminator_id,
                f"is no token of the model's {self.vocab_size}",
                "choose a terminator that the tokenizer knows as one token",
            )
        if self.allowed_ids is not None:
            self._check_allowed(self.allowed_ids)
        return self

    def _check_allowed(self, allowed: tuple[int, ...]) -> None:
        if self.terminator_id not in allowed:
            raise UserError(
                "task.allowed_characters",
                None,
                f"the mask forbids the terminator (token {self.terminator_id}), so no trajectory could end",
                "allow the terminator's characters, or choose another task.terminator",
            )
        if len(set(allowed)) != len(allowed) or min(allowed) < 0 or max(allowed) >= self.vocab_size:
            raise UserError(
                "task.allowed_characters",
                None,
                f"token ids repeat or lie outside 0..{self.vocab_size - 1}",
                "give each allowed token once, from this model's vocabulary",
            )
        if not set(self.trigger_ids) <= set(allowed) - {self.terminator_id}:
            raise UserError(
                "task.tool.trigger", None, "is masked out, or ends the rationale", "allow the trigger's characters"
            )
        if len(allowed) < 2:
            raise UserError(
                "task.allowed_characters", None, "allows nothing but the terminator", "allow at least one other token"
            )

    @cached_property
    def allowed_array(self) -> NDArray[np.int64]:
        """Allowed token ids in increasing order, terminator included; shape (n_allowed,)."""
        ids = range(self.vocab_size) if self.allowed_ids is None else sorted(self.allowed_ids)
        return np.asarray(ids, dtype=np.int64)

    @cached_property
    def _allowed_set(self) -> Collection[int]:
        """To look single tokens up in."""
        return range(self.vocab_size) if self.allowed_ids is None else frozenset(self.allowed_ids)

    def why_invalid(self, action_ids: NDArray[np.int32]) -> str | None:
        """Why these actions can't come from this policy, or None if they can."""
        if not self.min_len <= len(action_ids) <= self.max_len:
            return f"{len(action_ids)} actions, allowed are {self.min_len}..{self.max_len}"
        if (action_ids == self.terminator_id).any():
            return "the terminator stands among the actions"
        if self.grammar is not None:
            return None if self.grammar.accepts(action_ids) else "the grammar forbids them"
        foreign = sorted({token for token in action_ids.tolist() if token not in self._allowed_set})
        return f"forbidden tokens {foreign[:5]}" if foreign else None

    def stoppable(self, action_ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """At which of the decision states s_0..s_K the policy may stop, shape (K+1,)."""
        if self.grammar is not None:
            return self.grammar.stoppable(action_ids)
        return np.arange(len(action_ids) + 1) >= self.min_len

    def mask(self, action_ids: Sequence[int]) -> NDArray[np.bool_]:
        """Which of `allowed_array` may follow these actions, shape (n_allowed,)."""
        t = len(action_ids)
        if self.grammar is not None:
            return self.grammar.mask(action_ids)
        stop = self.allowed_array == self.terminator_id
        return (t < self.max_len) & ~stop | (t >= self.min_len) & stop
