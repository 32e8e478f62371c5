"""What a person sees while a run trains, and how results are printed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from common.balance import bottleneck
from common.config import WITHIN_QUERIES
from common.terminal import cells, title, visible
from deploy.run.launcher import RunState

_IN_THE_TABLE = ("elapsed", "actors alive", "bottleneck")
"""Figures that are left out where all is one line."""
_SHOWN = 3
"""Figures of an evaluation; the others are in metrics.jsonl."""


class LiveDisplay:
    """A live table on a terminal; a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._last_line = 0.0
        self._last_phase = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def watch(self, state: RunState) -> None:
        """Show the run's present state."""
        if self._live:
            # Not before there is something to show: what is said until then has the terminal for itself.
            self._live.start()
            self._live.update(state_table(state))
            return
        now = time.monotonic()
        if state.phase != self._last_phase or now - self._last_line > 10:
            self._last_phase, self._last_line = state.phase, now
            self._console.print(state_line(state), highlight=False, markup=False, soft_wrap=True)


def _figures(state: RunState) -> dict[str, str]:
    learner, elapsed = state.learner, time.monotonic() - state.started
    step, steps = int(learner.get("step", 0)), int(learner.get("steps", state.config.learner.steps))
    version = int(learner.get("adapter_version", 0))
    serving = "/".join(str(actor["adapter_version"]) for actor in state.actors.values()) or "-"
    trained_s = float(learner.get("elapsed_s", 0.0))
    eta = f"{(steps - step) * trained_s / step:.0f} s" if step and trained_s else "-"
    figures = {
        "step": f"{step}/{steps}",
        "loss": _number(learner.get("loss")) + _nothing_compared(state),
        "mean log R": _number(learner.get("log_reward"), " nats"),
        "log Z estimate": _number(learner.get("log_z"), " nats"),
        "buffer": f"{state.buffer_size} ({state.pushed} pushed)",
        "adapter": f"v{version}, actors serve {serving}",
        "staleness": _number(learner.get("staleness"), " versions"),
        "set aside": set_aside(state.quarantined, state.actors.values()),
        "samples/s": f"{state.pushed / elapsed:.1f}",
        "actors alive": actors_alive(state.actors.values(), state.actors_wanted),
        "elapsed": f"{elapsed:.0f} s",
        "ETA": eta,
    }
    slow = bottleneck(learner, state.actors.values(), state.config)
    if slow is not None:
        figures["bottleneck"] = slow
    if state.drawn is not None:
        figures["drawn"] = state.drawn
    figures |= evaluation_lines(state.evaluation)
    if "stop_when" in learner:
        figures["stop when"] = visible(str(learner["stop_when"]))
    if "total_variation" in learner:
        figures["total variation"] = _number(learner["total_variation"])
    return figures


def _nothing_compared(state: RunState) -> str:
    """Why a loss of 0 is no perfect sampler's."""
    alone = state.config.learner.objective in WITHIN_QUERIES and state.learner.get("queries_alone") == 1
    return ": nothing to compare, each query's trajectories are the same" if alone else ""


def actors_alive(actors: Iterable[Mapping[str, Any]], wanted: int) -> str:
    """How many of those wanted are heard of, and how many are silent because their engines start."""
    words = list(actors)
    silent = sum(word["starting"] and not word["alive"] for word in words)
    return f"{sum(word['alive'] for word in words)}/{wanted}" + (f", {silent} starting" if silent else "")


def set_aside(quarantined: int, actors: Iterable[Mapping[str, Any]]) -> str:
    """How many trajectories, and what a reward of the user's own has to do with it by the actors' words."""
    words = list(actors)
    failures = sum(int(word.get("reward_failures") or 0) for word in words)
    message = next((visible(str(word["reward_error"])) for word in words if word.get("reward_error")), "")
    return f"{quarantined}; task.reward failed on {failures} texts, e.g. {message}" if failures else str(quarantined)


def evaluation_lines(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """The last evaluation and diagnosis while a run trains, and the best adapter; empty where there was none."""
    if not evaluation:
        return {}
    last, best, diagnosis = evaluation["last"], evaluation["best"], evaluation.get("diagnosis")
    left_out = f", {evaluation['skipped']} adapters left out" if evaluation["skipped"] else ""
    lines = {}
    if last is not None:
        metric = last["metric"]
        shown = {metric: last["figures"].get(metric), **last["figures"]}
        figures = ", ".join(f"{name} {_number(value)}" for name, value in list(shown.items())[:_SHOWN])
        lines["evaluation"] = f"{figures} (step {last['step']}{left_out})"
    if best is not None:
        lines["best adapter"] = f"{best['metric']} {_number(best['value'])} (step {best['step']}, v{best['version']})"
    if diagnosis is not None:
        lines["diagnosis"] = f"{diagnosis_line(diagnosis)} (step {diagnosis['step']}{left_out})"
        if diagnosis["queries"] > 1:
            lines["worst query"] = visible(diagnosis["worst"])
    return lines


def diagnosis_line(diagnosis: Mapping[str, Any]) -> str:
    """A diagnosis while a run trains, its verdict first: log Z ± its standard error, the worst query's ESS and k̂."""
    found = diagnosis["figures"]
    parts = [
        str(diagnosis["verdict"]),
        f"log Z {_number(found.get('log_z'))} ± {_number(found.get('log_z_se'))}",
        f"ESS {found['ess']:.0%}" if "ess" in found else "ESS -",
        f"k̂ {_number(found.get('pareto_k'))}",
        f"length bias {found['length_bias']:+.2f}" if "length_bias" in found else "length bias -",
        f"{found['distinct_prefixes']:.0f} prefixes" if "distinct_prefixes" in found else "prefixes -",
    ]
    if diagnosis["narrow"]:
        parts.append(f"{diagnosis['narrow']} of {diagnosis['queries']} queries with one rationale alone")
    return ", ".join(parts)


def _number(value: Any, unit: str = "") -> str:
    return "-" if value is None else f"{value:.3f}{unit}"


def state_table(state: RunState) -> Table:
    """The run's state as a table of two columns."""
    heading = title(f"amortis: {state.config.run.name} — {state.phase}")
    table = Table(title=heading, show_header=False, title_justify="left")
    for row in _figures(state).items():
        table.add_row(*cells(*row))
    return table


def state_line(state: RunState) -> str:
    """The run's state as one line."""
    if not state.learner.get("step"):
        # Also of a run that was resumed when only its evaluation was left.
        drawn = "" if state.drawn is None else f", drawn {state.drawn}"
        return f"[{time.monotonic() - state.started:4.0f} s] {visible(state.phase)}{drawn}"
    parts = [f"{name} {value}" for name, value in _figures(state).items() if name not in _IN_THE_TABLE]
    return f"[{time.monotonic() - state.started:4.0f} s] {state.phase}: " + ", ".join(parts)


def teller(run: Path) -> Callable[[str], None]:
    """Says on stderr how far a command on a run is, as its results may be read from stdout."""
    progress = Console(stderr=True)

    def say(text: str) -> None:
        progress.print(visible(f"{run}: {text}"), markup=False, highlight=False, soft_wrap=True)

    return say


def print_figures(console: Console, heading: str, figures: Mapping[str, Any]) -> None:
    """Print names and values as a table; nested values are left to the JSON file."""
    table = Table(title=title(heading), show_header=False, title_justify="left")
    for name, value in figures.items():
        if isinstance(value, dict | list) or value is None:
            continue
        table.add_row(*cells(name, f"{value:.4g}" if isinstance(value, float) else value))
    console.print(table)
