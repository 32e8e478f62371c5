"""Optional sinks of a run's figures: TensorBoard and Weights & Biases. Both write into the run's folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

from common.config import RunConfig, TrackingSection
from common.errors import UserError
from common.files import write_whole
from common.held_out import DIAGNOSIS_PREFIX, EVALUATION_PREFIX
from common.terminal import visible

_ID = "wandb_id"
"""File in a run's folder."""
_MARKDOWN = {ord(mark): f"&#{ord(mark)};" for mark in "|`*_[]!\\~"}


class Sink(Protocol):
    """Takes the figures of a step."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One step's figures by name."""

    def write_evaluation(self, step: int, now: int, figures: Mapping[str, float]) -> None:
        """Figures of an evaluation or a diagnosis of the adapter of a step, which have come by step `now`."""

    def write_samples(self, step: int, title: str, samples: Sequence[Mapping[str, Any]]) -> None:
        """Trajectories as texts, each a row of the same columns."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files for `tensorboard --logdir runs`."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One scalar a figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def write_evaluation(self, step: int, now: int, figures: Mapping[str, float]) -> None:
        """As all others, by the step that they are of."""
        self.write(step, figures)

    def write_samples(self, step: int, title: str, samples: Sequence[Mapping[str, Any]]) -> None:
        """A table in Markdown."""
        self._writer.add_text(f"samples/{title}", as_markdown(samples), step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class WeightsAndBiases:
    """A run under the name that this one has in Redis, as steps of an expectation maximisation are told apart by it; a
    resumed one goes on with it, and another of the same name is another there."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        import wandb

        settings = config.model_dump(mode="json", exclude={"redis": {"url"}})
        self._run = wandb.init(
            project=config.tracking.project,
            name=config.redis_name,
            id=_id_of(config.redis_name, folder),
            resume="allow" if config.tracking.wandb == "online" else None,
            mode=config.tracking.wandb,
            dir=str(folder),
            config=settings,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self._knows_evaluation = False

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One row."""
        self._run.log(dict(figures), step=step)

    def write_evaluation(self, step: int, now: int, figures: Mapping[str, float]) -> None:
        """Over a step of their own, as rows of earlier steps are closed by now."""
        if not self._knows_evaluation:
            for prefix in (EVALUATION_PREFIX, DIAGNOSIS_PREFIX):
                self._run.define_metric(f"{prefix}*", step_metric=f"{EVALUATION_PREFIX}step")
            self._knows_evaluation = True
        self._run.log({**figures, f"{EVALUATION_PREFIX}step": step}, step=now)

    def write_samples(self, step: int, title: str, samples: Sequence[Mapping[str, Any]]) -> None:
        """A table."""
        import wandb

        columns = list(samples[0]) if samples else []
        table = wandb.Table(columns=columns, data=[list(row.values()) for row in samples])
        self._run.log({f"samples/{title}": table}, step=step)

    def close(self) -> None:
        """Flush."""
        self._run.finish()


def _id_of(name: str, folder: Path) -> str:
    """What Weights & Biases knows a run by, which stays in its folder."""
    kept = folder / _ID
    if not kept.is_file():
        write_whole(kept, f"{name}-{secrets.token_hex(4)}\n")
    return kept.read_text(encoding="utf-8").strip()


def check_tracking(section: TrackingSection) -> None:
    """Raise UserError where a sink that is asked for is not installed, or takes nothing from this user."""
    for setting, wanted in (("tensorboard", section.tensorboard), ("wandb", section.wandb)):
        if wanted and find_spec(setting) is None:
            raise UserError(
                f"tracking.{setting}", wanted, f"the package {setting} is not installed", f"pip install {setting}"
            )
    if section.wandb == "online":
        _check_login()


@cache
def _check_login() -> None:
    """The learner asks for a key when all else has started, and has no terminal to ask at."""
    import wandb

    mode = os.environ.get("WANDB_MODE", "online")
    try:
        if mode != "online":
            problem = f"WANDB_MODE is {mode}"
        elif "prompt" not in signature(wandb.login).parameters:
            # An older one can't be asked without asking at a terminal.
            problem = ""
        else:
            problem = "" if wandb.login(prompt=False) else "no key of yours is known here"
    except Exception as error:
        # Its own errors have no base class in common with those of the network.
        problem = f"logging in fails ({' '.join(str(error).split())})"
    if problem:
        raise UserError("tracking.wandb", "online", problem, "run `wandb login`, set WANDB_API_KEY, or give offline")


def open_sinks(config: RunConfig, folder: Path) -> list[Sink]:
    """Those that the configuration asks for."""
    sinks: list[Sink] = []
    if config.tracking.tensorboard:
        sinks.append(TensorBoard(folder))
    if config.tracking.wandb is not None:
        sinks.append(WeightsAndBiases(config, folder))
    return sinks


def as_markdown(samples: Sequence[Mapping[str, Any]]) -> str:
    """A table whose cells are shown as they are: what a model wrote is one line, and no markup."""
    if not samples:
        return ""
    lines = [list(samples[0]), ["---"] * len(samples[0])]
    lines += [[_cell(value) for value in row.values()] for row in samples]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    # By their numbers: within a table a bar or a backtick can't be told from the table's own otherwise.
    return escape(visible(str(value))).translate(_MARKDOWN)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """A step's figures, by the part of the loop they tell of."""
    return {f"train/{name}": float(value) for name, value in row.items() if name != "step"}
