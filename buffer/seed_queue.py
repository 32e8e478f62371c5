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
            pipe = self._client.pipeline(transaction=True)
            pipe.incrby(self._keys.seeds_left, len(packed))
            pipe.rpush(self._keys.seeds, *packed)
            pipe.execute()

    def take(self, actor_id: str, n: int) -> list[SeedJob]:
        """Up to `n` jobs, those that this actor took before and did not finish first."""
        own = self._keys.seeds_of(actor_id)
        for _ in range(n - int(self._client.llen(own))):
            if self._client.lmove(self._keys.seeds, own, "LEFT", "RIGHT") is None:
                break
        return [SeedJob.from_bytes(item) for item in self._client.lrange(own, 0, n - 1)]

    def done(self, actor_id: str, n: int) -> None:
        """The first `n` jobs that the actor took are in the buffer, or set aside."""
        pipe = self._client.pipeline(transaction=True)
        pipe.ltrim(self._keys.seeds_of(actor_id), n, -1)
        pipe.decrby(self._keys.seeds_left, n)
        pipe.execute()

    @property
    def all_done(self) -> bool:
        """Whether there were jobs, and each is in the buffer or set aside by now."""
        left = self._client.get(self._keys.seeds_left)
        return left is not None and int(left) <= 0
