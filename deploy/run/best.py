"""Which adapter of a run was best by a figure of its evaluation, and its folder `adapter-best` beside `adapter`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from common.config import EvaluationSection
from common.errors import UserError
from common.files import sync

FOLDER = "adapter-best"
WHAT = "evaluation.json"
"""In that folder, so that weights and value can't disagree: what they are of."""
ALWAYS = "mean_log_reward"
"""A figure that every evaluation by samples has."""
_REPLACED, _DRAFT = f".{FOLDER}.replaced", f".{FOLDER}.draft"
_LOW_IS_GOOD = re.compile(r"(^|_)(total_variation|loss|error|distance|perplexity|penalty)$")


@dataclass(frozen=True)
class Best:
    """The adapter that was best so far."""

    step: int
    version: int
    metric: str
    mode: Literal["max", "min"]
    value: float
    sha256: str
    """Over the adapter's own files, as it was published."""
    reward: list[float] | None = None
    """`RunConfig.final_reward`; None of a run from before that was kept."""

    def is_beaten_by(self, value: float) -> bool:
        """Whether a value is better; of equals the earlier stays."""
        return value > self.value if self.mode == "max" else value < self.value

    def is_of(self, metric: str, mode: str, reward: list[float]) -> bool:
        """Whether values of this metric, by samplers of this reward's posterior, can be held against it."""
        return (self.metric, self.mode) == (metric, mode) and self.reward in (None, reward)


def mode_of(metric: str, mode: Literal["auto", "max", "min"]) -> Literal["max", "min"]:
    """Which way a figure is better."""
    if mode != "auto":
        return mode
    return "min" if _LOW_IS_GOOD.search(metric) else "max"


def metric_among(section: EvaluationSection, main: Sequence[str], figures: Mapping[str, float]) -> str:
    """The figure that says which adapter is best; raises UserError where the configured one is none of them."""
    if section.metric is None:
        return next((name for name in (*main, ALWAYS) if name in figures), ALWAYS)
    if section.metric not in figures:
        raise UserError(
            "evaluation.metric",
            section.metric,
            "is no figure of this evaluation",
            f"choose one of {', '.join(sorted(figures))}; exact figures are there with learner.evaluate_every alone",
        )
    return section.metric


def best_folder(run: Path) -> Path:
    """Where a run's best adapter lies: between the two steps of `keep_best`, or after a crash there, it is the one
    before. Whoever reads leaves that as it is, as the run may be in progress."""
    folder, replaced = run / FOLDER, run / _REPLACED
    return replaced if not folder.exists() and replaced.exists() else folder


def load_best(run: Path) -> Best | None:
    """The best adapter that a run's folder holds."""
    # The second look is for a folder that was replaced during the first.
    for path in (run / FOLDER / WHAT, run / _REPLACED / WHAT, run / FOLDER / WHAT):
        try:
            return Best(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError) as error:
            raise UserError("RUN", str(path), f"can't be read ({error})", "move that folder away") from error
    return None


def mend_best(run: Path) -> None:
    """Undo what a crash left of `keep_best`; for the one process that keeps the best, and nobody else."""
    if not (run / FOLDER).exists() and (run / _REPLACED).exists():
        (run / _REPLACED).rename(run / FOLDER)


def keep_best(run: Path, files: Mapping[str, bytes], best: Best) -> None:
    """Put an adapter in the place of the best one, whole or not at all. Raises OSError, with the one before kept."""
    mend_best(run)
    draft, folder, replaced = run / _DRAFT, run / FOLDER, run / _REPLACED
    for path in (draft, replaced):
        shutil.rmtree(path, ignore_errors=True)
    draft.mkdir()
    for name, data in {**files, WHAT: json.dumps(asdict(best), indent=2).encode()}.items():
        with (draft / name).open("wb") as file:
            file.write(data)
            sync(file.fileno())
    if folder.exists():
        folder.rename(replaced)
    try:
        draft.rename(folder)
    except OSError:
        mend_best(run)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def in_summary(run: Path) -> dict[str, Any]:
    """What summary.json says of the best adapter; empty where a run has none."""
    best = load_best(run)
    return {} if best is None else {"best_adapter": {"folder": FOLDER, **asdict(best)}}
