"""The replay buffer of a run's folder, in progress or over, opened by whoever wants to look into it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from buffer.connection import Client, Keys, connect
from buffer.embedded import EmbeddedRedis, running_server
from buffer.replay import ReplayBuffer
from buffer.variables import URL_VARIABLE
from common.config import RunConfig
from common.config_loading import load_run
from common.errors import UserError


@dataclass
class OpenBuffer:
    """A run's buffer and what it is read with."""

    config: RunConfig
    client: Client
    keys: Keys
    buffer: ReplayBuffer


@contextlib.contextmanager
def open_buffer(run: Path, url: str | None = None) -> Iterator[OpenBuffer]:
    """The buffer of a run's folder: in the given Redis, in the run's own if it is up, else from its data folder."""
    config = load_run(run)
    data = run / "redis"
    address = url or os.environ.get(URL_VARIABLE) or running_server(data)
    with contextlib.ExitStack() as stack:
        if address is None:
            if not data.is_dir():
                raise UserError(
                    "redis.url", None, f"{run} has no Redis of its own", f"set {URL_VARIABLE} or give --redis-url"
                )
            address = stack.enter_context(EmbeddedRedis(data)).url
        client = connect(config.redis, address)
        stack.callback(client.close)
        keys = Keys(config.redis_name)
        buffer = ReplayBuffer.of(config, client, keys)
        buffer.check()
        yield OpenBuffer(config, client, keys, buffer)
