"""How much of an actor's time evaluation may take."""

from __future__ import annotations


class TimeShare:
    """Spent time stays within `share` of the time that has passed, and requests within a number of them at once.

    What is in flight already goes on, so the bound is passed by that at most; it is made up for before more begins.
    Time that was left unused stays to be used, but never by more requests at once.
    """

    def __init__(self, share: float, at_once: int, now: float) -> None:
        """`now` and all later times are in seconds of one clock."""
        self._share, self._since, self.spent_s = share, now, 0.0
        self._at_once = at_once
        self._is_bounded = True

    def spend(self, took_s: float, part: int, whole: int) -> None:
        """A step of the engine took so long, with `part` of its `whole` requests the evaluation's."""
        if part and self._is_bounded:
            self.spent_s += took_s * part / whole

    def may_begin(self, in_flight: int, now: float) -> bool:
        """Whether one more request may begin beside those that are in flight."""
        return in_flight < self._at_once and self.spent_s <= self._share * (now - self._since)

    def lift(self, max_in_flight: int) -> None:
        """Nothing else is wanted of the actor any more."""
        self._share, self._at_once, self._is_bounded = float("inf"), max_in_flight, False

    def used(self, now: float) -> float:
        """Share of the time since the beginning that was spent under the bound."""
        return self.spent_s / (now - self._since) if now > self._since else 0.0
