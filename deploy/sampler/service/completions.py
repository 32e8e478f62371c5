"""OpenAI's completions: a request becomes draws, and what is drawn an answer, or a stream of its pieces."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from actors.drafting import Draft
from common.json_text import dumps
from common.tasks.base import TokenCodec
from common.trajectory import Query
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.service.errors import ApiError
from deploy.sampler.service.loop import Draw, Job, Update
from deploy.sampler.service.schemas import CompletionRequest, SamplingRequest
from deploy.sampler.service.text import TextStream, offsets


@dataclass(frozen=True)
class Asked:
    """A request with its queries; each of them makes `n` choices, one after the other."""

    request: SamplingRequest
    queries: Sequence[Query]
    trained: bool
    max_len: int | None
    echoed: Sequence[str] = ()
    """The prompts, where they are to come before the texts."""

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
                max_len=self.max_len,
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
        _of_text(run, prompt) if isinstance(prompt, str) else run.query_of_ids(prompt, "prompt") for prompt in prompts
    ]
    texts = [
        prompt if isinstance(prompt, str) else run.codec.decode_prompt(query.prompt_ids)
        for prompt, query in zip(prompts, queries, strict=True)
    ]
    return Asked(request, queries, trained, request.max_tokens, texts if request.echo else ())


def _of_text(run: FinishedRun, prompt: str) -> Query:
    if run.task.takes_prompts:
        return run.query(prompt, setting="prompt")
    # The task knows the rewards of its own problems alone, and a completion has none.
    return run.query_of_ids(run.task.prompt_ids(prompt), "prompt")


class Answer:
    """Turns one request's updates into OpenAI's objects."""

    kind = piece_kind = "text_completion"
    id_prefix = "cmpl"

    def __init__(self, asked: Asked, codec: TokenCodec, *, log_probs: bool) -> None:
        self._asked, self._codec, self._request, self._log_probs = asked, codec, asked.request, log_probs
        self._head = {"id": f"{self.id_prefix}-{uuid.uuid4().hex}", "created": int(time.time())}
        self._head["model"] = self._request.model
        self.completion_tokens = 0
        """Of what is done: those of its text."""

    # --- what differs between OpenAI's routes

    def said(self, text: str) -> dict[str, Any]:
        """A choice's whole text."""
        return {"text": text}

    def said_next(self, text: str, *, first: bool) -> dict[str, Any]:
        """More of a choice's text."""
        return {"text": text}

    def log_probs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """Of tokens of the text."""
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.log_prob for token in tokens],
            "top_logprobs": None,
            "text_offset": [token.offset for token in tokens],
        }

    # --- what they share

    async def whole(self, job: Job) -> dict[str, Any]:
        """All choices at once."""
        choices = [self._choice(update.draw, update.draft) async for update in job.updates() if update.done]
        choices.sort(key=lambda choice: choice["index"])
        return {**self._head, "object": self.kind, "choices": choices, "usage": self._usage()}

    def _choice(self, draw: int, draft: Draft) -> dict[str, Any]:
        self.completion_tokens += len(draft.inputs)
        return {
            "index": self._index(draw, draft),
            **self.said(self._echoed(draw) + self._codec.decode(draft.inputs)),
            "logprobs": self.log_probs(self._tokens(draft, 0, len(draft.inputs), 0)) if self._log_probs else None,
            **_end(draft),
        }

    async def pieces(self, job: Job) -> AsyncIterator[str]:
        """Server-sent events: the text of each choice as it grows."""
        growing: dict[int, _Growing] = {}
        include_usage = self._request.stream_options is not None and self._request.stream_options.include_usage
        head = {**self._head, "object": self.piece_kind, **({"usage": None} if include_usage else {})}
        try:
            async for update in job.updates():
                index = self._index(update.draw, update.draft)
                choice = growing.setdefault(index, _Growing(TextStream(self._codec)))
                piece = self._piece(choice, update)
                if piece is not None:
                    yield _event({**head, "choices": [{"index": index, **piece}]})
        except ApiError as error:
            yield _event(error.body)
            return
        if include_usage:
            yield _event({**head, "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _piece(self, choice: _Growing, update: Update) -> dict[str, Any] | None:
        """What is new of a choice; None while that is part of a character."""
        draft, first, offset = update.draft, not choice.told, choice.characters
        text = choice.stream.add(draft.inputs[choice.heard : update.inputs])
        choice.heard = update.inputs
        if update.done:
            text += choice.stream.end()
            self.completion_tokens += len(draft.inputs)
        elif not text:
            return None
        tokens = self._tokens(draft, choice.told, update.inputs, offset) if self._log_probs else []
        choice.characters, choice.told = offset + len(text), update.inputs
        return {
            **self.said_next(self._echoed(update.draw) * first + text, first=first),
            "logprobs": self.log_probs(tokens) if self._log_probs else None,
            **(_end(draft) if update.done else {"finish_reason": None}),
        }

    def _tokens(self, draft: Draft, start: int, end: int, offset: int) -> list[Token]:
        """Those of the text; what a tool wrote was not drawn and has no log-probability."""
        ids, own = draft.inputs[start:end], dict(zip(draft.positions, draft.log_probs, strict=False))
        places = offsets(self._codec, ids)
        return [
            Token(self._codec.token_text(token), own.get(start + i), offset + places[i]) for i, token in enumerate(ids)
        ]

    def _echoed(self, draw: int) -> str:
        return self._asked.echoed[draw] if self._asked.echoed else ""

    def _index(self, draw: int, draft: Draft) -> int:
        return draw * (self._request.n or 1) + draft.number

    def _usage(self) -> dict[str, int]:
        prompt, completion = self._asked.prompt_tokens, self.completion_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Token(NamedTuple):
    """One of a text's."""

    text: str
    log_prob: float | None
    offset: int


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
