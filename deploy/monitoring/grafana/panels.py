"""What dashboards are made of: queries, panels, rows, pages. `rendering.py` turns them into Grafana's JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["timeseries", "stat", "bargauge", "table"]
# Units by Grafana's names for them.
COUNT = "short"
SHARE = "percentunit"
PERCENT = "percent"
BYTES = "bytes"
BYTES_PER_S = "Bps"
SECONDS = "s"
PER_S = "suffix: /s"
NATS = "suffix: nats"
SQUARED_NATS = "suffix: nats²"
VERSIONS = "suffix: versions"
CORES = "suffix: cores"
PLAIN = "none"


@dataclass(frozen=True)
class Query:
    """PromQL, and how its series are called."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One picture. `width` is in 24ths of the page."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    low: float | None = None
    high: float | None = None
    decimals: int | None = None
    stacked: bool = False
    steps: tuple[tuple[float | None, str], ...] = ((None, "green"),)
    """Colours from a value upwards; the first begins at None."""
    ranges: tuple[tuple[float, float, str, str], ...] = ()
    """What a range of values is shown as: from, to, text, colour."""


def lines(title: str, description: str, unit: str, *queries: tuple[str, str], **more: Any) -> Panel:
    """Values over time; queries are pairs of PromQL and legend."""
    return Panel(title, description, unit, tuple(Query(*query) for query in queries), **more)


def number(title: str, description: str, unit: str, expr: str, legend: str = "", **more: Any) -> Panel:
    """The present value, large."""
    return Panel(title, description, unit, (Query(expr, legend),), **{"kind": "stat", "width": 4, "height": 4, **more})


def ranking(title: str, description: str, unit: str, expr: str, legend: str, **more: Any) -> Panel:
    """Present values of a few series as bars: a `topk` or `bottomk`."""
    return Panel(title, description, unit, (Query(expr, legend),), **{"kind": "bargauge", **more})


def table(title: str, description: str, unit: str, expr: str, **more: Any) -> Panel:
    """Present values with their labels."""
    return Panel(title, description, unit, (Query(expr, ""),), **{"kind": "table", **more})


@dataclass(frozen=True)
class Row:
    """Panels below a heading, from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Choice:
    """A variable at the head of a dashboard, chosen among values of a query or a list."""

    name: str
    label: str
    query: str = ""
    values: tuple[str, ...] = ()


RUN = Choice("run", "Run", query='label_values(up{job="amortis"}, run)')


@dataclass(frozen=True)
class Dashboard:
    """A page."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]
    choices: tuple[Choice, ...] = (RUN,)

    @property
    def panels(self) -> Iterator[Panel]:
        """All panels in order."""
        return (panel for row in self.rows for panel in row.panels)
