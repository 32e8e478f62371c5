"""What a push and the buffer say of themselves."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class PushResult:
    """What became of a push."""

    added: int = 0
    duplicates: int = 0
    """Trajectories that were there already; theirs is now the newer behaviour."""
    evicted: int = 0
    refused: int = 0
    """Larger than `buffer.max_bytes` on their own."""
    near_duplicates: int = 0
    """Dropped, as one like them with at least their reward is there."""

    def __add__(self, other: PushResult) -> PushResult:
        return PushResult(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))


@dataclass(frozen=True)
class BufferStats:
    """Counters since the buffer was made, and its present size; sums over shards."""

    size: int = 0
    bytes: int = 0
    """Of the trajectories, with what Redis needs around them (an estimate)."""
    pushed: int = 0
    """Trajectories that actors pushed, duplicates among them."""
    seeded: int = 0
    """Those from elsewhere: seeds, imports."""
    added: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    evicted: int = 0
    expired: int = 0
    """Taken out as staler than `buffer.max_staleness`."""
    refused: int = 0
    trained: int = 0
    """Trajectories that learner steps used, each use counted."""
    quarantined: int = 0
