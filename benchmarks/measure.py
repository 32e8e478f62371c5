"""What all benchmarks share: medians of alternating rounds, and one way to report."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Result:
    """A figure, and what it is held against (None: context only)."""

    name: str
    value: float
    unit: str
    target: str | None = None
    met: bool | None = None


def at_least(name: str, value: float, unit: str, bound: float) -> Result:
    """A figure that should not be below a bound."""
    return Result(name, value, unit, f">= {bound:g}", value >= bound)


def at_most(name: str, value: float, unit: str, bound: float) -> Result:
    """A figure that should not be above a bound."""
    return Result(name, value, unit, f"<= {bound:g}", value <= bound)


def medians_ms(rounds: int, **operations: Callable[[int], object]) -> dict[str, float]:
    """Median milliseconds of each operation, taken in turns, so that a disturbed moment hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in operations}
    for i in range(rounds + 2):
        for name, operation in operations.items():
            start = time.perf_counter()
            operation(i)
            if i >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print a list of results as JSON on standard output")
    return parser


def report(title: str, results: Sequence[Result], as_json: bool) -> None:
    """Print a table, or JSON on standard output."""
    if as_json:
        json.dump([asdict(result) for result in results], sys.stdout, indent=1)
        print()
        return
    table = Table(title=title)
    for column in ("figure", "value", "unit", "target", "met"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for result in results:
        met = "" if result.met is None else "yes" if result.met else "NO"
        table.add_row(result.name, f"{result.value:.3g}", result.unit, result.target or "", met)
    Console(width=120).print(table)
