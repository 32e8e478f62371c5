"""Redis connections: one server, Sentinel or Cluster behind one call, retries, one-line errors, and all keys' names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from redis import Redis, Sentinel
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    MovedError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from common.config import RedisSection
from common.errors import UserError

MIN_REDIS = (6, 2)
Client: TypeAlias = "Redis | RedisCluster"
LOST = (RedisConnectionError, RedisTimeoutError)
MOVING = (ClusterDownError, MasterDownError, MovedError, ReadOnlyError, TryAgainError, RedisClusterException)
"""What a fail-over answers until it is over."""
_SENTINEL = "redis+sentinel"
_HOW = (
    "write redis://HOST:PORT/DB, rediss://… for TLS, or redis+sentinel://HOST:PORT,HOST:PORT/NAME/DB; "
    "/, # and ? in a password as %2F, %23 and %3F"
)


class ShardKeys:
    """Names of the keys of one shard of the buffer: one slot, so that one script can change them together."""

    def __init__(self, run: str, index: int) -> None:
        self.prefix = f"amortis:{{{run}:{index}}}:buffer:"
        self.stats = f"{self.prefix}stats"
        self.queries = f"{self.prefix}queries"

    def of_query(self, query_id: str, part: str) -> str:
        """A query's `items`, `priority`, `order`, `version` or `loss`."""
        return f"{self.prefix}q:{query_id}:{part}"


class Keys:
    """Names of a run's keys. The braces make them one slot of a Redis Cluster; each shard of the buffer has its own."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.base = f"amortis:{{{run}}}:"
        self.buffer_meta = f"{self.base}buffer:meta"
        self.buffer_weights = f"{self.base}buffer:weights"
        self.query_index = f"{self.base}queries"
        self.nothing = f"{self.base}nothing"
        self.starts = f"{self.base}starts"
        self.quarantine = f"{self.base}quarantine"
        self.quarantine_count = f"{self.base}quarantine:count"
        self.seeds = f"{self.base}seeds"
        self.seeds_left = f"{self.base}seeds-left"
        self.adapter_latest = f"{self.base}adapter:latest"
        self.adapter_versions = f"{self.base}adapter:versions"
        self.adapter_sha256s = f"{self.base}adapter:sha256s"
        self.adapter_pinned = f"{self.base}adapter:pinned"
        self.adapter_prefix = f"{self.base}adapter:v"
        self.evaluation = f"{self.base}evaluation"
        self.evaluation_lease = f"{self.base}evaluation:lease"
        self.evaluation_drawn = f"{self.base}evaluation:drawn"
        self.evaluation_figures = f"{self.base}evaluation:figures"
        self.evaluation_queries = f"{self.base}evaluation:queries"
        self.control = f"{self.base}control"
        self.learner = f"{self.base}learner"
        self.actors = f"{self.base}actors"
        self.processes = f"{self.base}processes"
        self.tokens = f"{self.base}tokens"
        self.config = f"{self.base}config"
        self.logs = f"{self.base}logs"
        # None of the keys that are deleted with the run's.
        self.claim = f"amortis:claim:{{{run}}}"

    def adapter(self, version: int) -> str:
        """The hash that holds a version's files and manifest."""
        return f"{self.adapter_prefix}{version}"

    def shard(self, index: int) -> ShardKeys:
        """The names of one shard of the buffer."""
        return ShardKeys(self.run, index)

    def seeds_of(self, actor_id: str) -> str:
        """Seeds that an actor has taken and not yet pushed."""
        return f"{self.seeds}:{actor_id}"

    @property
    def patterns(self) -> tuple[str, str]:
        """What SCAN matches all of the run's keys with."""
        return f"{self.base}*", f"amortis:{{{self.run}:*"


def forget(client: Client, keys: Keys) -> None:
    """Delete everything that is kept of a run."""
    for pattern in keys.patterns:
        delete_matching(client, pattern)


def delete_matching(client: Client, pattern: str) -> None:
    """Delete the keys that SCAN matches, on all servers."""
    for key in client.scan_iter(match=pattern, count=1_000):
        client.unlink(key)


def connect(section: RedisSection, url: str | None = None) -> Client:
    """A client that reconnects with exponential back-off and follows fail-overs.

    A URL of any node of a Redis Cluster gives a cluster client. Raises UserError if the server can't be used.
    """
    configured = section.url.get_secret_value() if section.url else None
    address = url or configured
    if address is None:
        raise ValueError("no Redis URL: the launcher starts an embedded server and hands its URL on")
    options: dict[str, Any] = {
        "socket_timeout": section.timeout_s,
        "socket_connect_timeout": section.timeout_s,
        "retry": retry(section),
    }
    try:
        client = _sentinel_client(address, options) if address.startswith(f"{_SENTINEL}://") else None
        client = client or Redis.from_url(address, retry_on_error=[*LOST, ReadOnlyError], **options)
    except (ValueError, TypeError) as error:
        # What the parser says may hold a part of the password.
        raise UserError("redis.url", _safe(address), "can't be read", _HOW) from error
    if not _check_server(client, address):
        return client
    client.close()
    del options["retry"]
    return PatientCluster.from_url(address, patience=retry(section), cluster_error_retry_attempts=1, **options)


