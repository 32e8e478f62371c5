"""Evaluation stays within its share of an actor's time and of its requests."""

from __future__ import annotations

import random

import pytest

from actors.time_share import TimeShare
from tests.conftest import Tell


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_in_the_long_run_no_more_time_is_spent_than_the_share_however_much_is_wanted(share: float, tell: Tell) -> None:
    """An engine whose steps take as long as they like, full of sampling at times and idle at others."""
    draw, now, in_flight = random.Random(0), 0.0, 0
    bound, longest, most = TimeShare(share, 7, now), 0.0, 0
    while now < 200:
        while bound.may_begin(in_flight, now):
            in_flight += 1
        most = max(most, in_flight)
        sampling = draw.choice([0, 64])
        took = draw.uniform(0.01, 0.1)
        now += took
        if in_flight:
            bound.spend(took, in_flight, in_flight + sampling)
            longest = max(longest, took)
            in_flight -= draw.randrange(in_flight + 1)
    tell(f"{bound.used(now):.4f} of the time was spent, {share:g} may be")
    assert most == 7
    # What is in flight goes on to its end: one batch of it at most is too much at any time.
    assert bound.spent_s <= share * now + 30 * longest
    assert bound.used(now) > share / 2, "the share is there to be used"


def test_what_is_in_flight_takes_a_slot() -> None:
    bound = TimeShare(0.1, 6, now=0.0)
    assert bound.may_begin(5, now=1.0) and not bound.may_begin(6, now=1.0)


def test_time_that_was_overdrawn_is_waited_for() -> None:
    bound = TimeShare(0.1, 6, now=0.0)
    bound.spend(2.0, 1, 2)
    assert bound.used(5.0) == pytest.approx(0.2)
    assert not bound.may_begin(0, now=9.9) and bound.may_begin(0, now=10.1)


def test_after_training_nothing_is_bounded_or_counted_any_more() -> None:
    bound = TimeShare(0.1, 6, now=0.0)
    bound.spend(5.0, 1, 1)
    assert not bound.may_begin(0, now=10.0)
    bound.lift(64)
    bound.spend(5.0, 1, 1)
    assert bound.may_begin(63, now=10.0) and not bound.may_begin(64, now=10.0)
    assert bound.used(10.0) == pytest.approx(0.5)
