"""A service without an engine."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from deploy.sampler.finished_run import FinishedRun
from tests.deploy.sampler.service.test_loop import StandIn


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Stands in for every run's. What stops a service must not end the tests where there is none any more."""
    found = StandIn()
    monkeypatch.setattr(FinishedRun, "sampler", lambda self, seed, metrics: (found, None))
    monkeypatch.delenv("AMORTIS_API_KEY", raising=False)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield found
    signal.signal(signal.SIGTERM, before)
