"""`amortis compare`: every cell of conditions × methods × seeds trained and evaluated, one table and one plot of all.

A cell is a run of its own, in a process of its own. What is finished is never done again: an interrupted comparison
goes on with the cell it was at, from its last checkpoint, and where the evaluation's settings alone changed, a cell is
evaluated anew and not trained.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from rich.console import Console

from common.config import POSTERIOR_DRAWS, WITHOUT_TRAINING, RunConfig
from common.config_loading import load_config
from common.devices import available_cores
from common.errors import EXIT_INTERRUPTED, UserError
from common.files import check_writable, write_whole
from common.folder_lock import LAUNCHER, locked
from common.json_text import dumps
from common.processes import die_with_parent
from common.tasks import UNREAD, task_class
from deploy.comparison.definition import WHOLE, Cell, Comparison, Part
from deploy.comparison.table import COST, TEMPERATURE, Measurement, Table
from deploy.run.checks import prepare
from deploy.run.curve import points, read_curve
from deploy.run.kept_samples import SAMPLES, most_drawn
from deploy.run.summary import can_go_on, read_json
from learner.checkpoint import drop_older

_WHERE_AND_HOW: Any = {
    "run": {"folder", "name", "overwrite", "redis_name", "resume"},
    **{section: True for section in ("metrics", "ray", "redis", "tracking")},
}
"""Settings that a cell's figures don't depend on."""
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
    asked: Mapping[str, Any]
    """What its mark keeps of how it was to be: its settings, and `before`, the same of the cell that it starts from."""


@dataclass
class _Begun:
    """A cell whose process runs."""

    job: _Job
    process: subprocess.Popen[bytes]
    started: float
    """On the monotonic clock."""
    earlier_s: float
    """That the cell took before it was interrupted."""


def run_comparison(
    comparison: Comparison, folder: Path, console: Console, parallel: int = 1, part: Part = WHOLE
) -> tuple[Table, list[str]]:
    """Run what of a part is not done yet, up to `parallel` cells at a time; the table of all that is, and what went
    wrong.

    Saves after every cell.
    """
    part.check(comparison.file)
    cells = list(comparison.cells(folder))
    remedy = "choose another --folder"
    check_writable("--folder", str(folder), folder, remedy)
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    busy = UserError("--folder", str(folder), "is that of a comparison in progress", f"wait for its end, or {remedy}")
    with locked(folder, LAUNCHER, busy):
        return _run_cells(comparison, cells, folder, console, parallel, part)


def _run_cells(
    comparison: Comparison, cells: Sequence[Cell], folder: Path, console: Console, parallel: int, part: Part
) -> tuple[Table, list[str]]:
    jobs = _checked(comparison, cells, folder)
    waiting = [job for job in jobs if job.cell in part and not _is_done(folder, job)]
    running: list[_Begun] = []
    problems: list[str] = []
    interrupted = False
    while running or (waiting and not interrupted):
        try:
            while len(running) < parallel and not interrupted and (ready := _next(waiting, running)):
                waiting.remove(ready)
                cell = ready.cell
                if cell.after is not None and not read_json(_mark(folder, cell.after)).get("done"):
                    problems.append(f"cell {cell.name}: cell {cell.after}, whose adapter it starts from, is not done")
                    continue
                console.print(f"cell {ready.number} of {len(cells)}: {cell.name}", markup=False, highlight=False)
                running.append(_begin(comparison, folder, ready, parallel))
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
    for number, cell in enumerate(cells, start=1):
        path = _settings_path(folder, cell)
        try:
            write_whole(path, yaml.safe_dump(dict(cell.settings), sort_keys=False, allow_unicode=True))
        except OSError as error:
            problem = f"can't be written ({error.strerror})"
            raise UserError(f"methods.{cell.method}", str(path), problem, "shorten names or --folder") from error
        config = load_config(path, [*comparison.overrides, *_run_settings(folder, cell)])
        asked = _as_now(_asked(config, None if cell.after is None else jobs[cell.after].asked))
        jobs[cell.name] = job = _Job(number, cell, config, asked)
        # The same task with the same seeds need not be read twice.
        digest = hashlib.sha256(
            json.dumps(config.model_dump(mode="json", include={"task", "seeds", "actor", "model"})).encode()
        ).hexdigest()
        if digest not in examined and cell.after is None and not _is_done(folder, job):
            examined.add(digest)
            prepare(config)
    return list(jobs.values())


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


def _begin(comparison: Comparison, folder: Path, job: _Job, parallel: int) -> _Begun:
    """Start or resume a cell."""
    cell, mark, earlier_s = job.cell, _mark(folder, job.cell.name), 0.0
    earlier = read_json(mark)
    resume = (
        _of_training(_kept(earlier)) == _of_training(job.asked)
        and can_go_on(folder / "cells" / cell.name)
        and job.config.learner.objective not in WITHOUT_TRAINING
    )
    if resume:
        earlier_s = earlier.get("seconds", 0.0)
    write_whole(mark, dumps({"asked": job.asked, "done": False, "seconds": earlier_s}))
    with (folder / "cells" / f"{cell.name}.log").open("ab") as log:
        process = subprocess.Popen(
            _command(comparison, folder, cell, resume=resume),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**_threads(parallel), **os.environ},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    return _Begun(job, process, time.monotonic(), earlier_s)


def _command(comparison: Comparison, folder: Path, cell: Cell, *, resume: bool) -> list[str]:
    settings = [*comparison.overrides, *_run_settings(folder, cell), *(["--run.resume", "true"] if resume else [])]
    return [sys.executable, "-m", "deploy.cli.main", "train", str(_settings_path(folder, cell)), "--json", *settings]


def _threads(parallel: int) -> dict[str, str]:
    """Environment of cells that share this machine: each its share of the cores, and none spins while it waits."""
    if parallel == 1:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, available_cores() // parallel)), "OMP_WAIT_POLICY": "PASSIVE"}


def _wait_for_any(running: Sequence[_Begun]) -> None:
    while all(begun.process.poll() is None for begun in running):
        time.sleep(_POLL_S)


def _end(folder: Path, begun: _Begun, parallel: int) -> str | None:
    """Mark a cell that ended with what it took and gave; what went wrong, or None."""
    name, status = begun.job.cell.name, begun.process.returncode
    summary = read_json(folder / "cells" / name / "summary.json")
    done = status == 0 and bool(summary) and not summary.get("fault") and not summary.get("interrupted")
    result = {
        "asked": begun.job.asked,
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


def _asked(config: RunConfig, before: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"settings": config.model_dump(mode="json", exclude=_WHERE_AND_HOW), "before": before}


def _as_now(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The same as this version reads it: settings that came later have their defaults. Raises ValidationError for one
    that is no more."""
    config = RunConfig.model_validate(asked["settings"], context=UNREAD)
    return _asked(config, None if asked["before"] is None else _as_now(asked["before"]))


