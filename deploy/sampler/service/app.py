"""The routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from common.errors import UserError
from common.json_text import dumps
from common.log import get_logger
from common.metrics import ServiceMetrics
from common.trajectory import Query
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.service import chat, completions, posterior
from deploy.sampler.service.errors import ApiError, from_user_error, try_later
from deploy.sampler.service.guard import MAX_BODY_BYTES, Guard, Measured, too_large
from deploy.sampler.service.loop import Draw, EngineLoop, Job
from deploy.sampler.service.schemas import ChatRequest, CompletionRequest, PosteriorRequest, parse

T = TypeVar("T")
log = get_logger("service")
_PARAMETERS = {name for kind in (CompletionRequest, ChatRequest, PosteriorRequest) for name in kind.model_fields}
BASE = ":base"
"""Behind the run's name: its base model under the same mask."""


class Service:
    """A run, the engine that draws for it, and what is counted."""

    def __init__(
        self, run: FinishedRun, loop: EngineLoop, registry: CollectorRegistry, metrics: ServiceMetrics, stop_s: float
    ) -> None:
        self.run, self.loop, self.registry, self.metrics = run, loop, registry, metrics
        self._stop_s = stop_s
        name = run.config.run.name or run.folder.resolve().name
        self.models = {name: True, f"{name}{BASE}": False}
        """Whether each is the trained sampler."""
        # One at a time, and beside the event loop: a long prompt takes a while to encode.
        self._reader = ThreadPoolExecutor(1, "amortis-reader")

    def is_trained(self, model: str) -> bool:
        """Whether this model is the trained sampler, or the base model; raises ApiError if it is neither."""
        if model not in self.models:
            message = f"model = {model!r}: the model does not exist; give one of {', '.join(self.models)}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return self.models[model]

    async def read(self, function: Callable[[], T]) -> T:
        """What a function that uses the tokenizer gives."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, function)

    @asynccontextmanager
    async def alive(self, app: FastAPI) -> AsyncIterator[None]:
        """From the engine's start to its end."""
        self.loop.start()
        try:
            yield
        finally:
            await asyncio.to_thread(self.loop.stop, self._stop_s)
            self._reader.shutdown()

    # --- what is answered

    async def complete(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        body = parse(await _body(request), CompletionRequest)
        trained = self.is_trained(body.model)
        asked = await self.read(partial(completions.asked, self.run, body, trained))
        answer = completions.Answer(asked, self.run.codec, log_probs=body.logprobs is not None)
        return await self._answer(request, asked, answer)

    async def converse(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        body = parse(await _body(request), ChatRequest)
        trained = self.is_trained(body.model)
        asked = await self.read(partial(chat.asked, self.run, body, trained))
        return await self._answer(request, asked, chat.ChatAnswer(asked, self.run.codec, log_probs=bool(body.logprobs)))

    async def _answer(self, request: Request, asked: completions.Asked, answer: completions.Answer) -> Response:
        job = self.loop.submit(asked.draws())

        def close() -> None:
            self.loop.close(job)
            self._count(asked.prompt_tokens, answer.completion_tokens)

        if asked.request.stream:
            return EventStream(answer.pieces(job), close)
        try:
            return _json(await _unless_gone(request, answer.whole(job)))
        finally:
            close()

    async def estimate(self, request: Request) -> Response:
        """`POST /v1/posterior`."""
        body = parse(await _body(request), PosteriorRequest)
        model = body.model or next(iter(self.models))
        trained = self.is_trained(model)
        query: Query = await self.read(partial(posterior.query_of, self.run, body))
        draw: Draw = posterior.draw_of(body, query, trained, self.loop.max_samples)
        job: Job = self.loop.submit([draw])
        try:
            found = await _unless_gone(request, posterior.answer(self.run, body, query, model, job))
            self._count(len(query.prompt_ids), sum(len(draft.inputs) for draft in job.drafts))
            return _json(found)
        finally:
            self.loop.close(job)

    def _count(self, prompt_tokens: int, sampled_tokens: int) -> None:
        self.metrics.prompt_tokens.inc(prompt_tokens)
        self.metrics.sampled_tokens.inc(sampled_tokens)

    def describe(self, model: str) -> dict[str, Any]:
        """A model as OpenAI lists it."""
        self.is_trained(model)
        created = int(self.run.adapter_folder.stat().st_mtime)
        return {"id": model, "object": "model", "created": created, "owned_by": "amortis"}


def make_app(service: Service, key: str | None, hosts: frozenset[str] | None) -> FastAPI:
    """The application; its pages of documentation, which load scripts from elsewhere, are left out."""
    app = FastAPI(title="amortis", lifespan=service.alive, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, key=key, hosts=hosts)
    app.add_middleware(Measured, metrics=service.metrics)
    app.add_exception_handler(ApiError, _as_answer)
    app.add_exception_handler(UserError, _of_user_error)
    app.add_exception_handler(HTTPException, _of_route)
    app.add_exception_handler(Exception, _of_fault)

    def post(path: str, kind: type[BaseModel], answer: Callable[[Request], Awaitable[Response]]) -> None:
        schema = {"content": {"application/json": {"schema": kind.model_json_schema()}}, "required": True}
        app.add_api_route(path, answer, methods=["POST"], openapi_extra={"requestBody": schema}, response_model=None)

    post("/v1/completions", CompletionRequest, service.complete)
    post("/v1/chat/completions", ChatRequest, service.converse)
    post("/v1/posterior", PosteriorRequest, service.estimate)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [service.describe(model) for model in service.models]}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        return service.describe(model)

    @app.get("/health")
    async def health() -> dict[str, str]:
        if service.loop.trouble is not None:
            raise try_later(service.loop.trouble)
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)

    return app


class EventStream(StreamingResponse):
    """Server-sent events; `close` is called at their end, at whatever point the client leaves."""

    def __init__(self, events: AsyncIterator[str], close: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _body(request: Request) -> bytes:
    """What was sent, read no further than allowed."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise too_large()
    return b"".join(parts)


async def _unless_gone(request: Request, answer: Awaitable[T]) -> T:
    """The answer; one that nobody waits for any more is given up, with asyncio.CancelledError."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, watch = asyncio.ensure_future(answer), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone
        return work.result()
    finally:
        work.cancel()
        watch.cancel()


class ClientGone(ApiError):
    """Nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__(499, "the client left")


def _json(value: Any) -> Response:
    return Response(dumps(value), media_type="application/json")


async def _as_answer(request: Request, error: Any) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


async def _of_user_error(request: Request, error: Any) -> Response:
    if error.field in _PARAMETERS:
        return await _as_answer(request, from_user_error(error))
    # Of the run's own settings, as of data that the task reads for a row: it names places of this machine.
    log.error("%s", error)
    message = f"the service can't answer, as something is wrong with its {error.field}; its log says what"
    return await _as_answer(request, ApiError(500, message))


async def _of_route(request: Request, error: Any) -> Response:
    message = f"{request.method} {request.url.path}: {error.detail}; see docs/serving.md for what there is"
    return JSONResponse(ApiError(error.status_code, message).body, error.status_code, error.headers)


async def _of_fault(request: Request, error: Exception) -> Response:
    # The message may hold what is no client's business; it is in the log.
    return JSONResponse(ApiError(500, "the service failed at this request; its log says how").body, 500)
