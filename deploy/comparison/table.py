"""The table and the plot of a comparison."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table as RichTable

from common.json_text import dumps
from common.terminal import cells

COST, TRAINING_COST, ESS = "tokens_per_sample", "training_tokens", "ess"
"""Figures of what a sample costs, in tokens that the model reads, and of what the training did."""
TEMPERATURE = "reward_temperature"
"""Of the posterior that a method draws from, by its settings."""
UNCONVERGED = "unconverged"
"""The share of the queries whose chains don't agree."""
ON_TRAINING = "training."
"""Before figures of training rows (run.evaluate_training)."""


class PlotSection(BaseModel):
    """Bars of the table's figures, or one figure against another."""

    model_config = ConfigDict(extra="forbid")

    x: str | None = Field(None, description="figure on the horizontal axis; bars without it")
    y: str | None = Field(None, description="figure on the vertical axis; the table's first without it")


@dataclass(frozen=True)
class Measurement:
    """What one cell gave for one method."""

    condition: str
    method: str
    seed: int
    figures: Mapping[str, float]
    seconds: float
    """That the whole cell took."""
    cell: str = ""
    """The method whose cell it was, which may have evaluated other samplers too."""
    parallel: int = 1
    """Cells that ran at a time."""
    curve: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    """Held-out figures while it trained (evaluation.every): step and value of each look."""
    drawn: Mapping[str, Sequence[Sequence[str | float]]] = field(default_factory=dict)
    """By choice, the texts that were drawn most of its test queries, each with its share of the draws."""


@dataclass(frozen=True)
class Entry:
    """One figure of one method under one condition, over seeds."""

    condition: str
    method: str
    figure: str
    values: tuple[float, ...]
    seeds: tuple[int, ...]

    def of_seeds(self, seeds: Collection[int]) -> Self:
        """Of those alone."""
        kept = [(value, seed) for value, seed in zip(self.values, self.seeds, strict=True) if seed in seeds]
        return replace(self, values=tuple(value for value, _ in kept), seeds=tuple(seed for _, seed in kept))

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.values))

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None for a single seed."""
        n = len(self.values)
        return float(np.std(self.values, ddof=1) / math.sqrt(n)) if n > 1 else None

    def shown(self) -> str:
        """mean ± standard error."""
        error = self.standard_error
        return f"{self.mean:.3f}" if error is None else f"{self.mean:.3f} ± {error:.3f}"


@dataclass(frozen=True)
class PayOff:
    """From how many samples training is cheaper than a method that draws from the posterior without it."""

    condition: str
    trained: str
    untrained: str
    samples: float | None
    """Training's cost over what a sample saves, both means over seeds; None where a sample saves nothing."""
    ess: float | None
    """The share of a trained draw that counts as one of the posterior's; None where it was not diagnosed: all of it."""
    least_ess: float | None = None
    """That below which a sample saves nothing."""
    unconverged: float | None = None
    """The share of the queries whose chains don't agree, of the untrained one; None where it has no chains."""

    def shown(self) -> str:
        """In a sentence."""
        where = f"{self.condition}: " if self.condition else ""
        how = "taking its draws for the posterior's"
        if self.ess is not None:
            how = f"each of its draws counted as {self.ess:.3f} of an independent one (ess), without the reading that "
            how += "weighs it"
        if self.ess is None and self.samples is not None and self.least_ess is not None:
            how += f", which wasn't measured; it never does below an effective sample size of {self.least_ess:.3f}"
        if self.unconverged:
            how += f"; the chains of {self.unconverged:.0%} of the queries don't agree, so that more of them are needed"
        if self.samples is None:
            return f"{where}{self.trained} never pays off against {self.untrained}, whose samples cost no more, {how}"
        n = math.ceil(self.samples)
        return f"{where}{self.trained} pays off against {self.untrained} from {n:,} samples on, {how}"


def _is_of(main: str, name: str) -> bool:
    """Whether a figure is the one that is to be shown, or the same of a test file."""
    return name == main or name.endswith(f".{main}")


def _is_same(temperature: float | None, other: float | None) -> bool:
    """Of two means over seeds, which 0.7 three times makes another number than 0.7; an unknown one may be any."""
    return temperature is None or other is None or math.isclose(temperature, other)


