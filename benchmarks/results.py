"""Writes docs/results.md from the saved tables of comparisons: `python -m benchmarks.results`.

A table gets here by `python -m benchmarks.results --take comparisons/NAME`, into benchmarks/results/. Cells of another
seed can be made at another time: they come beside those that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_sections import MATRIX, SECTIONS, Section
from benchmarks.results_targets import COUNTING, Figures, Judged, tells
from common.config import DiagnoseSection, EMSection, LearnerSection
from deploy.comparison.definition import Cell, Comparison
from deploy.comparison.table import Entry, PayOff, Table

ROOT = Path(__file__).parents[1]
TABLES, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
COMPARISONS = ROOT / "deploy" / "comparison"

_INTRODUCTION = """# Results

Generated from the saved tables in `benchmarks/results/` by `python -m benchmarks.results`; don't edit it by hand.

Each section is one comparison in `deploy/comparison/`, run with

```console
$ amortis compare deploy/comparison/arithmetic.yaml --data FOLDER
```

on SmolLM2-135M-Instruct and CPU cores. Figures are mean ± standard error over seeds, all with the same test rows: which
rows those are is not in it. A figure without an error is of one seed. What is said of the paper (Hu et al. 2024) is
from GPT-2 and GPT-J 6B, thousands of steps on an A100 and larger test sets: only the order of methods can be compared.

