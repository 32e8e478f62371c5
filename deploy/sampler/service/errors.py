"""What went wrong with a request, in the shape that OpenAI's clients read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from common.errors import UserError

RETRY_AFTER_S = 5
"""What a client is told to wait where it may work later."""


class ApiError(Exception):
    """An answer that is none: its status, and what to do."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def without_folders(text: str) -> str:
    """A message about files of this machine, as a client may read it: their names alone."""
    return re.sub(r"(?<![\w.])/(?:[^\s/:'\"]+/)+", "", text)


def refused(param: str, value: object, problem: str, remedy: str) -> ApiError:
    """A parameter that can't be honoured."""
    return from_user_error(UserError(param, value, problem, remedy))


def unreliable(error: UserError) -> ApiError:
    """An estimate that means nothing: the request is right, and what was drawn for it doesn't carry an answer."""
    return ApiError(422, str(error), param=error.field, code="unreliable_estimate")


def from_user_error(error: UserError) -> ApiError:
    """One line naming parameter, value and remedy."""
    return ApiError(400, str(error), param=error.field)


def try_later(message: str, status: int = 503) -> ApiError:
    """What may work in a moment."""
    kind = "rate_limit_error" if status == 429 else None
    return ApiError(status, message, kind=kind, headers={"Retry-After": str(RETRY_AFTER_S)})
