"""The report's plots. No text from data or models stands in them: the page's own text says what they show.

They are small, so that a phone shows them one below the other, and quick: a page has a hundred of them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from deploy.sampler.report.svg import GRID, INK, MUTED, SERIES, inline
from deploy.sampler.report.words import Z95, is_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["both", "lower", "upper"]
"""Whether it is an estimate, or a bound from below or above."""
Floats = NDArray[np.float64]
_FONT_SIZE = 8
_WIDTH = 3.6
"""Inches, at 72 of the page's units each."""
_MOST_POINTS = 300
"""Of a curve; further ones are averaged, and where they were is shaded."""
_MOST_IN_SCATTER = 400
"""Draws; more would hide one another, and make the page large."""
_LOG_FROM = 30.0
"""Times that a curve's highest value is of its lowest, from which on it is drawn on a logarithmic scale."""

_kept = threading.local()


@dataclass(frozen=True)
class Plot:
    """A drawing, and what the page says of it."""

    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class Curve:
    """A figure over steps. All of shape (n,)."""

    steps: Floats
    values: Floats
    errors: Floats | None = None
    """Standard errors."""


@dataclass(frozen=True)
class Interval:
    """An estimate or a bound with its 95 % interval."""

    label: str
    value: float
    low: float
    high: float
    kind: Kind


def color_of(number: int) -> int:
    """Which of the theme's series a run is drawn as."""
    return number % len(SERIES)


def draw_curves(title: str, caption: str, curves: Sequence[Curve | None], *, positive: bool = False) -> Plot:
    """One figure of one or of several runs over their steps; `positive` ones may be on a logarithmic scale.

    A run that hasn't the figure keeps its place, as places have colours.
    """
    figure, axes = _axes(across="step", whole=True)
    every = np.concatenate([curve.values for curve in curves if curve is not None])
    logarithmic = positive and every.min() > 0 and every.max() / every.min() > _LOG_FROM
    if logarithmic:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for number, curve in enumerate(curves):
        if curve is None:
            continue
        color = SERIES[color_of(number)]
        steps, middle, low, high = _thinned(curve)
        if (low < high).any():
            axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        # A figure of a few evaluations is points; one is nothing but a point.
        style = "--" if number >= len(SERIES) else "-"
        axes.plot(
            steps, middle, style, color=color, linewidth=1.2, marker="o" if len(steps) <= 12 else "", markersize=3
        )
    return Plot(title, caption + (", on a logarithmic scale" if logarithmic else ""), inline(figure, title))


def draw_intervals(title: str, caption: str, intervals: Sequence[Interval], known: float | None) -> Plot:
    """Estimates and bounds one below the other; `known` is what they should be about, where that is known."""
    figure, axes = _axes(across="nats", left=0.34, height=0.55 + 0.24 * len(intervals))
    markers = {"both": "o", "lower": ">", "upper": "<"}
    for row, item in enumerate(reversed(intervals)):
        color = SERIES[0 if item.kind == "both" else 1]
        axes.plot([item.low, item.high], [row, row], "-", color=color, linewidth=1.5)
        axes.plot([item.value], [row], markers[item.kind], color=color, markersize=5)
    if known is not None:
        axes.axvline(known, color=SERIES[2], linewidth=1, linestyle="--")
    # These labels are the program's own words.
    axes.set_yticks(range(len(intervals)), [item.label for item in reversed(intervals)])
    axes.set_ylim(-0.6, len(intervals) - 0.4)
    axes.margins(x=0.12)
    return Plot(title, caption, inline(figure, title))


def draw_weights(log_weights: Floats) -> Plot:
    """How far draws' weights are from all being the same; `log_weights` of shape (n,)."""
    figure, axes = _sheet(across="log w minus the log of their mean, in nats")
    centred = log_weights - (np.logaddexp.reduce(log_weights) - math.log(len(log_weights)))
    # One shape, where `hist` makes one for each bar, which takes as long as all the rest.
    axes.stairs(*np.histogram(centred, bins=_bins(centred)), fill=True, color=SERIES[0])
    axes.axvline(0.0, color=MUTED, linewidth=1, linestyle="--")
    caption = (
        "Draws by their weight w = R/q. A sampler of the posterior has all of them at 0; a long tail to the right "
    )
    return Plot("Weights", caption + "is what q draws too rarely.", inline(figure, "histogram of the log weights"))


