"""Several runs beside one another: a table of their figures, and their curves over each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.sampler.report.contents import RunShown, run_shown
from deploy.sampler.report.curves import Labelled, curve_plots
from deploy.sampler.report.found import FoundRun
from deploy.sampler.report.queries import figure_of
from deploy.sampler.report.words import NOTHING, Verdict, is_number, number, percent


@dataclass(frozen=True)
class Across:
    """One figure or setting of every run."""

    label: str
    values: Sequence[str]


@dataclass(frozen=True)
class SideBySide:
    """The page of several runs. Whatever there is one of for each run is in their order."""

    names: Sequence[str]
    verdicts: Sequence[Verdict | None]
    rows: Sequence[Across]
    settings: Sequence[Across]
    curves: Sequence[Any]
    notes: Sequence[str]


def side_by_side(runs: Sequence[FoundRun]) -> SideBySide:
    """What is shown of them; the notes of each are there with its name."""
    names = _told_apart(runs)
    shown = [run_shown(run, brief=True) for run in runs]
    notes = [f"{name}: {note}" for name, run in zip(names, shown, strict=True) for note in (*run.faults, *run.notes)]
    return SideBySide(
        names=names,
        verdicts=[run.verdict for run in shown],
        rows=[*_facts(shown), *_figures(shown), *_diagnoses(runs)],
        settings=_settings(shown),
        curves=curve_plots([_whole(name, run) for name, run in zip(names, runs, strict=True)], notes),
        notes=notes,
    )


def _told_apart(runs: Sequence[FoundRun]) -> list[str]:
    """Their names, or their folders where two have the same one."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _whole(name: str, run: FoundRun) -> Labelled:
    """A run's lines; those of an expectation maximisation's steps follow one another."""
    rows: list[dict[str, Any]] = []
    for one in run.series:
        before = rows[-1]["step"] if rows else 0
        rows += [{**row, "step": row["step"] + before} for row in one.rows]
    return name, rows


def _facts(shown: Sequence[RunShown]) -> list[Across]:
    """What each was, versions left out: they are of this page."""
    found = [{fact.label: fact.value for fact in run.facts if not fact.label.startswith("Versions")} for run in shown]
    labels = dict.fromkeys(label for facts in found for label in facts)
    return [Across(label, [facts.get(label, NOTHING) for facts in found]) for label in labels]


def _figures(shown: Sequence[RunShown]) -> list[Across]:
    """Figures after the training; where a table has others beside it, theirs are left to the run's own page."""
    found = []
    for run in shown:
        own: dict[str, str] = {}
        if run.samplers is not None and "trained" in run.samplers.columns:
            place = list(run.samplers.columns).index("trained")
            own |= {name: values[place] for name, values in run.samplers.rows}
        if run.figures is not None:
            own |= {name: values[-1] for name, values in run.figures.rows}
        found.append(own)
    names = dict.fromkeys(name for own in found for name in own)
    return [Across(name, [own.get(name, NOTHING) for own in found]) for name in names]


def _diagnoses(runs: Sequence[FoundRun]) -> list[Across]:
    """Over the queries of each one's diagnosis: the mean, and the worst."""

    def across(label: str, name: str, over: Callable[[Any], Any], form: Callable[[Any], str]) -> Across:
        values = []
        for run in runs:
            queries = run.diagnosis.get("queries") or ()
            found = [value for query in queries if is_number(value := _plain(figure_of(query, name)))]
            values.append(form(float(over(found))) if found else NOTHING)
        return Across(label, values)

    found = [
        across("log Z, mean over the queries", "log_z", np.mean, number),
        across("ELBO, mean over the queries", "elbo", np.mean, number),
        across("effective sample size, mean", "ess", np.mean, percent),
        across("effective sample size, of the worst query", "ess", np.min, percent),
        across("Pareto k̂, of the worst query", "pareto_k", np.max, lambda value: number(value, 2)),
        across("length bias, mean", "length_bias", np.mean, lambda value: number(value, 3)),
        across("prefix collapse, mean", "prefix_collapse", np.mean, lambda value: number(value, 3)),
    ]
    return [row for row in found if any(value != NOTHING for value in row.values)]


def _plain(value: Any) -> Any:
    """An estimate's value, or the value itself."""
    return value.get("value") if isinstance(value, dict) else value


def _settings(shown: Sequence[RunShown]) -> list[Across]:
    found = [{setting.name: setting for setting in run.settings} for run in shown]
    defaults = {name: setting.default for settings in found for name, setting in settings.items() if setting.default}

    def value(settings: dict[str, Any], name: str) -> str:
        return settings[name].value if name in settings else defaults.get(name, NOTHING)

    names = dict.fromkeys(name for settings in found for name in settings)
    rows = [Across(name, [value(settings, name) for settings in found]) for name in names]
    return [row for row in rows if len(set(row.values)) > 1]
