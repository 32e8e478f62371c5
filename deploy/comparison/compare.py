"""`amortis compare`: every cell of conditions × methods × seeds trained and evaluated, one table and one plot of all.

A cell is a run of its own, in a process of its own. What is finished is never done again: an interrupted comparison
goes on with the cell it was at, from its last checkpoint, and where the evaluation's settings alone changed, a cell is
evaluated anew and not trained.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from common.config import POSTERIOR_DRAWS, WITHOUT_TRAINING, RunConfig
from common.config_loading import load_config
from common.devices import available_cores
from common.errors import EXIT_INTERRUPTED, UserError
from common.files import check_writable, write_whole
from common.folder_lock import LAUNCHER, locked
from common.json_text import dumps
from common.processes import die_with_parent
from common.tasks import task_class
from deploy.comparison.definition import WHOLE, Cell, Comparison, Part
from deploy.comparison.table import COST, TEMPERATURE, Measurement, Table
from deploy.comparison.wanted import Wanted
from deploy.run.checks import prepare
from deploy.run.curve import points, read_curve
from deploy.run.kept_samples import SAMPLES, most_drawn
from deploy.run.run_folder import say
from deploy.run.summary import can_go_on, read_json
from learner.checkpoint import drop_older

DONE, EVALUATED, RESUMED, NEW, REPLACED = "done", "evaluated anew", "gone on with", "new", "trained anew"
"""What becomes of a cell."""
_OWN = {
    "run.seed": "--seeds",
    "run.folder": "--folder",
    "run.name": "--folder",
    "run.overwrite": "--overwrite",
    "run.resume": "nothing",
}
"""Settings of each cell that are the comparison's to make, by what is to be given in their place."""
_MOST = 3
"""Texts that a table keeps of each choice."""
_POLL_S = 0.2
INTERRUPTED = "interrupted; the same command goes on from here"
"""The last of what went wrong, where that is why not all is done."""


@dataclass(frozen=True)
class _Job:
    """A cell as it is to be run."""

    number: int
    """From 1."""
    cell: Cell
    config: RunConfig
    wanted: Wanted


@dataclass
class _Begun:
    """A cell whose process runs."""

    job: _Job
    process: subprocess.Popen[bytes]
    started: float
    """On the monotonic clock."""
    earlier_s: float
    """That the cell took before it was interrupted."""
    cores: frozenset[int]
    """That it is kept to; none where it has all."""


def run_comparison(
    comparison: Comparison,
    folder: Path,
    console: Console,
    parallel: int = 1,
    part: Part = WHOLE,
    *,
    overwrite: bool = False,
) -> tuple[Table, list[str]]:
    """Run what of a part is not done yet, up to `parallel` cells at a time; the table of all that is, and what went
    wrong.

    Saves after every cell. Raises UserError, before anything is run, where finished cells would be trained anew
    without `overwrite`.
    """
    with _opened(comparison, folder, part) as cells:
        jobs = _checked(comparison, cells, folder)
        if not overwrite:
            _check_replaced(folder, [job for job in jobs if job.cell in part])
        return _run_cells(comparison, jobs, folder, console, parallel, part)


def states(comparison: Comparison, folder: Path, part: Part = WHOLE) -> list[tuple[str, str]]:
    """What would become of each cell of a part, by its name, when it is run; everything is checked as for that."""
    with _opened(comparison, folder, part) as cells:
        jobs = _checked(comparison, cells, folder)
        return [(job.cell.name, _state(folder, job)) for job in jobs if job.cell in part]


@contextlib.contextmanager
def _opened(comparison: Comparison, folder: Path, part: Part) -> Iterator[list[Cell]]:
    """The cells of a comparison whose folder nobody else works in."""
    part.check(comparison.file)
    for text in comparison.overrides:
        name = text.removeprefix("--").partition("=")[0]
        if name in _OWN and text.startswith("--"):
            raise UserError(name, None, "is each cell's own, made by the comparison", f"give {_OWN[name]} in its place")
    cells = list(comparison.cells(folder))
    remedy = "choose another --folder"
    check_writable("--folder", str(folder), folder, remedy)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    busy = UserError("--folder", str(folder), "is that of a comparison in progress", f"wait for its end, or {remedy}")
    with locked(folder, LAUNCHER, busy):
        yield cells


