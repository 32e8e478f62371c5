"""OpenAI's completions: a request becomes draws, and what is drawn an answer, or a stream of its pieces."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.drafting import Draft
from common.json_text import dumps
from common.tasks.base import TokenCodec
from common.trajectory import Query
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.service.errors import ApiError
from deploy.sampler.service.loop import Draw, Job
from deploy.sampler.service.schemas import CompletionRequest
from deploy.sampler.service.text import TextStream, offsets


@dataclass(frozen=True)
class Asked:
    """A request with its queries; each of them makes `n` choices, one after the other."""

    request: CompletionRequest
    queries: Sequence[Query]
    prompts: Sequence[str]
    """As they are echoed."""
    trained: bool

    def draws(self) -> list[Draw]:
        """What the engine is to do."""
        request = self.request
        return [
            Draw(
                query,
                request.n or 1,
                self.trained,
                temperature=1.0 if request.temperature is None else request.temperature,
                top_p=1.0 if request.top_p is None else request.top_p,
                max_len=request.max_tokens,
                seed=None if request.seed is None else f"{request.seed} {i}",
                follow=bool(request.stream),
            )
            for i, query in enumerate(self.queries)
        ]

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts, each once."""
        return sum(len(query.prompt_ids) for query in self.queries)


def asked(run: FinishedRun, request: CompletionRequest, trained: bool) -> Asked:
    """The request's queries. Raises UserError naming prompt."""
    given: Any = request.prompt
    prompts = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    queries = [
        run.query(prompt, setting="prompt") if isinstance(prompt, str) else run.query_of_ids(prompt, "prompt")
        for prompt in prompts
    ]
    texts = [
        prompt if isinstance(prompt, str) else run.codec.decode_prompt(query.prompt_ids)
        for prompt, query in zip(prompts, queries, strict=True)
    ]
    return Asked(request, queries, texts, trained)


class Answer:
    """Turns one request's updates into OpenAI's objects."""

    def __init__(self, asked: Asked, codec: TokenCodec) -> None:
        self._asked, self._codec, self._request = asked, codec, asked.request
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
        self._head["model"] = self._request.model
        self.completion_tokens = 0
        """Of what is done: those of its text."""

    async def whole(self, job: Job) -> dict[str, Any]:
        """All choices at once."""
        choices = [self._choice(update.draw, update.draft) async for update in job.updates() if update.done]
        return {**self._head, "choices": sorted(choices, key=lambda choice: choice["index"]), "usage": self._usage()}

    def _choice(self, draw: int, draft: Draft) -> dict[str, Any]:
        self.completion_tokens += len(draft.inputs)
        prompt = self._asked.prompts[draw] if self._request.echo else ""
        wanted = self._request.logprobs is not None
        return {
            "index": self._index(draw, draft),
            "text": prompt + self._codec.decode(draft.inputs),
            "logprobs": self._logprobs(draft, 0, len(draft.inputs), 0) if wanted else None,
            **_end(draft),
        }

    async def pieces(self, job: Job) -> AsyncIterator[str]:
        """Server-sent events: the text of each choice as it grows."""
        growing: dict[int, _Growing] = {}
        include_usage = self._request.stream_options is not None and self._request.stream_options.include_usage
        usage = {"usage": None} if include_usage else {}
        try:
            async for update in job.updates():
                index = self._index(update.draw, update.draft)
                first = index not in growing
                choice = growing.setdefault(index, _Growing(TextStream(self._codec)))
                piece = self._piece(choice, update.draft, update.inputs, update.done)
                if first and self._request.echo:
                    piece["text"] = self._asked.prompts[update.draw] + piece["text"]
                if piece["text"] or update.done:
                    yield _event({**self._head, "choices": [{"index": index, **piece}], **usage})
        except ApiError as error:
            yield _event(error.body)
            return
        if include_usage:
            yield _event({**self._head, "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _piece(self, choice: _Growing, draft: Draft, inputs: int, done: bool) -> dict[str, Any]:
        offset = choice.characters
        text = choice.stream.add(draft.inputs[choice.heard : inputs])
        choice.heard = inputs
        if done:
            text += choice.stream.end()
            self.completion_tokens += len(draft.inputs)
        found: dict[str, Any] = {"text": text, "logprobs": None, "finish_reason": None}
        if text or done:
            if self._request.logprobs is not None:
                found["logprobs"] = self._logprobs(draft, choice.told, inputs, offset)
            choice.characters, choice.told = offset + len(text), inputs
        return {**found, **(_end(draft) if done else {})}

    def _logprobs(self, draft: Draft, start: int, end: int, offset: int) -> dict[str, Any]:
        """Of tokens of the text; those that a tool wrote were not drawn and have none."""
        ids, own = draft.inputs[start:end], dict(zip(draft.positions, draft.log_probs, strict=False))
        return {
            "tokens": [self._codec.token_text(token) for token in ids],
            "token_logprobs": [own.get(place) for place in range(start, end)],
            "top_logprobs": None,
            "text_offset": [offset + place for place in offsets(self._codec, ids)],
        }

    def _index(self, draw: int, draft: Draft) -> int:
        return draw * (self._request.n or 1) + draft.number

    def _usage(self) -> dict[str, int]:
        prompt, completion = self._asked.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


@dataclass
class _Growing:
    """A choice of a stream."""

    stream: TextStream
    heard: int = 0
    """Tokens taken in."""
    told: int = 0
    """Tokens whose text was sent."""
    characters: int = 0


def _end(draft: Draft) -> dict[str, Any]:
    """Of what is done: besides OpenAI's own, what importance sampling needs."""
    return {
        "finish_reason": "length" if draft.cut else "stop",
        "token_ids": list(draft.actions),
        "log_q": draft.log_prob,
    }


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {dumps(value)}\n\n"
