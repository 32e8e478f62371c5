"""Optional sinks of a run's figures: TensorBoard and Weights & Biases. Both write into the run's folder."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from common.config import RunConfig, TrackingSection
from common.errors import UserError


class Sink(Protocol):
    """Takes the figures of a step."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One step's figures by name."""

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

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the same name; a resumed one goes on with it."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        import wandb

        settings = config.model_dump(mode="json", exclude={"redis": {"url"}})
        self._run = wandb.init(
            project=config.tracking.project,
            name=config.run.name,
            id=config.run.name,
            resume="allow" if config.tracking.wandb == "online" else None,
            mode=config.tracking.wandb,
            dir=str(folder),
            config=settings,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """One row."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Flush."""
        self._run.finish()


def check_tracking(section: TrackingSection) -> None:
    """Raise UserError where a sink that is asked for is not installed."""
    for setting, wanted in (("tensorboard", section.tensorboard), ("wandb", section.wandb)):
        if wanted and find_spec(setting) is None:
            raise UserError(
                f"tracking.{setting}", wanted, f"the package {setting} is not installed", f"pip install {setting}"
            )


def open_sinks(config: RunConfig, folder: Path) -> list[Sink]:
    """Those that the configuration asks for."""
    sinks: list[Sink] = []
    if config.tracking.tensorboard:
        sinks.append(TensorBoard(folder))
    if config.tracking.wandb is not None:
        sinks.append(WeightsAndBiases(config, folder))
    return sinks


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """A step's figures, by the part of the loop they tell of."""
    return {f"train/{name}": float(value) for name, value in row.items() if name != "step"}