The effective sample size by R/q is the share of a sampler's draws that count as the posterior's once each is weighed by
R/q, mean over some queries (`diagnose`): 1 where it is the posterior. It doesn't see what is never drawn.
"""
_LENGTH = {"steps", "trajectories_trained"}
_TRAINED = {"steps", "iterations"}
"""Figures of cells that train, of EM the second."""


_READ = "What the figures say, of one run each:"


_TARGETS = (
    "What is asked of a method, as the paper's order of methods has it or as a target of our own, and what came out. ± "
    "is the standard error of the difference: over seeds, and of accuracies and of log p of the best over test rows "
    "too, as if each method had its own. p is of Welch's t-test against no difference, two-sided. Undecided is what "
    "it doesn't tell at 5%, and what one seed says alone, decoding aside, whose error is over prompts, or what has no "
    "known error. By chance one in twenty of such tests would tell something:"
)


_WHY = "Beside them, on the mean over seeds:"


_COSTS = "Tokens that training reads (trained ones thrice) against those of draws of the posterior without it:"


_SAID = (
    "The rationales that were drawn most for test queries, by the query's own choice, with their share of the draws. "
    "Where a method's are alike for both choices, they don't depend on the query:"
)


_CURVES = (
    "While it trained, on some of the test's queries and a few samples of each, so that a look scatters, by step; "
    "still rising where the last third of the steps brought more than a tenth of the whole rise, and each seed some; "
    "fell where the last look is below the first for each seed. Seeds look at slightly different steps: between looks "
    "a seed's curve is taken as a line:"
)


def page() -> str:
    """The whole page, Markdown."""
    tables = {
        section.name: json.loads((TABLES / section.name / "table.json").read_text(encoding="utf-8"))
        for section in SECTIONS
        if (TABLES / section.name / "table.json").is_file()
    }
    shown = [_section(section, tables[section.name]) for section in SECTIONS if section.name in tables]
    return "\n".join([_INTRODUCTION, _whole_time(tables), *shown])


def _in_order(measured: Sequence[Mapping[str, Any]], cells: Sequence[Cell]) -> list[Mapping[str, Any]]:
    """As the comparison has them, whenever they were made; what is none of its methods stays where it is."""
    places = {key: place for place, key in enumerate(dict.fromkeys((cell.condition, cell.method) for cell in cells))}
    conditions = {condition: place for place, condition in enumerate(dict.fromkeys(cell.condition for cell in cells))}

    def place(item: Mapping[str, Any]) -> tuple[int, int]:
        condition, method = item["condition"], item["cell"] or item["method"]
        return conditions.get(condition, len(conditions)), places.get((condition, method), len(places))

    return sorted(measured, key=place)


def _section(section: Section, table: Mapping[str, Any]) -> str:
    made = json.loads((TABLES / section.name / "made.json").read_text(encoding="utf-8"))
    entries = [
        Entry(item["condition"], item["method"], item["figure"], tuple(item["values"]), tuple(item["seeds"]))
        for item in table["entries"]
    ]
    comparison = Comparison.load([COMPARISONS / f"{section.name}.yaml"], seeds=None, data=None, overrides=())
    asked = comparison.file.seeds
    cells = [cell for cell in comparison.cells(TABLES) if cell.seed == asked[0]]
    least_ess = COUNTING / _draws(cells)
    figures = {(entry.condition, entry.method, entry.figure): entry for entry in entries}
    measured = _in_order(table["measured"], cells)
    lines = [f"## {section.title}\n", f"{section.text}\n", *_rows(section, figures, least_ess), ""]
    lines.append(f"{_budget(cells, measured)}\n")
    missing = _not_run(cells, measured)
    if missing:
        lines.append(f"Not run yet: {'; '.join(missing)}.\n")
    if section.paper:
        lines.append(f"{section.paper}\n")
    lines += [
        *_listed(_READ, section.read(figures, least_ess)),
        *_judged(section.target(figures, least_ess)),
        *_listed(_COSTS, [f"{PayOff(**item).shown()}." for item in table.get("pay_offs", ())]),
        *_listed(_SAID, _said(measured)),
        *_listed(_CURVES, _curves(section, measured)),
    ]
    seeds, left = _seeds(entries), [seed for seed in asked if not any(seed in entry.seeds for entry in entries)]
    more = f" ({', '.join(map(str, left))} not yet)" if left else ""
    lines.append(f"Made on {made['cores']} cores, seeds {seeds}{more}. {_time(measured)}\n")
    lines.append(f"![{section.title}](../benchmarks/results/{section.name}/comparison.png)\n")
    return "\n".join(lines)


def _draws(cells: Sequence[Cell]) -> int:
    """Of each query that a sampler is diagnosed by."""
    found = [DiagnoseSection.model_validate(cell.settings.get("diagnose", {})) for cell in cells]
    return max((section.samples for section in found if section.final), default=DiagnoseSection().samples)


def _listed(heading: str, items: Sequence[str]) -> list[str]:
    """Lines of a list under its heading; none without items."""
    return [f"{heading}\n", *(f"- {item}" for item in items), ""] if items else []


def _judged(targets: Sequence[Judged]) -> list[str]:
    """The targets as a table, and what other figures say of them."""
    if not targets:
        return []
    head = ("method", "figure: at least that of", "asked", "came out", "difference", "p", "verdict")
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(each.row() for each in targets)]
    return [f"{_TARGETS}\n", *rows, "", *_listed(_WHY, [each.why for each in targets if each.why])]


def _said(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rationales that each method drew most, of its first seed."""
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    for item in sorted(measured, key=lambda item: int(item["seed"])):
        if item.get("drawn"):
            first.setdefault((item["condition"], item["method"]), item)
    told = []
    for condition, method in dict.fromkeys((item["condition"], item["method"]) for item in measured):
        item = first.get((condition, method))
        if item is not None:
            where = f" with {condition}" if condition else ""
            parts = [
                f"of “{choice.strip()}” {', '.join(f'“{text.strip()}” {share:.2f}' for text, share in texts)}"
                for choice, texts in item["drawn"].items()
            ]
            told.append(f"{method}{where}, seed {item['seed']}: {'; '.join(parts)}.")
    return told


