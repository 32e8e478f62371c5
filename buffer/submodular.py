"""Which trajectories are replayed, chosen together: much reward, little alike, of many lengths.

Replay by reward alone shows a learner the same beginnings and lengths again and again, which is part of why samplers of
language models collapse (Wang et al. 2026, arXiv 2603.00454, who refresh their buffer by such a choice; the terms here
are our own). What is looked at changes, not what is learned: the objectives are off-policy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist

from buffer.near_duplicates import as_letters
from common.trajectory import Trajectory

Floats = NDArray[np.float64]


def choose(trajectories: Sequence[Trajectory], log_rewards: Sequence[float], kept: int, n: int) -> list[int]:
    """Indices of `n` of one query's trajectories: the first `kept`, then those that add most to `worth`, one after the
    other. All of them where there are no more.

    At each step the best one is taken, which gets at least 1 − 1/e of what the best choice of all adds (Nemhauser et
    al. 1978).
    """
    chosen, left = list(range(min(kept, len(trajectories)))), list(range(kept, len(trajectories)))
    quality, alike = _quality(log_rewards), similarity(trajectories)
    lengths = np.array([len(item.action_ids) for item in trajectories])
    while left and len(chosen) < n:
        best = max(left, key=lambda i: (worth([*chosen, i], quality, alike, lengths), -i))
        chosen.append(best)
        left.remove(best)
    return chosen


def worth(chosen: Sequence[int], quality: Floats, alike: Floats, lengths: NDArray[np.int64]) -> float:
    """A monotone submodular function of a set of N trajectories, each of its three parts at most 1 for all of them.

    The mean over N of each one's quality if it is chosen; the mean likeness of each of the N to the one chosen that is
    most like it (facility location); and Σ √(how many chosen have a length), over the lengths, by the same sum of all.
    """
    if not len(chosen):
        return 0.0
    covered = _length_cover(lengths[list(chosen)]) / _length_cover(lengths)
    return float(quality[list(chosen)].sum() / len(quality) + alike[:, list(chosen)].max(axis=1).mean() + covered)


def _length_cover(lengths: NDArray[np.int64]) -> float:
    return float(np.sqrt(np.unique(lengths, return_counts=True)[1]).sum())


def _quality(log_rewards: Sequence[float]) -> Floats:
    """By rank, from 1/N to 1, ties alike: nats may lie far apart."""
    _, place, counts = np.unique(np.asarray(log_rewards, np.float64), return_inverse=True, return_counts=True)
    return np.asarray(np.cumsum(counts)[place] / len(log_rewards), np.float64)


def similarity(trajectories: Sequence[Trajectory]) -> Floats:
    """1 − the normalised edit distance over token ids of every pair, shape (n, n)."""
    letters = [as_letters(item.action_ids) for item in trajectories]
    return np.asarray(cdist(letters, letters, scorer=Levenshtein.normalized_similarity), np.float64)
