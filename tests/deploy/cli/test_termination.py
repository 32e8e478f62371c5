"""SIGTERM while a command works."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from deploy.cli.termination import SAME_WISH_S, Terminated, terminating


@pytest.fixture(autouse=True)
def _nobody_handles_sigterm_before() -> Iterator[None]:
    """A Ray that an earlier test started in this process has put its own handler there."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def tell() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_one_wish_is_raised_once_so_that_cleaning_up_is_not_interrupted_and_a_later_one_again() -> None:
    cleaned = False
    with pytest.raises(Terminated), terminating():
        try:
            tell()
        finally:
            tell()
            cleaned = True
    assert cleaned and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(Terminated), terminating():
        with pytest.raises(Terminated):
            tell()
        time.sleep(SAME_WISH_S + 0.1)
        tell()


def test_who_handles_sigterm_already_goes_on_doing_so() -> None:
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        with terminating():
            tell()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [signal.SIGTERM]


def test_a_fork_ends_by_the_signal_itself() -> None:
    with terminating():
        child = os.fork()
        if child == 0:
            try:
                tell()
            finally:
                # Whatever is raised instead, a copy of the test runner must not go on with the other tests.
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
