"""What a run's folder holds, read for its report: what is missing or broken is told, and stands in nobody's way."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from common.adapter_files import files_sha256
from common.errors import UserError
from deploy.run.best import best_folder, load_best
from deploy.run.curve import METRICS, read_metrics
from deploy.run.summary import BEST_DIAGNOSIS, CALIBRATION, DIAGNOSIS, read_json

REPORT = "report.html"
_STEPS = "[em][0-9]*"
"""Folders of an expectation maximisation's steps."""


@dataclass(frozen=True)
class Series:
    """The lines of one metrics.jsonl, by step; those of an expectation maximisation's steps have a label each."""

    label: str
    rows: list[dict[str, Any]]


@dataclass
class FoundRun:
    """A run as it lies on the disk. What isn't there is empty."""

    folder: Path
    config: dict[str, Any]
    """config.yaml as it stands there: that of a run from before may have settings that are no longer known."""
    summary: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]
    """Figures of the evaluations before and after the training."""
    diagnosis: dict[str, Any]
    best_diagnosis: dict[str, Any]
    """Of the last adapter, and of the one that was best while it trained."""
    calibration: dict[str, Any]
    """By simulation, where that was asked for."""
    series: list[Series]
    adapters: frozenset[str]
    best_adapters: frozenset[str]
    """Digests by which the run's last adapter may be named, and its best."""
    notes: list[str] = field(default_factory=list)
    """What is missing, or can't be read."""

    @property
    def name(self) -> str:
        """The run's own, or its folder's."""
        return str(section(self.config, "run").get("name") or self.folder.resolve().name)


def read_run(folder: Path) -> FoundRun:
    """Everything that there is. Raises UserError naming RUN where there is no run at all."""
    if not (folder / "config.yaml").is_file():
        raise UserError("RUN", str(folder), "is no run's folder, as it holds no config.yaml", "give e.g. runs/demo")
    notes: list[str] = []

    def read(name: str) -> dict[str, Any]:
        try:
            return read_json(folder / name)
        except UserError as error:
            notes.append(f"{name} {error.problem}: what it says is left out")
            return {}

    summary = read("summary.json")
    last, best = _adapters(folder, notes)
    return FoundRun(
        folder=folder,
        config=_config(folder, notes),
        summary=summary,
        before=section(read("evaluation_before.json"), "metrics"),
        after=section(read("evaluation_after.json"), "metrics"),
        diagnosis=read(DIAGNOSIS),
        best_diagnosis=read(BEST_DIAGNOSIS),
        calibration=read(f"{CALIBRATION}.json"),
        series=_series(folder, notes),
        adapters=last,
        best_adapters=best,
        notes=notes,
    )


def section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part of it that is a mapping itself; empty where there is none."""
    found = values.get(name)
    return dict(found) if isinstance(found, Mapping) else {}


def _config(folder: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return dict(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {})
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        notes.append(f"config.yaml can't be read ({type(error).__name__}): the settings are left out")
        return {}


def _series(folder: Path, notes: list[str]) -> list[Series]:
    paths = {"": folder} if (folder / METRICS).is_file() else {path.name: path for path in folder.glob(_STEPS)}
    found = []
    for label, path in sorted(paths.items(), key=lambda item: (item[0][1:].zfill(9), item[0])):
        try:
            rows = read_metrics(path)
        except (OSError, ValueError) as error:
            notes.append(f"{METRICS} can't be read ({type(error).__name__}): the curves are left out")
            continue
        if rows:
            found.append(Series(label, rows))
    return found


def _adapters(folder: Path, notes: list[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Of the last one, and of the best."""
    last, best = set[str](), set[str]()
    try:
        last |= _digests(folder / "adapter")
        best |= _digests(best_folder(folder))
        of_best = load_best(folder)
        if of_best is not None:
            best.add(of_best.sha256)
    except (OSError, UserError) as error:
        notes.append(f"the run's adapters can't be read ({type(error).__name__})")
    return frozenset(last), frozenset(best)


def _digests(place: Path) -> set[str]:
    if not place.is_dir():
        return set()
    return {files_sha256({path.name: path.read_bytes() for path in place.iterdir() if path.is_file()})}


def is_of_another(found: Mapping[str, Any], adapters: Set[str]) -> bool:
    """Whether what was found is of none of these adapters; where either doesn't say, it is taken to be of one."""
    digest = found.get("adapter_sha256")
    return bool(digest and adapters) and digest not in adapters
