"""`curve.png`: the figures of the evaluations while a run trained, over its steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.evaluation import PREFIX
from deploy.run.best import Best

FILE, METRICS = "curve.png", "metrics.jsonl"
_MOST = 5
"""Figures in the picture, one below the other."""


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl by step, none where there is no such file."""
    path = run / METRICS
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(text)
        except ValueError:
            # What a crash left of a line.
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            found.append(row)
    return sorted(found, key=lambda row: int(row["step"]))


def read_curve(run: Path) -> list[dict[str, Any]]:
    """Those of them that are of evaluations."""
    return [row for row in read_metrics(run) if any(name.startswith(PREFIX) for name in row)]


def shown_figures(rows: Sequence[Mapping[str, Any]], first: Sequence[str]) -> list[str]:
    """Names of the figures that are drawn: those of `first` that there are, then the others in their order."""
    names = dict.fromkeys(
        name.removeprefix(PREFIX) for row in rows for name, value in row.items() if _is_figure(name, value)
    )
    return [name for name in dict.fromkeys([*first, *names]) if name in names][:_MOST]


def points(rows: Sequence[Mapping[str, Any]], figure: str) -> tuple[list[int], list[float]]:
    """Steps and values of a figure, where it was measured."""
    name = PREFIX + figure
    measured = [(int(row["step"]), float(row[name])) for row in rows if _is_figure(name, row.get(name))]
    return [step for step, _ in measured], [value for _, value in measured]


def draw_curve(run: Path, main: Sequence[str], best: Best | None) -> list[Path]:
    """Draw the curve into the run's folder, the best adapter marked; nothing where there was no evaluation."""
    rows = read_curve(run)
    figures = shown_figures(rows, [*([best.metric] if best else []), *main])
    if not figures:
        return []
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.8 + 1.6 * len(figures)), layout="constrained")
    every = figure.subplots(len(figures), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(every, figures, strict=True):
        axes.plot(*points(rows, name), "o-", color="#2f6fde", markersize=4)
        axes.set_ylabel(name.replace("_", " "), fontsize=8)
        axes.grid(alpha=0.3)
        if best is not None:
            axes.axvline(best.step, color="#d9822b", linestyle="--", linewidth=1)
        if best is not None and name == best.metric:
            label = f"best: {best.value:.4g} at step {best.step}"
            axes.plot(best.step, best.value, "*", color="#d9822b", markersize=14, label=label)
            axes.legend(fontsize=8)
    every[-1].set(xlabel="step")
    trained_on = max(int(row.get("queries_trained_on", 0)) for row in rows)
    where = f"queries of which {trained_on} are trained on" if trained_on else "held-out queries"
    every[0].set_title(f"Samples on {where}, while it trained")
    path = run / FILE
    draft = run / f".{FILE}"
    figure.savefig(draft, dpi=120, format="png")
    # Somebody may be looking at it.
    draft.replace(path)
    return [path]


def _is_figure(name: str, value: object) -> bool:
    return name.startswith(PREFIX) and isinstance(value, int | float)
