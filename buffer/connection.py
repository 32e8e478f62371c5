"""Redis connections: retries, one-line errors, and the names of all keys."""

from __future__ import annotations

from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from common.config import RedisSection
from common.errors import UserError

MIN_REDIS = (6, 2)
_RETRIED = (RedisConnectionError, RedisTimeoutError)


class Keys:
    """Names of a run's keys. The braces make them one slot of a Redis Cluster."""

    def __init__(self, run: str) -> None:
        self.base = f"amortis:{{{run}}}:"
        self.buffer_queries = f"{self.base}buffer:queries"
        self.buffer_stats = f"{self.base}buffer:stats"
        self.buffer_prefix = f"{self.base}buffer:q:"
        self.query_index = f"{self.base}queries"
        self.quarantine = f"{self.base}quarantine"
        self.adapter_latest = f"{self.base}adapter:latest"
        self.adapter_versions = f"{self.base}adapter:versions"
        self.control = f"{self.base}control"
        self.learner = f"{self.base}learner"
        self.actors = f"{self.base}actors"

    def adapter(self, version: int) -> str:
        """The hash that holds a version's files and manifest."""
        return f"{self.base}adapter:v{version}"


def connect(section: RedisSection, url: str | None = None) -> Redis:
    """A client that reconnects with exponential back-off; raises UserError if the server can't be used."""
    configured = section.url.get_secret_value() if section.url else None
    address = url or configured
    if address is None:
        raise ValueError("no Redis URL: the launcher starts an embedded server and hands its URL on")
    try:
        client = Redis.from_url(
            address,
            socket_timeout=section.timeout_s,
            socket_connect_timeout=section.timeout_s,
            retry=Retry(ExponentialBackoff(cap=2.0, base=0.05), section.retries),
            retry_on_error=list(_RETRIED),
        )
    except ValueError as error:
        raise UserError("redis.url", _safe(address), str(error), "write redis://HOST:PORT/DB") from error
    _check_server(client, address)
    return client


def _check_server(client: Redis, address: str) -> None:
    try:
        info: dict[str, Any] = client.info("server")
    except RedisError as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise UserError(
            "redis.url",
            _safe(address),
            f"no Redis server can be reached there ({reason})",
            "start it, mend the URL, or leave redis.url out for an embedded server",
        ) from error
    version = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if version < MIN_REDIS:
        raise UserError("redis.url", _safe(address), f"runs Redis {info['redis_version']}", "use Redis 6.2 or newer")


def _safe(url: str) -> str:
    """The URL without user and password."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(unreadable URL)"
    return f"{parts.scheme}://{host}{port}{parts.path}"


def load_script(client: Redis, name: str) -> Any:
    """A registered Lua script of `buffer/scripts`."""
    return client.register_script(files("buffer").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8"))
