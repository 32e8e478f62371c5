"""How good an exported adapter was found to be: the evaluation after training, and those while it trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from common.evaluation import PREFIX
from deploy.run.best import load_best
from deploy.run.curve import read_curve
from deploy.run.summary import BOOKKEEPING, read_json
from deploy.sampler.finished_run import FinishedRun


def final_figures(run: FinishedRun) -> dict[str, Any]:
    """Numbers of the summary, and of each sampler in it: of the last adapter, and so none where it is the best one."""
    if run.best is not None:
        return {}
    summary = read_json(run.folder / "summary.json")
    samplers = summary.get("samplers")
    of_each = {label: _numbers(row) for label, row in samplers.items()} if isinstance(samplers, dict) else {}
    return _numbers(summary) | ({"samplers": of_each} if of_each else {})


def curve_figures(run: FinishedRun) -> list[dict[str, Any]]:
    """What was measured while it trained, at the best step and then at the last one; of the best adapter its own alone.

    Each with its step, and with the metric that it is the best by.
    """
    rows, best = read_curve(run.folder), load_best(run.folder) if run.best is None else run.best
    found = []
    if best is not None:
        own = next((row for row in rows if row.get("adapter_sha256") == best.sha256), {})
        figures = {best.metric: best.value} | _curve_numbers(own)
        found.append({"step": best.step, "best_by": best.metric, "figures": figures})
    if run.best is None and rows and (best is None or rows[-1]["step"] != best.step):
        found.append({"step": rows[-1]["step"], "best_by": None, "figures": _curve_numbers(rows[-1])})
    return [item for item in found if item["figures"]]


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if _is_number(value) and name not in BOOKKEEPING}


def _curve_numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {name.removeprefix(PREFIX): value for name, value in row.items() if name.startswith(PREFIX)}
    return {name: value for name, value in found.items() if _is_number(value)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
