"""Evaluation and diagnosis while a run trains, as far as they go through Redis: what is wanted, what was drawn, what
came of it.

The learner says which adapter version is wanted, and for which of the two; one actor takes that and hands over its
samples, the launcher makes figures of them, and the learner writes these down. Only the newest version that is wanted
waits, then for all that those whose place it took were wanted for: looks never queue up behind training, and of two
that are due at different steps neither keeps the other from ever being made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import msgpack

from buffer.connection import Client, Keys
from buffer.scripts import load_script
from common.held_out import Part
from common.trajectory import Query

LEASE_S = 20
"""An actor that was not heard of for so long has died, and another begins anew."""


@dataclass(frozen=True)
class Wanted:
    """An adapter version that is to be looked at."""

    version: int
    step: int
    """Of the learner, when it published the version."""
    exact: dict[str, float] = field(default_factory=dict)
    """The learner's own figures of the version."""
    last: bool = False
    """Whether training is over, so that nothing is taken from it any more."""
    parts: Part = Part.EVALUATION
    """What it is wanted for."""

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, raw: bytes) -> Self:
        """What `to_text` gave."""
        found = json.loads(raw)
        return cls(**{**found, "parts": Part(found["parts"])})


@dataclass(frozen=True)
class Drawn:
    """What an actor sampled of a version."""

    wanted: Wanted
    sha256: str
    """Of the adapter that was sampled with."""
    actor: str
    share: float
    """Of that actor's time that went into evaluation and diagnosis so far."""
    trajectories: tuple[bytes, ...] = ()
    """Of the evaluation."""
    missing: int = 0
    """Samples that were asked for and made no trajectory."""
    reason: str | None = None
    """Why the last of all that are missing made none, or why there is no sample at all."""
    diagnosis: tuple[bytes, ...] = ()
    """Of the diagnosis; a sample that serves both is in both."""
    diagnosis_missing: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether there is not a single sample."""
        return not (self.trajectories or self.diagnosis)

    def to_bytes(self) -> bytes:
        """Packed."""
        head = [self.wanted.to_text(), self.sha256, self.actor, self.share]
        evaluation = [list(self.trajectories), self.missing, self.reason]
        return bytes(msgpack.packb([*head, *evaluation, list(self.diagnosis), self.diagnosis_missing]))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` gave."""
        wanted, sha256, actor, share, trajectories, missing, reason, diagnosis, its_missing = msgpack.unpackb(data)
        head = (Wanted.from_text(wanted), sha256, actor, share)
        return cls(*head, tuple(trajectories), missing, reason, tuple(diagnosis), its_missing)


class Evaluations:
    """The keys of a run's evaluation and diagnosis while it trains."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client, self._keys = client, keys
        self._want, self._take = load_script(client, "evaluation_want"), load_script(client, "evaluation_take")
        self._lease, self._finish = load_script(client, "evaluation_lease"), load_script(client, "evaluation_finish")

    def reset(self) -> None:
        """Forget what an earlier part of the run left undone; its figures are in the run's folder."""
        keys = self._keys
        for key in (keys.evaluation, keys.evaluation_lease, keys.evaluation_drawn, keys.evaluation_figures):
            self._client.delete(key)
        self._client.delete(keys.evaluation_queries)

    def put_queries(self, queries: Iterable[tuple[Query, Part]]) -> None:
        """What all versions are looked at by, each query with what it serves; actors need no data of their own."""
        packed = [msgpack.packb([int(part), query.to_bytes()]) for query, part in queries]
        if packed:
            self._client.rpush(self._keys.evaluation_queries, *packed)

    def queries(self) -> list[tuple[Query, Part]]:
        """Those, in order."""
        items = [msgpack.unpackb(item) for item in self._client.lrange(self._keys.evaluation_queries, 0, -1)]
        return [(Query.from_bytes(data), Part(part)) for part, data in items]

    def want(self, wanted: Wanted) -> int | None:
        """Ask for a look; the older version that is left out for it, as nobody has begun with that."""
        arguments = [wanted.version, wanted.to_text(), int(wanted.parts)]
        return int(self._want(keys=[self._keys.evaluation], args=arguments)) or None

    def wanted(self) -> Wanted | None:
        """What is to be looked at, begun with or not."""
        raw, parts = self._client.hmget(self._keys.evaluation, "wanted", "parts")
        return _wanted(raw, parts) if raw else None

    def take(self, owner: str) -> Wanted | None:
        """What is to be looked at, for one owner alone, who renews it; None if there is nothing or another is at it."""
        found = self._take(keys=[self._keys.evaluation, self._keys.evaluation_lease], args=[owner, LEASE_S])
        return _wanted(*found) if found else None

    def renew(self, owner: str) -> bool:
        """Whether the owner may go on."""
        return bool(self._lease(keys=[self._keys.evaluation_lease], args=[owner, LEASE_S]))

    def give_back(self, owner: str) -> None:
        """Another may begin anew with what the owner has taken."""
        self._lease(keys=[self._keys.evaluation_lease], args=[owner, 0])

    def finish(self, owner: str, drawn: Drawn) -> bool:
        """Hand over what was drawn; whether it was still the owner's to do.

        A version without a single sample is left out, which a Redis without memory takes note of all the same.
        """
        keys = [self._keys.evaluation, self._keys.evaluation_lease, self._keys.evaluation_drawn]
        nothing = 1 if drawn.is_empty else 0
        return bool(self._finish(keys=keys, args=[owner, drawn.wanted.version, drawn.to_bytes(), nothing]))

    def leave_out(self) -> None:
        """Count a version whose samples can't be used."""
        self._client.hincrby(self._keys.evaluation, "skipped", 1)

    def next_drawn(self) -> Drawn | None:
        """What waits for its figures to be made, once."""
        raw = self._first(self._keys.evaluation_drawn)
        return Drawn.from_bytes(raw) if raw else None

    def put_figures(self, row: dict[str, Any]) -> None:
        """Figures for the learner to write down."""
        self._client.rpush(self._keys.evaluation_figures, json.dumps(row))

    def next_figures(self) -> dict[str, Any] | None:
        """Figures to write down, once."""
        raw = self._first(self._keys.evaluation_figures)
        return dict(json.loads(raw)) if raw else None

    def _first(self, key: str) -> bytes | None:
        """Take the first of a list that nobody else takes of; none is lost with an answer, as by LPOP sent again."""
        raw = self._client.lindex(key, 0)
        if raw is not None:
            self._client.lrem(key, 1, raw)
        return raw

    def skipped(self) -> int:
        """Versions that were wanted and left out for newer ones, or could not be had."""
        return int(self._client.hget(self._keys.evaluation, "skipped") or 0)

    def tell(self, state: dict[str, Any]) -> None:
        """What is known so far, for whoever looks at the run."""
        self._client.hset(self._keys.evaluation, "state", json.dumps(state))

    def state(self) -> dict[str, Any]:
        """What was told last, with the number of versions that were left out; empty before the first evaluation."""
        raw = self._client.hget(self._keys.evaluation, "state")
        return {**json.loads(raw), "skipped": self.skipped()} if raw else {}


def _wanted(raw: bytes, parts: Any) -> Wanted:
    """A request, with what it is wanted for by now: also for what those were whose place it took."""
    return replace(Wanted.from_text(raw), parts=Part(int(parts)))
