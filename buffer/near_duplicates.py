"""Near-duplicates by edit distance over token ids, of which the higher reward stays (Hu et al. 2024, replay buffer)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from buffer.connection import Client, ShardKeys
from common.trajectory import MalformedTrajectory, Trajectory


@dataclass(frozen=True)
class Known:
    """What near-duplicates are told by."""

    letters: str
    """The token ids, each as one character."""
    log_reward: float


@dataclass(frozen=True)
class Screened:
    """What is left of new trajectories."""

    kept: list[int]
    """Indices of the new ones that are no near-duplicate of a better one."""
    replaced: list[bytes]
    """Ids of stored ones that a better near-duplicate replaces."""


def as_letters(token_ids: NDArray[np.int32]) -> str:
    """Token ids as characters: rapidfuzz compares strings many at a time."""
    return "".join(map(chr, token_ids.tolist()))


def screen(stored: Mapping[bytes, Known], new: Sequence[tuple[bytes, Known]], tolerance: float) -> Screened:
    """Hold new trajectories of a query against the stored ones and those before them.

    Two are near-duplicates if their edit distance is below `tolerance` × (length a + length b). A new one stays if its
    log R is above that of all its near-duplicates, which then go. One that is stored already (same id) stays too.
    """
    ids = [*stored, *(key for key, _ in new)]
    known = [*stored.values(), *(item for _, item in new)]
    rewards = np.array([item.log_reward for item in known])
    alive = np.array([True] * len(stored) + [False] * len(new))
    near = _near([item.letters for _, item in new], [item.letters for item in known], tolerance)
    kept: list[int] = []
    for i, (key, item) in enumerate(new):
        place = len(stored) + i
        rivals = np.flatnonzero(near[i] & alive)
        rivals = rivals[[ids[rival] != key for rival in rivals.tolist()]] if len(rivals) else rivals
        if key not in stored:
            if len(rivals) and rewards[rivals].max() >= item.log_reward:
                continue
            alive[rivals] = False
            alive[place] = True
        kept.append(i)
    replaced = [key for key, lives in zip(stored, alive[: len(stored)], strict=True) if not lives]
    return Screened([i for i in kept if alive[len(stored) + i] or new[i][0] in stored], replaced)


def _near(new: Sequence[str], all_: Sequence[str], tolerance: float) -> NDArray[np.bool_]:
    """Which pairs are near, shape (new, all)."""
    if not new:
        return np.zeros((0, len(all_)), np.bool_)
    distances = cdist(new, all_, scorer=Levenshtein.distance, dtype=np.int32)
    lengths = np.array([len(item) for item in new])[:, None] + np.array([len(item) for item in all_])[None, :]
    return distances < tolerance * lengths


class Mirror:
    """What this client knows of the stored trajectories of queries, so that each is read and decoded once."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[str, dict[bytes, Known]] = {}

    def look(self, keys: ShardKeys, query_id: str) -> tuple[int, dict[bytes, Known]]:
        """The sequence number of a query's newest trajectory (0: none), and the stored ones, as of then or later."""
        found = self._client.zrange(keys.of_query(query_id, "order"), 0, 0, desc=True, withscores=True)
        newest = int(found[0][1]) if found else 0
        rewards = dict(self._client.zrange(keys.of_query(query_id, "priority"), 0, -1, withscores=True))
        before = self._known.get(query_id, {})
        unknown = [key for key in rewards if key not in before]
        payloads = self._client.hmget(keys.of_query(query_id, "items"), unknown) if unknown else []
        known = {key: item for key, item in before.items() if key in rewards}
        for key, payload in zip(unknown, payloads, strict=True):
            # What is malformed is found, and set aside, when it is sampled.
            with contextlib.suppress(MalformedTrajectory, TypeError):
                letters = as_letters(Trajectory.from_bytes(payload).action_ids)
                known[key] = Known(letters, rewards[key])
        self._known[query_id] = known
        return newest, known
