"""Who is let in: with a key whoever knows it; without one whoever is on this machine, and no web page."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.metrics import SERVED_PATHS, ServiceMetrics
from deploy.sampler.service.errors import ApiError

OPEN_PATHS = ("/health", "/metrics")
"""Need no key: whoever watches the service has none."""
MAX_BODY_BYTES = 4 * 2**20


class Guard:
    """Refuses before anything is read."""

    def __init__(self, app: ASGIApp, key: str | None, hosts: frozenset[str] | None) -> None:
        """`hosts` are the names under which the service may be asked; None: any.

        A page whose name was made to lead to this machine (DNS rebinding) asks under its own.
        """
        self._app, self._hosts = app, hosts
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with an error, or let the application answer."""
        if scope["type"] == "http":
            error = self._objection(scope)
            if error is not None:
                answer = JSONResponse(error.body, error.status, error.headers)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _objection(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts is not None and _name(host) not in self._hosts:
            message = f"Host = {host!r}: the service is asked under a name that is not its own; use http://127.0.0.1"
            return ApiError(403, message, kind="permission_error")
        if self._key is not None and scope["path"] not in OPEN_PATHS:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._key):
                message = "the API key is missing or wrong; send Authorization: Bearer KEY"
                return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if scope["method"] == "POST":
            return _objection_to_body(headers)
        return None


def _objection_to_body(headers: Mapping[bytes, bytes]) -> ApiError | None:
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower().decode("latin-1")
    if kind != "application/json":
        # Other kinds a web page may send anywhere without asking the browser.
        return ApiError(415, f"Content-Type = {kind!r}: is not what is read; send application/json")
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
        return too_large()
    return None


def too_large() -> ApiError:
    """Of bodies."""
    return ApiError(413, f"the body is larger than {MAX_BODY_BYTES} bytes; send less at a time")


def _name(host: str) -> str:
    """A Host header's name without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class Measured:
    """Counts answers, and times them to their last byte."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, path = time.monotonic(), scope["path"]
        label = path if path in SERVED_PATHS else "/v1/models" if path.startswith("/v1/models/") else "other"

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(label, str(message["status"])).inc()
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            self._metrics.request_time.labels(label).observe(time.monotonic() - began)
