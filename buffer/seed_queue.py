"""Seeds that wait for an actor to score them. What an actor has taken stays its own until it is pushed."""

from __future__ import annotations

from collections.abc import Iterable

from buffer.connection import Client, Keys
from common.seeds import SeedJob


class SeedQueue:
    """A list that actors take from; an actor that died finds what it had taken when it starts again."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client, self._keys = client, keys

    def put(self, jobs: Iterable[SeedJob]) -> None:
        """Add jobs at the end."""
        packed = [job.to_bytes() for job in jobs]
        if packed:
            self._client.rpush(self._keys.seeds, *packed)

    def take(self, actor_id: str, n: int) -> list[SeedJob]:
        """Up to `n` jobs, those that this actor took before and did not finish first."""
        own = self._keys.seeds_of(actor_id)
        for _ in range(n - int(self._client.llen(own))):
            if self._client.lmove(self._keys.seeds, own, "LEFT", "RIGHT") is None:
                break
        return [SeedJob.from_bytes(item) for item in self._client.lrange(own, 0, n - 1)]

    def done(self, actor_id: str, n: int) -> None:
        """The first `n` jobs that the actor took are in the buffer."""
        self._client.ltrim(self._keys.seeds_of(actor_id), n, -1)
