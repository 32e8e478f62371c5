"""The Lua scripts of `buffer/scripts/`: loading, and running one so that replicas have it before it counts."""

from __future__ import annotations

import contextlib
from functools import cache
from importlib.resources import files
from typing import Any

from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisError
from redis.retry import Retry

from buffer.connection import Client

_INCLUDE = "-- include: "


class NotReplicated(RedisError):
    """A write that fewer replicas than asked for have confirmed in time; it may or may not survive a fail-over."""


@cache
def script_source(name: str) -> str:
    """A script with the files that it includes in place."""
    text = files("buffer").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")
    lines = (
        script_source(line.removeprefix(_INCLUDE).strip()) if line.startswith(_INCLUDE) else line
        for line in text.splitlines()
    )
    return "\n".join(lines)


def load_script(client: Client, name: str) -> Any:
    """A registered script: called with `keys`, all of one slot, and `args`."""
    return client.register_script(script_source(name))


class ReplicatedScript:
    """A script whose writes count once `replicas` replicas have them (Redis' WAIT, on the writing connection)."""

    def __init__(self, client: Client, name: str, replicas: int, timeout_s: float, retry: Retry) -> None:
        self._client, self._replicas, self._timeout_ms = client, replicas, int(timeout_s * 1_000)
        self._retry, self._source = retry, script_source(name)
        self._retry.update_supported_errors([NotReplicated])
        self._plain = load_script(client, name)

    def __call__(self, keys: list[str], args: list[Any]) -> Any:
        """Run; raises NotReplicated if the replicas don't confirm within the retries."""
        if self._replicas == 0:
            return self._plain(keys=keys, args=args)
        return self._retry.call_with_retry(lambda: self._run(keys, args), lambda error: self._recover())

    def _run(self, keys: list[str], args: list[Any]) -> Any:
        # WAIT speaks of the writes of its own connection: script and WAIT go in one pipeline to the node of the slot.
        pipe = self._node(keys[0]).pipeline(transaction=False)
        pipe.eval(self._source, len(keys), *keys, *args)
        pipe.execute_command("WAIT", self._replicas, self._timeout_ms)
        answer, confirmed = pipe.execute()
        if confirmed < self._replicas:
            raise NotReplicated(f"{confirmed} of {self._replicas} replicas (redis.min_replicas) confirmed a push")
        return answer

    def _node(self, key: str) -> Redis:
        if isinstance(self._client, RedisCluster):
            node: Redis = self._client.get_redis_connection(self._client.get_node_from_key(key))
            return node
        return self._client

    def _recover(self) -> None:
        if isinstance(self._client, RedisCluster):
            with contextlib.suppress(RedisError):
                self._client.nodes_manager.initialize()
