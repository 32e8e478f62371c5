"""Seeds that wait for an actor to score them. What an actor has taken stays its own until it is pushed, or it is gone
for good.

What is done with an actor's jobs is one script each, which changes nothing when a client that lost the answer sends it
again, and which frees memory before it takes some, so that a full Redis doesn't refuse it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from buffer.connection import Client, Keys
from buffer.scripts import load_script
from common.seeds import SeedJob


class SeedQueue:
    """A list that actors take from; an actor that died finds what it had taken when it starts again."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client, self._keys = client, keys
        self._take, self._done = load_script(client, "seeds_take"), load_script(client, "seeds_done")
        self._give_back = load_script(client, "seeds_give_back")

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
        found = self._take(keys=[self._keys.seeds, self._keys.seeds_of(actor_id)], args=[n])
        return [SeedJob.from_bytes(item) for item in found]

    def done(self, actor_id: str, jobs: Sequence[SeedJob]) -> None:
        """These jobs of the actor's are in the buffer, or set aside."""
        own = self._keys.seeds_of(actor_id)
        self._done(keys=[own, self._keys.seeds_left], args=[job.to_bytes() for job in jobs])

    def give_back(self, actor_id: str) -> None:
        """An actor is gone for good: others take what it did not finish."""
        self._give_back(keys=[self._keys.seeds, self._keys.seeds_of(actor_id)])

    def give_all_back(self) -> None:
        """The same of all actors, before any starts."""
        for key in list(self._client.scan_iter(match=self._keys.seeds_of("*"), count=1_000)):
            self._give_back(keys=[self._keys.seeds, key])

    @property
    def was_filled(self) -> bool:
        """Whether there were jobs."""
        return bool(self._client.exists(self._keys.seeds_left))

    @property
    def all_done(self) -> bool:
        """Whether there were jobs, and each is in the buffer or set aside by now."""
        left = self._client.get(self._keys.seeds_left)
        return left is not None and int(left) <= 0
