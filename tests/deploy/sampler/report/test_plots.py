"""Plots show what they are given, whatever was drawn before."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from deploy.sampler.report.plots import Plot, draw_lengths, draw_prefixes, draw_scatter, draw_weights

GENERATOR = np.random.default_rng(0)
LOG_Q, LOG_R = GENERATOR.normal(-4, 1, 50), GENERATOR.normal(2, 1, 50)
LENGTHS = GENERATOR.integers(1, 60, 50).astype(float)
DRAWINGS: list[Callable[[], Plot]] = [
    lambda: draw_weights(LOG_R - LOG_Q),
    lambda: draw_prefixes([1, 2, 900], 1_000),
    lambda: draw_lengths(LENGTHS, np.full(50, 0.02)),
    lambda: draw_scatter(LOG_Q, LOG_R, 6.0),
    lambda: draw_weights(np.zeros(9)),
]


def shapes(plot: Plot) -> str:
    """A drawing, but for the names in it, which differ each time."""
    return re.sub(r"f\d+-\w+", "", str(plot.svg))


def test_a_plot_keeps_nothing_of_those_before_it() -> None:
    def alone(draw: Callable[[], Plot]) -> str:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: shapes(draw())).result()

    expected = [alone(draw) for draw in DRAWINGS]
    assert len(set(expected)) == len(DRAWINGS)
    assert [shapes(draw()) for draw in DRAWINGS] == expected
    assert [shapes(draw()) for draw in reversed(DRAWINGS)] == expected[::-1]