def _curves(section: Section, measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """Held-out figures while each method trained, means over the seeds at the steps of the one that looked least."""
    found: dict[tuple[str, str, str], list[Sequence[Sequence[float]]]] = {}
    for item in measured:
        curves = item.get("curve", {})
        # The section's first; of several test files together, where its columns are of each.
        named = (section.curve,) if section.curve else section.figures
        for figure in [figure for figure in named if figure in curves][:1] or curves:
            found.setdefault((item["condition"], item["method"], figure), []).append(curves[figure])
    told = []
    for (condition, method, figure), of_seeds in found.items():
        steps = [int(step) for step, _ in min(of_seeds, key=len)]
        means = np.mean([np.interp(steps, *zip(*curve, strict=True)) for curve in of_seeds], axis=0)
        values = ", ".join(f"{value:.3f} at {step}" for step, value in zip(steps, means, strict=True))
        where = f" with {condition}" if condition else ""
        rises = ", **still rising**" if _still_rises(of_seeds) else ""
        falls = ", **fell**" if all(_rise(curve)[1] < 0 for curve in of_seeds) else ""
        title = section.figures.get(figure, figure)
        told.append(f"{method}{where}, {title}, {_counted(len(of_seeds))}: {values}{rises}{falls}.")
    return told


def _rise(points: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Of the last third of the steps, and the whole."""
    steps, values = zip(*points, strict=True)
    two_thirds = steps[0] + 2 / 3 * (steps[-1] - steps[0])
    return values[-1] - float(np.interp(two_thirds, steps, values)), values[-1] - values[0]


def _still_rises(of_seeds: Sequence[Sequence[Sequence[float]]]) -> bool:
    """Whether the last third of the steps brought more than a tenth of the whole rise, on the mean over seeds, and
    something for each: a look scatters."""
    if min(map(len, of_seeds)) < 3:
        return False
    late, whole = np.transpose([_rise(curve) for curve in of_seeds])
    return bool(late.mean() > 0.1 * whole.mean() > 0 and late.min() > 0)


@dataclass
class _Shared:
    """Cells that ran so many at a time."""

    cells: int = 0
    seconds: float = 0.0
    """Of the machine, not of a cell."""
    longest_s: float | None = None
    """Of the cells that train."""


def _shares(measured: Sequence[Mapping[str, Any]]) -> dict[int, _Shared]:
    """What the cells took, by how many ran at a time."""
    cells: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for item in measured:
        cells.setdefault((item["condition"], item["cell"], item["seed"]), []).append(item)
    found: dict[int, _Shared] = {}
    for rows in cells.values():
        seconds, parallel = rows[0]["seconds"], rows[0]["parallel"]
        share = found.setdefault(parallel, _Shared())
        share.cells += 1
        share.seconds += seconds / parallel
        if any(_TRAINED & row["figures"].keys() for row in rows):
            share.longest_s = max(share.longest_s or 0.0, seconds)
    return dict(sorted(found.items()))


def _time(measured: Sequence[Mapping[str, Any]]) -> str:
    found = []
    for parallel, share in _shares(measured).items():
        how = "one at a time" if parallel == 1 else f"{parallel} at a time on the same cores"
        longest = "" if share.longest_s is None else f", the longest that trains {share.longest_s / 60:.1f} min"
        found.append(f"{share.cells} cells, {how}: {share.seconds / 3600:.1f} h{longest}.")
    return " ".join(found)


def _whole_time(tables: Mapping[str, Mapping[str, Any]]) -> str:
    shares = [share for name in MATRIX if name in tables for share in _shares(tables[name]["measured"]).values()]
    cells, hours = sum(share.cells for share in shares), sum(share.seconds for share in shares) / 3600
    names = ", ".join(name for name in MATRIX if name in tables)
    return f"The {cells} cells of {names} took {hours:.2f} h of the machine in all.\n"


def _not_run(cells: Sequence[Cell], measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """Methods that a comparison asks for and its table has nothing of, by condition."""
    run = {(item["condition"], item["cell"] or item["method"]) for item in measured}
    missing: dict[str, list[str]] = {}
    for cell in cells:
        if (cell.condition, cell.method) not in run:
            missing.setdefault(cell.condition, []).append(f"*{cell.method}*")
    return [f"{f'with {condition} ' if condition else ''}{', '.join(each)}" for condition, each in missing.items()]


def _budget(cells: Sequence[Cell], measured: Sequence[Mapping[str, Any]]) -> str:
    """How long each method was trained, in a sentence; of expectation maximisation by its settings."""
    methods, trained = {cell.name: cell.method for cell in cells}, []
    for cell in {cell.method: cell for cell in cells}.values():
        found = [item["figures"] for item in measured if item["method"] == cell.method]
        learner = LearnerSection.model_validate(cell.settings.get("learner", {}))
        em = EMSection.model_validate(cell.settings.get("em", {}))
        each = [figures["trajectories_trained"] / figures["steps"] for figures in found if figures.keys() >= _LENGTH]
        if em.iterations and found:
            steps = f"{learner.steps} steps, then {em.m_steps} of an M step"
        elif each:
            steps = f"{_steps_of(cell.method, measured)} of {np.mean(each):.3g} trajectories"
        else:
            continue
        after = "" if cell.after is None else f", starting from {methods[cell.after]}'s adapter"
        trained.append(f"{cell.method} {steps}{after}")
    return f"Trained, on the mean: {'; '.join(trained)}."


def _steps_of(method: str, measured: Sequence[Mapping[str, Any]]) -> str:
    """How many steps its cells took, and of which conditions where they differ."""
    of_seeds: dict[str, list[float]] = {}
    for item in measured:
        if item["method"] == method and item["figures"].keys() >= _LENGTH:
            of_seeds.setdefault(item["condition"], []).append(item["figures"]["steps"])
    conditions: dict[str, list[str]] = {}
    for condition, steps in of_seeds.items():
        conditions.setdefault(f"{np.mean(steps):.0f} steps", []).append(condition)
    if len(conditions) == 1:
        return next(iter(conditions))
    return ", ".join(f"{steps} with {' and '.join(names)}" for steps, names in conditions.items())


def _rows(section: Section, found: Figures, least_ess: float) -> list[str]:
    cells = {
        key: entry for key, entry in found.items() if entry.figure in section.figures and tells(found, least_ess, *key)
    }
    rows = list(dict.fromkeys((condition, method) for condition, method, _ in cells))
    order = list(dict.fromkeys(condition for condition, _ in rows))
    # Cells that came later stand with those of their condition.
    rows.sort(key=lambda row: order.index(row[0]))
    conditions = any(order)
    measured = {figure for *_, figure in cells}
    figures = {figure: title for figure, title in section.figures.items() if figure in measured}
    head = [*(["condition"] if conditions else []), "method", *figures.values()]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    most = max((len(entry.seeds) for entry in cells.values()), default=0)
    for condition, method in rows:
        row = [cells.get((condition, method, figure)) for figure in figures]
        n = max(len(entry.seeds) for entry in row if entry is not None)
        name = f"{method}{_fewer(n, most)}"
        values = ["-" if entry is None else f"{entry.shown()}{_fewer(len(entry.seeds), n)}" for entry in row]
        lines.append(f"| {' | '.join([*([condition] if conditions else []), name, *values])} |")
    return lines


def _fewer(n: int, most: int) -> str:
    """How many seeds, where others have more."""
    return "" if n == most else f" ({_counted(n)})"


def _counted(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _seeds(entries: Sequence[Entry]) -> str:
    return ", ".join(map(str, sorted({seed for entry in entries for seed in entry.seeds})))


def take(folder: Path) -> None:
    """Take a comparison's cells in, beside those of other seeds, and note the machine that they were made on."""
    target = TABLES / folder.name
    target.mkdir(parents=True, exist_ok=True)
    table = Table.from_json((folder / "table.json").read_text(encoding="utf-8"))
    saved = target / "table.json"
    if saved.is_file():
        table = Table.from_json(saved.read_text(encoding="utf-8")).updated(table)
    table.save(target)
    made = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    (target / "made.json").write_text(json.dumps(made) + "\n", encoding="utf-8")


def main() -> None:
    """Take tables in if there are any, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--take", type=Path, nargs="*", default=[], metavar="FOLDER", help="folders of comparisons")
    options = parser.parse_args()
    for folder in options.take:
        take(folder)
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
