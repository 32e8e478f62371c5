"""Who waits for whom: a minimum size before sampling, and a band around samples per insert (as reverb's limiters)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.config import RunConfig


@dataclass(frozen=True)
class RateLimiter:
    """Pure arithmetic on the buffer's counters; whoever may not go on asks again a moment later.

    With r = sampled / inserted, the learner waits where r is above `samples_per_insert` + `band`, and actors where it
    is below `samples_per_insert` − `band`, after `slack` inserts that are free. A lower end of 0 or less never makes
    actors wait. The two never wait at once: r can't be above the upper end and below the lower one, and before an empty
    buffer, as where all that is in it went stale before it was used, only the learner waits.
    """

    min_size: int
    samples_per_insert: float
    band: float
    slack: float
    """Samples' worth that actors may be ahead, beyond what the band allows."""

    def __post_init__(self) -> None:
        if self.highest < 1:
            raise ValueError(
                f"samples_per_insert + band = {self.highest:g}: below 1, a learner that may not use all that is "
                "inserted and actors that wait for it would stop each other"
            )
        if self.slack < self.min_size * max(1.0, self.lowest):
            raise ValueError(f"slack {self.slack:g} is below min_size {self.min_size}: actors would stop before it")

    @classmethod
    def of(cls, config: RunConfig) -> RateLimiter:
        """The limiter of a run."""
        section, learner = config.buffer, config.learner
        if learner.objective == "sft":
            # What there is to train on is there once the seeds are, and is used as often as there are steps.
            return cls(section.min_size, math.inf, 0.0, math.inf)
        lowest = max(1.0, section.samples_per_insert - section.samples_per_insert_band)
        ahead = config.actor.max_ahead * learner.sync_every * config.trajectories_per_step
        slack = lowest * (section.min_size + ahead)
        return cls(section.min_size, section.samples_per_insert, section.samples_per_insert_band, slack)

    @property
    def lowest(self) -> float:
        """Samples per insert below which actors wait."""
        return self.samples_per_insert - self.band

    @property
    def highest(self) -> float:
        """Samples per insert above which the learner waits."""
        return self.samples_per_insert + self.band

    def may_sample(self, *, size: int, inserted: int, seeded: int, sampled: int, complete: bool = False) -> bool:
        """Whether the learner may take a batch.

        `inserted` counts what actors pushed, duplicates too, so a space smaller than `min_size` can be learned;
        `seeded` what came from elsewhere. Where the buffer is `complete`, no more will come, and any size is enough.
        """
        if size == 0 or (max(size, inserted) < self.min_size and not complete):
            return False
        return sampled <= self.highest * (inserted + seeded)

    def may_insert(self, *, size: int, inserted: int, sampled: int) -> bool:
        """Whether actors may go on sampling."""
        return size == 0 or self.lowest * inserted - sampled <= self.slack