def _kept(mark: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a mark's cell was to be; None where that can't be told any more."""
    try:
        return _as_now(mark["asked"]) if "asked" in mark else None
    except ValidationError:
        return None


def _of_training(asked: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What decides the training, and not how it is evaluated at its end."""
    if asked is None:
        return None
    settings = {
        section: {name: value for name, value in found.items() if not _is_of_evaluation(section, name)}
        for section, found in asked["settings"].items()
    }
    return {"settings": settings, "before": _of_training(asked["before"])}


def _is_of_evaluation(section: str, name: str) -> bool:
    return (section, name) == ("run", "evaluate_training") or (section == "task" and name.startswith("evaluation_"))


def _is_done(folder: Path, job: _Job) -> bool:
    mark = read_json(_mark(folder, job.cell.name))
    kept = _kept(mark) if mark.get("done") else None
    return (
        kept is not None and kept["settings"] == job.asked["settings"] and _of_training(kept) == _of_training(job.asked)
    )


def _table(comparison: Comparison, folder: Path, jobs: Sequence[_Job]) -> Table:
    main = comparison.file.figures or list(task_class(jobs[0].config.task).main_figures)
    measured: list[Measurement] = []
    for job in jobs:
        if _is_done(folder, job):
            cell, found = job.cell, read_json(_mark(folder, job.cell.name))
            untrained = job.config.learner.objective == "prompting"
            for method, figures in _rows(found["summary"], cell.method, untrained=untrained):
                if method == cell.method:
                    figures = {**figures, TEMPERATURE: job.config.final_temperature}
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