def draw_lengths(lengths: Floats, shares: Floats) -> Plot:
    """Lengths as they are drawn, and as the weights have them; both of shape (n,)."""
    figure, axes = _sheet(across="tokens", whole=True)
    span = int(lengths.max() - lengths.min()) + 1
    # No more bars than can be told apart.
    wide = max(1, -(-span // 24))
    edges = np.arange(lengths.min() - 0.5, lengths.max() + 0.5 + wide, wide)
    drawn, wanted = np.histogram(lengths, edges)[0] / len(lengths), np.histogram(lengths, edges, weights=shares)[0]
    axes.stairs(drawn, edges, fill=True, color=SERIES[0], alpha=0.45)
    axes.stairs(wanted, edges, color=SERIES[1], linewidth=1.5)
    caption = "Share of draws by length: filled as q draws them, outlined as the weights say that they should be."
    return Plot("Length", caption, inline(figure, "histograms of lengths under q and under the weights"))


def draw_prefixes(distinct: Sequence[float], n: int) -> Plot:
    """How many different beginnings the draws have, by tokens."""
    figure, axes = _sheet(across="tokens from the beginning", whole=True)
    depth = np.arange(1, len(distinct) + 1)
    axes.plot(
        depth, distinct, "-", color=SERIES[0], linewidth=1.2, marker="o" if len(depth) <= 30 else "", markersize=3
    )
    axes.set_ylim(0, max([1.0, *distinct]) * 1.08)
    caption = f"Different beginnings of {n} draws. A line that stays low where the posterior is wide is a collapse."
    return Plot("Distinct prefixes", caption, inline(figure, "distinct prefixes by depth"))


def draw_scatter(log_q: Floats, log_r: Floats, log_z: float | None) -> Plot:
    """Each draw's log R over its log q; both of shape (n,)."""
    figure, axes = _sheet(across="log q, in nats")
    drawn = np.unique(np.linspace(0, len(log_q) - 1, _MOST_IN_SCATTER).astype(np.int64))
    axes.plot(log_q[drawn], log_r[drawn], "o", color=SERIES[0], markersize=2.6, alpha=0.6, markeredgewidth=0)
    which = "Each draw's" if len(drawn) == len(log_q) else f"{len(drawn)} draws'"
    caption = f"{which} log R (upwards) over its log q, in nats."
    if log_z is not None:
        ends = np.array([log_q.min(), log_q.max()])
        axes.plot(ends, ends + log_z, "--", color=SERIES[1], linewidth=1)
        caption += " On the dashed line log R = log q + log Z, as it is where q is the posterior."
    return Plot("log q and log R", caption, inline(figure, "log R over log q of each draw"))


def draw_queries(ess: Sequence[float], pareto_k: Sequence[float], limit: float) -> Plot:
    """Where the queries stand, both figures in the same order."""
    figure, axes = _axes(across="Pareto k̂")
    axes.plot(pareto_k, ess, "o", color=SERIES[0], markersize=4, alpha=0.7, markeredgewidth=0)
    axes.axvline(limit, color=SERIES[1], linewidth=1, linestyle="--")
    axes.set_ylim(-0.03, 1.03)
    caption = "Each query's effective sample size, as a share of its draws (upwards), over its k̂. Good is above and to "
    return Plot(
        "All queries", caption + f"the left of the dashed line, k̂ = {limit:.2f}.", inline(figure, "ESS over Pareto k")
    )


def _axes(*, across: str, whole: bool = False, left: float = 0.14, height: float = 2.0) -> tuple[Figure, Axes]:
    """An empty figure of one part, its place fixed: to look for the best one takes longer than to draw it.

    `whole`: what is across comes in whole numbers.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    below = 0.44 / height
    figure = Figure(figsize=(_WIDTH, height))
    axes = figure.add_axes((left, below, 0.96 - left, 0.95 - below))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=whole))
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(colors=MUTED, labelsize=_FONT_SIZE, left=False, bottom=False, pad=2)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(across, fontsize=_FONT_SIZE, color=INK)
    axes.xaxis.set_label_coords(0.5, -0.27 / (height * (0.95 - below)))
    axes.yaxis.set_label_coords(0.0, 0.5)
    axes.set_title("", y=1.0)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=MUTED, linewidth=0.8)
    return figure, axes


def _sheet(*, across: str, whole: bool = False) -> tuple[Figure, Axes]:
    """The sheet of this thread for a query's plots, the last one rubbed out: to make one anew takes as long as to draw
    on it."""
    from matplotlib.ticker import MaxNLocator

    if not hasattr(_kept, "sheet"):
        _kept.sheet = _axes(across=across)
    figure, axes = _kept.sheet
    for artist in [*axes.lines, *axes.patches, *axes.collections]:
        artist.remove()
    axes.relim()
    axes.autoscale()
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=whole))
    axes.set_xlabel(across)
    return figure, axes


def _bins(values: Floats) -> Any:
    """So many that there is something to see; where all values are the same, one."""
    spread = float(values.max() - values.min())
    return 24 if spread > 1e-6 else np.array([values[0] - 0.5, values[0] + 0.5])


def _thinned(curve: Curve) -> tuple[Floats, Floats, Floats, Floats]:
    """Steps, values, and the lower and upper end of what is shaded, of no more points than can be told apart."""
    steps, values = curve.steps, curve.values
    margin = np.zeros_like(values) if curve.errors is None else Z95 * curve.errors
    if len(steps) <= _MOST_POINTS:
        return steps, values, values - margin, values + margin
    parts = np.array_split(np.arange(len(steps)), _MOST_POINTS)

    def each(function: Any, found: Floats) -> Floats:
        return np.array([function(found[part]) for part in parts])

    low, high = each(np.min, values - margin), each(np.max, values + margin)
    return each(np.mean, steps), each(np.mean, values), low, high


def curve_of(rows: Sequence[Mapping[str, Any]], name: str) -> Curve | None:
    """A figure from the lines of metrics.jsonl, where it was measured and is a number; None where it never was."""
    found = [(row["step"], row[name], row.get(f"{name}_se")) for row in rows if is_number(row.get(name))]
    if not found:
        return None
    steps, values, errors = zip(*found, strict=True)
    known = all(is_number(error) for error in errors)
    return Curve(
        np.array(steps, np.float64), np.array(values, np.float64), np.array(errors, np.float64) if known else None
    )