def _run_cells(
    comparison: Comparison, jobs: Sequence[_Job], folder: Path, console: Console, parallel: int, part: Part
) -> tuple[Table, list[str]]:
    waiting = [job for job in jobs if job.cell in part and not _is_done(folder, job)]
    running: list[_Begun] = []
    problems: list[str] = []
    interrupted = False
    parallel = max(1, min(parallel, len(waiting)))
    free = _shares_of_cores(parallel)
    while running or (waiting and not interrupted):
        try:
            while len(running) < parallel and not interrupted and (ready := _next(waiting, running)):
                waiting.remove(ready)
                cell = ready.cell
                if cell.after is not None and not read_json(_mark(folder, cell.after)).get("done"):
                    problems.append(f"cell {cell.name}: cell {cell.after}, whose adapter it starts from, is not done")
                    continue
                console.print(f"cell {ready.number} of {len(jobs)}: {cell.name}", markup=False, highlight=False)
                running.append(_begin(comparison, folder, ready, parallel, free.pop(0)))
            if running:
                _wait_for_any(running)
        except KeyboardInterrupt:
            # Handed on, so that the runs stop in good order, and a second one at once. Not as SIGINT: what a shell's
            # background job starts ignores that.
            interrupted = True
            for begun in running:
                begun.process.send_signal(signal.SIGTERM)
        for begun in [item for item in running if item.process.poll() is not None]:
            running.remove(begun)
            free.append(begun.cores)
            problem = _end(folder, begun, parallel)
            if problem is not None:
                problems.append(f"cell {begun.job.cell.name}: {problem}")
            interrupted |= begun.process.returncode in (EXIT_INTERRUPTED, -signal.SIGTERM)
            _table(comparison, folder, jobs).save(folder)
    if interrupted and (waiting or problems):
        problems.append(INTERRUPTED)
    table = _table(comparison, folder, jobs)
    table.save(folder)
    return table, problems


def _next(waiting: Sequence[_Job], running: Sequence[_Begun]) -> _Job | None:
    """The first cell that starts from none that is still to end."""
    unfinished = {job.cell.name for job in (*waiting, *(begun.job for begun in running))}
    return next((job for job in waiting if job.cell.after not in unfinished), None)


def _checked(comparison: Comparison, cells: Sequence[Cell], folder: Path) -> list[_Job]:
    """Every cell with its configuration, all checked before any is run; raises UserError naming the cell's setting."""
    jobs: dict[str, _Job] = {}
    examined: set[str] = set()
    told: set[str] = set()

    def once(note: str) -> None:
        if note not in told:
            told.add(note)
            say(note)

    for number, cell in enumerate(cells, start=1):
        path = _settings_path(folder, cell)
        try:
            write_whole(path, yaml.safe_dump(dict(cell.settings), sort_keys=False, allow_unicode=True))
        except OSError as error:
            problem = f"can't be written ({error.strerror})"
            raise UserError(f"methods.{cell.method}", str(path), problem, "shorten names or --folder") from error
        config = load_config(path, [*comparison.overrides, *_run_settings(folder, cell)])
        wanted = Wanted.of(config, None if cell.after is None else jobs[cell.after].wanted)
        jobs[cell.name] = job = _Job(number, cell, config, wanted)
        if _is_done(folder, job):
            continue
        if cell.after is not None:
            config = _without_start(config, jobs[cell.after].config, cell)
        if wanted.start() not in examined:
            examined.add(wanted.start())
            prepare(config, once)
    return list(jobs.values())


def _without_start(config: RunConfig, before: RunConfig, cell: Cell) -> RunConfig:
    """A cell's configuration without the adapter that isn't made yet. Raises UserError where that one wouldn't fit."""
    own, other = config.model.lora, before.model.lora
    for given, where in ((before, "what it starts from"), (config, f"{cell.method} itself")):
        if given.learner.objective in WITHOUT_TRAINING:
            problem = f"{cell.method} starts from another's adapter, and {where} trains none"
            raise UserError("learner.objective", given.learner.objective, problem, "leave out model.lora.start_from")
    for name in ("rank", "alpha", "target_modules"):
        value, given = getattr(own, name), getattr(other, name)
        if (set(value) != set(given)) if name == "target_modules" else (value != given):
            problem = f"{cell.method} starts from an adapter that is made with {given!r}"
            raise UserError(f"model.lora.{name}", value, problem, "give both methods the same")
    lora = own.model_copy(update={"start_from": None})
    return config.model_copy(update={"model": config.model.model_copy(update={"lora": lora})})


