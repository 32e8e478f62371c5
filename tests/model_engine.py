"""A stand-in for vLLM's engine on a tiny model: transformers, one token a step for all requests, contexts remembered.

It draws and scores what `actors.engine.Engine` would, in a fraction of the time where the same few texts come up again
and again, as they do in a space that can be enumerated.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from actors.engine import Sampled
from actors.scoring import Scored, ScoreText, TokenScores
from common.action_space import ActionSpace

Context = tuple[int, ...]


@dataclass
class _Request:
    prompt: Context
    taken: list[int]
    limit: int
    """Actions in all at which it is cut off."""
    model: int
    """0: the base model; 1: that through the adapter."""
    drawn: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)


class ModelEngine:
    """Under one mask; whatever is drawn through an adapter is drawn from `adapted`."""

    def __init__(self, model: Any, space: ActionSpace, seed: int = 0, adapted: Any = None) -> None:
        self.models, self.space, self._random = (model, adapted), space, np.random.default_rng(seed)
        self._known: tuple[dict[Context, NDArray[np.float64]], ...] = ({}, {})
        """By the model, then by the context."""
        self._sampling: dict[str, _Request] = {}
        self._scoring: dict[str, ScoreText] = {}

    @property
    def busy(self) -> bool:
        return bool(self._sampling or self._scoring)

    def submit_sample(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        temperature: float,
        adapter: object,
        taken: Sequence[int] = (),
        *,
        max_len: int | None = None,
        **others: Any,
    ) -> None:
        assert temperature == 1.0 and others["top_p"] == 1.0 and not others["follow"]
        limit = min(self.space.max_len, max_len or self.space.max_len)
        assert len(taken) < limit, "nothing is left to draw"
        self._sampling[request_id] = _Request(tuple(prompt_ids), list(taken), limit, int(adapter is not None))

    def submit_score(self, request_id: str, text: ScoreText) -> None:
        self._scoring[request_id] = text

    def abort(self, request_ids: Collection[str]) -> None:
        for request_id in request_ids:
            self._sampling.pop(request_id, None)
            self._scoring.pop(request_id, None)

    def step(self) -> list[Sampled | Scored]:
        scoring, self._scoring = self._scoring, {}
        wanted = [text.ids[:i] for text in scoring.values() for i in range(text.first, len(text.ids))]
        for model in (0, 1):
            drawn = [self._context(request) for request in self._sampling.values() if request.model == model]
            self._learn(model, [*drawn, *(wanted if model == 0 else ())])
        results: list[Sampled | Scored] = [Scored(key, self._scores(text)) for key, text in scoring.items()]
        for request_id, request in list(self._sampling.items()):
            found = self._draw(request_id, request)
            if found is not None:
                del self._sampling[request_id]
                results.append(found)
        return results

    @staticmethod
    def _context(request: _Request) -> Context:
        return (*request.prompt, *request.drawn)

    def _scores(self, text: ScoreText) -> TokenScores:
        rows = [self._known[0][text.ids[:i]] for i in range(text.first, len(text.ids))]
        actual = [row[token] for row, token in zip(rows, text.ids[text.first :], strict=True)]
        return TokenScores(np.array(actual), np.array([row[self.space.terminator_id] for row in rows]))

    def _draw(self, request_id: str, request: _Request) -> Sampled | None:
        """The next token, and the request's end if it is one."""
        allowed = self.space.allowed_array[self.space.mask([*request.taken, *request.drawn])]
        log_q = self._known[request.model][self._context(request)][allowed]
        log_q = log_q - np.logaddexp.reduce(log_q)
        # By the cumulative sum, which is quicker than `choice`.
        place = int(np.searchsorted(np.cumsum(np.exp(log_q)), self._random.random()))
        place = min(place, len(allowed) - 1)
        token, value = int(allowed[place]), float(log_q[place])
        if token == self.space.terminator_id:
            return self._sampled(request_id, request, value)
        request.drawn.append(token)
        request.log_probs.append(value)
        full = len(request.taken) + len(request.drawn) == request.limit
        return self._sampled(request_id, request, None) if full or token in self.space.trigger_ids else None

    @staticmethod
    def _sampled(request_id: str, request: _Request, stop_log_prob: float | None) -> Sampled:
        drawn, log_probs = np.array(request.drawn, np.int32), np.array(request.log_probs, np.float32)
        return Sampled(request_id, drawn, log_probs, stop_log_prob)

    def _learn(self, model: int, contexts: Sequence[Context]) -> None:
        """The next token's log-probabilities behind each context, those of one length in one pass."""
        known = self._known[model]
        missing = {context for context in contexts if context not in known}
        for length in {len(context) for context in missing}:
            batch = [context for context in missing if len(context) == length]
            with torch.no_grad():
                logits = self.models[model](torch.tensor(batch)).logits[:, -1]
            for context, row in zip(batch, logits.double().log_softmax(-1).numpy(), strict=True):
                known[context] = row
