"""The reader of PromQL that other tests rely on."""

from __future__ import annotations

import pytest

from tests.promql import selectors


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ("up", ["up"]),
        ('sum by (run) (rate(a_total{x="y, z (b)"}[5m]))', ['a_total{x="y, z (b)"}']),
        ("histogram_quantile(0.95, sum by (run, le) (rate(a_bucket[5m])))", ["a_bucket"]),
        ('a:b:c{run="$run"} - on (run) group_right () d < Inf', ['a:b:c{run="$run"}', "d"]),
        ('count_values("version", a) or vector(0)', ["a"]),
        ("bottomk($top, time() - a) > 1.5e3", ["a"]),
        ("delta(a[10m] offset 1h) > bool 0.5 and b unless c", ["a", "b", "c"]),
        ("a / (b > 0)", ["a", "b"]),
    ],
)
def test_every_selector_is_found_and_nothing_else(expr: str, expected: list[str]) -> None:
    assert selectors(expr) == expected