def _run_settings(folder: Path, cell: Cell) -> list[str]:
    return [
        "--run.name",
        cell.name,
        "--run.folder",
        str((folder / "cells").resolve()),
        "--run.seed",
        str(cell.seed),
        "--run.overwrite",
        "true",
    ]


def _settings_path(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}.yaml"


def _begin(comparison: Comparison, folder: Path, job: _Job, parallel: int, cores: frozenset[int]) -> _Begun:
    """Start or resume a cell on these cores, or on all that there are."""

    def on_its_own() -> None:
        die_with_parent()
        if cores:
            os.sched_setaffinity(0, cores)

    cell, mark, earlier_s = job.cell, _mark(folder, job.cell.name), 0.0
    earlier = read_json(mark)
    kept = _kept(earlier)
    resume = kept is not None and not job.wanted.changes_of_training(kept) and _can_resume(folder, job)
    if resume:
        earlier_s = earlier.get("seconds", 0.0)
    write_whole(mark, dumps({"asked": job.wanted.as_data(), "done": False, "seconds": earlier_s}))
    with (folder / "cells" / f"{cell.name}.log").open("ab") as log:
        process = subprocess.Popen(
            _command(comparison, folder, cell, resume=resume),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**_threads(parallel), **os.environ},
            start_new_session=True,
            preexec_fn=on_its_own,
        )
    return _Begun(job, process, time.monotonic(), earlier_s, cores)


def _command(comparison: Comparison, folder: Path, cell: Cell, *, resume: bool) -> list[str]:
    settings = [*comparison.overrides, *_run_settings(folder, cell), *(["--run.resume", "true"] if resume else [])]
    return [sys.executable, "-m", "deploy.cli.main", "train", str(_settings_path(folder, cell)), "--json", *settings]


def _threads(parallel: int) -> dict[str, str]:
    """Environment of cells that share this machine: each its share of the cores, and none spins while it waits."""
    if parallel == 1:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, available_cores() // parallel)), "OMP_WAIT_POLICY": "PASSIVE"}