@dataclass(frozen=True)
class Table:
    """All measurements of a comparison."""

    measured: Sequence[Measurement]
    main: Sequence[str]
    """Figures to show; each stands for itself and for the same of every test file, `FILE.FIGURE`."""
    plot: PlotSection
    planned: int
    """Cells in all."""

    @property
    def done(self) -> int:
        """Cells that are measured; each may have evaluated several samplers."""
        return len({(item.condition, item.cell, item.seed) for item in self.measured})

    def entries(self, *, shown: bool = True) -> Iterator[Entry]:
        """Means over seeds, in the order in which they were measured; all figures if not only the shown ones."""
        rows = dict.fromkeys((item.condition, item.method) for item in self.measured)
        for condition, method in rows:
            found = [item for item in self.measured if (item.condition, item.method) == (condition, method)]
            for figure in dict.fromkeys(itertools.chain.from_iterable(item.figures for item in found)):
                if shown and figure not in self.columns:
                    continue
                having = [item for item in found if figure in item.figures]
                values = tuple(item.figures[figure] for item in having)
                yield Entry(condition, method, figure, values, tuple(item.seed for item in having))

    @property
    def columns(self) -> list[str]:
        """The figures that are shown."""
        names = dict.fromkeys(itertools.chain.from_iterable(item.figures for item in self.measured))
        return [name for main in self.main for name in names if _is_of(main, name)]

    @property
    def missing(self) -> list[str]:
        """Figures that are to be shown and that no cell has, where any is measured."""
        shown = self.columns
        return [main for main in self.main if self.measured and not any(_is_of(main, name) for name in shown)]

    def pay_offs(self) -> list[PayOff]:
        """Of each method that trained against each under the same condition that draws the same posterior without."""
        means = {(item.condition, item.method, item.figure): item.mean for item in self.entries(shown=False)}
        costs = {(condition, method): mean for (condition, method, figure), mean in means.items() if figure == COST}
        # Tables of earlier versions don't hold it.
        temperatures = {key: means.get((*key, TEMPERATURE)) for key in costs}
        found = []
        for (condition, trained), cost in costs.items():
            training = means.get((condition, trained, TRAINING_COST))
            for (other, untrained), dearer in costs.items():
                if training is None or other != condition or (other, untrained, TRAINING_COST) in means:
                    continue
                if not _is_same(temperatures[condition, trained], temperatures[other, untrained]):
                    continue
                # Draws that are far from the posterior stand for fewer of it.
                ess = means.get((condition, trained, ESS))
                saved = dearer - (cost if ess is None else cost / ess if ess > 0 else math.inf)
                samples = training / saved if saved > 0 else None
                least = cost / dearer if dearer > 0 else None
                unconverged = means.get((condition, untrained, UNCONVERGED))
                found.append(PayOff(condition, trained, untrained, samples, ess, least, unconverged))
        return found

    def rows(self) -> Iterator[tuple[str, str, list[str]]]:
        """Condition, method and the shown figures."""
        shown = {(item.condition, item.method, item.figure): item.shown() for item in self.entries()}
        for condition, method in dict.fromkeys((condition, method) for condition, method, _ in shown):
            yield condition, method, [shown.get((condition, method, name), "-") for name in self.columns]

    def to_json(self) -> str:
        """Every figure of every method, with its values by seed."""
        entries = [
            {
                "condition": item.condition,
                "method": item.method,
                "figure": item.figure,
                "mean": item.mean,
                "standard_error": item.standard_error,
                "values": list(item.values),
                "seeds": list(item.seeds),
            }
            for item in self.entries(shown=False)
        ]
        cells = {(item.condition, item.cell, item.seed, item.seconds) for item in self.measured}
        done = {
            "entries": entries,
            "columns": self.columns,
            "main": list(self.main),
            "plot": self.plot.model_dump(),
            "pay_offs": [asdict(item) for item in self.pay_offs()],
            "measured": [asdict(item) for item in self.measured],
            "cells_done": self.done,
            "cells_planned": self.planned,
            "seconds": sum(seconds for *_, seconds in cells),
            "longest_cell_s": max((seconds for *_, seconds in cells), default=0.0),
        }
        return dumps(done, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """A saved table."""
        data = json.loads(text)
        measured = [Measurement(**item) for item in data["measured"]]
        return cls(measured, data["main"], PlotSection.model_validate(data["plot"]), data["cells_planned"])

    def updated(self, newer: Self) -> Self:
        """This table with what a later one measured: other seeds beside these, the same cells in place of these."""

        def place(item: Measurement) -> tuple[str, str, int]:
            return item.condition, item.cell or item.method, item.seed

        anew = {place(item) for item in newer.measured}
        kept = [item for item in self.measured if place(item) not in anew]
        merged = replace(newer, measured=[*kept, *newer.measured])
        return replace(merged, planned=max(newer.planned, self.planned, merged.done))

    def to_markdown(self) -> str:
        """The shown figures."""
        with_condition = any(item.condition for item in self.measured)
        head = [*(["condition"] if with_condition else []), "method", *self.columns]
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for condition, method, values in self.rows():
            lines.append("| " + " | ".join([*([condition] if with_condition else []), method, *values]) + " |")
        lines += [line for item in self.pay_offs() for line in ("", f"{item.shown()}.")]
        return "\n".join(lines) + "\n"

    def save(self, folder: Path) -> None:
        """Write table.json, table.md and comparison.png."""
        (folder / "table.json").write_text(self.to_json() + "\n", encoding="utf-8")
        (folder / "table.md").write_text(self.to_markdown(), encoding="utf-8")
        if self.measured and self.columns:
            self._draw(folder / "comparison.png")

    def show(self, console: Console) -> None:
        """Print the shown figures."""
        table = RichTable(title="mean ± standard error over seeds", title_justify="left")
        for name in cells("condition", "method", *self.columns):
            table.add_column(name)
        for condition, method, values in self.rows():
            table.add_row(*cells(condition, method, *values))
        console.print(table)
        for item in self.pay_offs():
            console.print(item.shown(), markup=False, highlight=False)

    def _draw(self, path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 4.8), layout="constrained")
        axes = figure.subplots()
        entries = list(self.entries(shown=False))
        y = self.plot.y or self.columns[0]
        if self.plot.x is None:
            self._bars(axes, [item for item in entries if item.figure in self._alike(y)])
        else:
            self._scatter(axes, entries, self.plot.x, y)
        axes.legend(fontsize=8)
        figure.savefig(path, dpi=120)

    def _alike(self, figure: str) -> list[str]:
        """The figure for each test file where there are several, itself otherwise."""
        name = figure.rpartition(".")[2]
        of_files = [column for column in self.columns if not column.startswith(ON_TRAINING)]
        parts = [column for column in of_files if column.endswith(f".{name}")]
        return parts or [figure]

    @staticmethod
    def _bars(axes: Any, entries: Sequence[Entry]) -> None:
        groups = list(dict.fromkeys((item.condition, item.figure) for item in entries))
        methods = list(dict.fromkeys(item.method for item in entries))
        width = 0.8 / max(1, len(methods))
        for i, method in enumerate(methods):
            own = {(item.condition, item.figure): item for item in entries if item.method == method}
            places = [k + i * width for k, group in enumerate(groups) if group in own]
            found = [own[group] for group in groups if group in own]
            errors = [item.standard_error or 0.0 for item in found]
            axes.bar(places, [item.mean for item in found], width, yerr=errors, label=method, capsize=2)
        labels = ["\n".join(part for part in group if part) for group in groups]
        axes.set_xticks([k + 0.4 - width / 2 for k in range(len(groups))], labels, fontsize=8)
        axes.set_ylabel(entries[0].figure.rpartition(".")[2] if entries else "")

    @staticmethod
    def _scatter(axes: Any, entries: Sequence[Entry], x: str, y: str) -> None:
        found, drawn = {(item.condition, item.method, item.figure): item for item in entries}, 0
        for (condition, method, figure), across in found.items():
            up = found.get((condition, method, y))
            if figure == x and up is not None:
                label = " · ".join(part for part in (condition, method) if part)
                axes.errorbar(
                    across.mean,
                    up.mean,
                    xerr=across.standard_error,
                    yerr=up.standard_error,
                    # Colours come again from the eleventh on.
                    fmt="os^Dv"[drawn // 10 % 5],
                    capsize=2,
                    label=label,
                )
                drawn += 1
        axes.set(xlabel=x, ylabel=y)
