"""What a resumed run had before is put aside until it gets further, and put back if it doesn't."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from common.config import RunConfig
from common.config_loading import save_resolved
from deploy.run.best import WHAT, best_folder
from deploy.run.kept_samples import SAMPLES
from deploy.run.summary import BEST_CALIBRATION, BEST_DIAGNOSIS, CALIBRATION, DIAGNOSIS, read_json
from learner.checkpoint import checkpoints, place_of

ASIDE = ".before-resume"
CONFIG, SUMMARY, LEARNER_SUMMARY = "config.yaml", "summary.json", "learner_summary.json"
OF_THE_END = (
    *(LEARNER_SUMMARY, "evaluation_after.json", "evaluation_samples.json", SAMPLES),
    *(DIAGNOSIS, f"{CALIBRATION}.json", f"{CALIBRATION}.png"),
)
"""What an earlier part of a resumed run left is not this part's."""
OF_THE_BEST = (BEST_DIAGNOSIS, f"{BEST_CALIBRATION}.json", f"{BEST_CALIBRATION}.png")
"""Nor is what it left of the best adapter, unless no other has become the best."""
OF_THE_BEGINNING = "evaluation_before.json"
"""Nor is the untrained policy's evaluation under other settings of the task."""
_NEWEST, _BEST = "newest", "best"


@contextlib.contextmanager
def begun(config: RunConfig) -> Iterator[None]:
    """Write the configuration. A resumed run that fails or is stopped with no step done gets back what it had, its
    summary among it: a good run that can't be gone on with is still a good run."""
    folder = config.run_folder
    if not config.run.resume:
        save_resolved(config, folder / CONFIG)
        yield
        return
    _put_aside(folder)
    save_resolved(config, folder / CONFIG)
    if (folder / OF_THE_BEGINNING).exists() and _task_of(folder / CONFIG) != _task_of(folder / ASIDE / CONFIG):
        (folder / OF_THE_BEGINNING).rename(folder / ASIDE / OF_THE_BEGINNING)
    try:
        yield
    finally:
        _end(folder)


def _put_aside(folder: Path) -> None:
    aside = folder / ASIDE
    if aside.exists():
        # An earlier attempt was killed.
        _end(folder)
    aside.mkdir()
    (aside / _NEWEST).write_text(_newest(folder), encoding="utf-8")
    (aside / _BEST).write_bytes(_best(folder))
    for name in (CONFIG, SUMMARY):
        if (folder / name).exists():
            shutil.copy2(folder / name, aside / name)
    for name in (*OF_THE_END, *OF_THE_BEST):
        if (folder / name).exists():
            (folder / name).rename(aside / name)


def _end(folder: Path) -> None:
    """Put back what was put aside, unless the run got further or to its end; then it is out of date."""
    aside = folder / ASIDE
    before = (aside / _NEWEST).read_text(encoding="utf-8") if (aside / _NEWEST).exists() else ""
    if _newest(folder) == before and not _learner_is_done(folder):
        for name in (CONFIG, SUMMARY, OF_THE_BEGINNING, *OF_THE_END):
            if (aside / name).exists():
                (aside / name).replace(folder / name)
    if (aside / _BEST).exists() and (aside / _BEST).read_bytes() == _best(folder):
        for name in OF_THE_BEST:
            # One that is there by now is newer.
            if (aside / name).exists() and not (folder / name).exists():
                (aside / name).rename(folder / name)
    shutil.rmtree(aside)


def _task_of(path: Path) -> Any:
    """The task's settings, of a configuration that may be of an earlier version."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))["task"] if path.exists() else None


def _learner_is_done(folder: Path) -> bool:
    """Whether it trained to its end; one that is asked to stop writes its summary too."""
    return bool(read_json(folder / LEARNER_SUMMARY).get("trained_to_its_end"))


def _best(folder: Path) -> bytes:
    """What is said of the best adapter, its digest among it; empty where there is none."""
    path = best_folder(folder) / WHAT
    return path.read_bytes() if path.is_file() else b""


def _newest(folder: Path) -> str:
    return "".join(place_of(path).name for path in checkpoints(folder / "checkpoints")[-1:])