def _shares_of_cores(parallel: int) -> list[frozenset[int]]:
    """The cores of each of so many cells, by which learners and actors count their threads; none where one cell has all
    or not each can have one, nor within a container's limit: others of the machine would choose the same ones."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if parallel == 1 or len(cores) < parallel or available_cores() < len(cores):
        return [frozenset()] * parallel
    return [frozenset(map(int, part)) for part in np.array_split(cores, parallel)]


def _wait_for_any(running: Sequence[_Begun]) -> None:
    while all(begun.process.poll() is None for begun in running):
        time.sleep(_POLL_S)


def _end(folder: Path, begun: _Begun, parallel: int) -> str | None:
    """Mark a cell that ended with what it took and gave; what went wrong, or None."""
    name, status = begun.job.cell.name, begun.process.returncode
    summary = read_json(folder / "cells" / name / "summary.json")
    done = status == 0 and bool(summary) and not summary.get("fault") and not summary.get("interrupted")
    result = {
        "asked": begun.job.wanted.as_data(),
        "done": done,
        "seconds": begun.earlier_s + time.monotonic() - begun.started,
        "parallel": parallel,
        **({"summary": summary, "drawn": most_drawn(folder / "cells" / name / SAMPLES, _MOST)} if done else {}),
    }
    write_whole(_mark(folder, name), dumps(result))
    if done:
        _leave_one_checkpoint(folder / "cells" / name)
    return None if done else f"status {status}; see {folder}/cells/{name}.log"


def _leave_one_checkpoint(run: Path) -> None:
    """What a finished cell is evaluated anew from, if that is asked for; of an expectation maximisation one a step."""
    for place in (run / "checkpoints", *run.glob("*/checkpoints")):
        drop_older(place, keep=1)


def _mark(folder: Path, name: str) -> Path:
    """The file that says how far a cell is."""
    return folder / "cells" / f"{name}.json"


def _kept(mark: Mapping[str, Any]) -> Wanted | None:
    """How a mark's cell was made; None where that can't be told any more."""
    return Wanted.kept(mark["asked"]) if "asked" in mark else None


def _is_done(folder: Path, job: _Job) -> bool:
    mark = read_json(_mark(folder, job.cell.name))
    kept = _kept(mark) if mark.get("done") else None
    return kept is not None and not job.wanted.changes(kept)


def _state(folder: Path, job: _Job) -> str:
    """What a comparison would do with a cell: one of `DONE`, `EVALUATED`, `RESUMED`, `NEW`, or `REPLACED` and why."""
    mark = read_json(_mark(folder, job.cell.name))
    kept, done = _kept(mark), bool(mark.get("done"))
    if _is_done(folder, job):
        return DONE
    changes = ["a setting that is no more"] if kept is None else job.wanted.changes_of_training(kept)
    if not changes and _can_resume(folder, job):
        return EVALUATED if done else RESUMED
    if not done:
        return NEW
    if not changes and job.config.learner.objective in WITHOUT_TRAINING:
        return EVALUATED
    return f"{REPLACED}: {', '.join(changes)} changed" if changes else f"{REPLACED}: its checkpoint is gone"


def _can_resume(folder: Path, job: _Job) -> bool:
    return can_go_on(folder / "cells" / job.cell.name) and job.config.learner.objective not in WITHOUT_TRAINING


def _check_replaced(folder: Path, jobs: Sequence[_Job]) -> None:
    """Raises UserError where finished cells would be trained anew."""
    found = [(job.cell.name, state) for job in jobs if (state := _state(folder, job)).startswith(REPLACED)]
    if found:
        name, state = found[0]
        problem = f"holds {len(found)} finished cells that would be lost ({name} is {state})"
        remedy = "choose another --folder, or train them anew in their place by --overwrite; --dry-run lists them"
        raise UserError("--folder", str(folder), problem, remedy)


def _table(comparison: Comparison, folder: Path, jobs: Sequence[_Job]) -> Table:
    main = comparison.file.figures or list(task_class(jobs[0].config.task).main_figures)
    measured: list[Measurement] = []
    sources: dict[tuple[str, str], set[str]] = {}
    for job in jobs:
        if _is_done(folder, job):
            cell, found = job.cell, read_json(_mark(folder, job.cell.name))
            untrained = job.config.learner.objective == "prompting"
            for method, figures in _rows(found["summary"], cell.method, untrained=untrained):
                if method == cell.method:
                    figures = {**figures, TEMPERATURE: job.config.final_temperature}
                sources.setdefault((cell.condition, method), set()).add(cell.method)
                measured.append(
                    Measurement(
                        cell.condition,
                        method,
                        cell.seed,
                        figures,
                        found["seconds"],
                        cell.method,
                        parallel=found.get("parallel", 1),
                        curve=_curve(job.config.run_folder, main) if method == cell.method else {},
                        drawn=found.get("drawn", {}) if method == cell.method else {},
                    )
                )
    # Other samplers that several methods' cells evaluate: each under its own settings, a mask for example.
    measured = [
        replace(item, method=f"{item.cell}: {item.method}")
        if item.method != item.cell and len(sources[item.condition, item.method]) > 1
        else item
        for item in measured
    ]
    if any(job.config.learner.objective in POSTERIOR_DRAWS for job in jobs) and COST not in main:
        main = [*main, COST]
    return Table(measured, main, comparison.file.plot, planned=len(jobs))


def _rows(summary: Mapping[str, Any], method: str, *, untrained: bool) -> Iterator[tuple[str, dict[str, float]]]:
    """The cell's own figures under its method's name, those of other samplers that it evaluated under theirs."""
    own = dict(_numbers(summary))
    for label, figures in summary.get("samplers", {}).items():
        if label == "trained" or (untrained and label == "base"):
            own.update(_numbers(figures))
        elif label != "base":
            yield label, dict(_numbers(figures))
    yield method, own


def _curve(run: Path, main: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """The main figures of the looks at held-out queries while it trained; empty where there were none."""
    looks = read_curve(run)
    found = {figure: list(zip(*points(looks, figure), strict=True)) for figure in main}
    return {figure: curve for figure, curve in found.items() if curve}


def _numbers(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if name == "samplers":
            continue
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