def connect_impatiently(section: RedisSection) -> Client:
    """As `connect`, for a question at a start: the patience that a run has with a restarting server would only delay
    the answer."""
    return connect(section.model_copy(update={"retries": 1, "timeout_s": min(3.0, section.timeout_s)}))


class Memory(NamedTuple):
    """Of all servers that hold the run's data, in bytes."""

    used: int
    limit: int
    """0 for none."""
    fullest: float
    """Of the servers that have a limit, the greatest used share of it."""


def is_out_of_memory(error: ResponseError) -> bool:
    """Whether Redis refused a write because it has no memory left; from within a script it is no error of its own."""
    return isinstance(error, OutOfMemoryError) or "OOM command not allowed" in str(error)


@contextmanager
def unless_full() -> Iterator[None]:
    """What is only said, not done, is no reason to fail: it stays unsaid where Redis has no memory left."""
    try:
        yield
    except ResponseError as error:
        if not is_out_of_memory(error):
            raise


def memory_of(client: Client) -> Memory:
    """What Redis uses and may use."""
    found = client.info("memory")
    servers = list(found.values()) if "used_memory" not in found else [found]
    used = [int(server["used_memory"]) for server in servers]
    limits = [int(server["maxmemory"]) for server in servers]
    shares = [have / limit for have, limit in zip(used, limits, strict=True) if limit]
    return Memory(sum(used), sum(limits), max(shares, default=0.0))


class _Patient:
    """Backs off between attempts of a command, for as long as a fail-over takes.

    redis-py's cluster client tries again at once, and its Sentinel connections try the lost master only.
    """

    _patience: Retry

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send a command to whichever server is in charge by now."""
        send = super().execute_command  # type: ignore[misc]
        return self._patience.call_with_retry(lambda: send(*args, **options), _ignore)


class PatientCluster(_Patient, RedisCluster):
    """A cluster client that waits for a fail-over."""

    def __init__(self, *args: Any, patience: Retry, **options: Any) -> None:
        self._patience = patience
        super().__init__(*args, **options)


class PatientRedis(_Patient, Redis):
    """A client of a master under Sentinel that waits for a fail-over."""

    def with_patience(self, patience: Retry) -> PatientRedis:
        """Sentinel makes its clients without settings of ours."""
        self._patience = patience
        return self


def _ignore(error: Exception) -> None:
    """The clients have asked for the new layout already."""


def retry(section: RedisSection) -> Retry:
    """The one policy of retrying: exponential back-off."""
    return Retry(ExponentialBackoff(cap=2.0, base=0.05), section.retries, supported_errors=(*LOST, *MOVING))


def _sentinel_client(address: str, options: dict[str, Any]) -> Redis:
    parts = urlsplit(address)
    credentials, _, hosts = parts.netloc.rpartition("@")
    name, _, database = parts.path.strip("/").partition("/")
    sentinels = [(host.rpartition(":")[0] or host, int(host.rpartition(":")[2] or 26379)) for host in hosts.split(",")]
    if not name:
        raise UserError("redis.url", _safe(address), "names no master", _HOW)
    user, _, password = credentials.partition(":")
    own = {"username": user or None, "password": password or None}
    timeouts = {key: value for key, value in options.items() if key != "retry"}
    sentinel = Sentinel(sentinels, sentinel_kwargs=timeouts)
    client: PatientRedis = sentinel.master_for(
        name, redis_class=PatientRedis, db=int(database or 0), retry=Retry(NoBackoff(), 0), **own, **timeouts
    )
    return client.with_patience(options["retry"])


def _check_server(client: Redis, address: str) -> bool:
    """Refuse a server that can't be used; whether it is a node of a Redis Cluster."""
    try:
        info: dict[str, Any] = client.info()
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
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction" and int(info.get("maxmemory", 0)):
        raise UserError(
            "redis.url",
            _safe(address),
            f"deletes keys by itself when its memory is full (maxmemory-policy {policy})",
            "set its maxmemory-policy to noeviction: a run's keys belong together",
        )
    return bool(int(info.get("cluster_enabled", 0)))


def _safe(url: str) -> str:
    """The URL without user, password, which may hold what ends a host's name in a URL, and options."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{re.split('[?#]', rest.rpartition('@')[2])[0]}"
