"""OpenAI's chat completions, of runs whose prompts are conversations (`task.chat`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.service.completions import Answer, Asked, Token
from deploy.sampler.service.errors import refused
from deploy.sampler.service.schemas import ChatRequest


def asked(run: FinishedRun, request: ChatRequest, trained: bool) -> Asked:
    """The request's query: its messages, rendered as those that were trained on. Raises ApiError or UserError."""
    given = request.max_tokens, request.max_completion_tokens
    if None not in given and given[0] != given[1]:
        raise refused("max_tokens", given[0], f"is not max_completion_tokens = {given[1]}", "give one of the two")
    query = run.query_of_messages(request.messages, "messages")
    return Asked(request, [query], trained, given[0] or given[1])


class ChatAnswer(Answer):
    """The assistant's turn."""

    kind, piece_kind = "chat.completion", "chat.completion.chunk"
    id_prefix = "chatcmpl"

    def said(self, text: str) -> dict[str, Any]:
        """The whole turn."""
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def said_next(self, text: str, *, first: bool) -> dict[str, Any]:
        """More of it."""
        return {"delta": {**({"role": "assistant"} if first else {}), "content": text}}

    def log_probs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """Of tokens of the text; those that a tool wrote have none, for which OpenAI has no null here: left out."""
        drawn = [token for token in tokens if token.log_prob is not None]
        return {
            "content": [
                {
                    "token": token.text,
                    "logprob": token.log_prob,
                    "bytes": list(token.text.encode()),
                    "top_logprobs": [],
                }
                for token in drawn
            ],
            "refusal": None,
        }
