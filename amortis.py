"""amortis from Python: train a sampler of an intractable posterior, open a run, sample, weigh, score.

    import amortis

    trained = amortis.train("mine.yaml")
    with amortis.load(trained.folder) as sampler:
        for sample in sampler.sample("The captain looked at the map and", n=8):
            print(sample.text, sample.log_q, sample.log_r)

docs/python.md has more. Nothing here knows more than the commands do, and what goes wrong is the same UserError or
RunFault.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import RunFault, UserError
from deploy.sampler.opened import Sampler
from deploy.sampler.posterior import Posterior, Sample, TargetProbability, UnreliableEstimate

if TYPE_CHECKING:
    from deploy.run.diagnosis import Subject
    from deploy.run.launcher import RunState

__all__ = [
    "Posterior",
    "RunFault",
    "Sample",
    "Sampler",
    "TargetProbability",
    "TrainResult",
    "UnreliableEstimate",
    "UserError",
    "load",
    "train",
]
__version__ = version("amortis")

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True)
class TrainResult:
    """A run that is over."""

    folder: Path
    """Of the run, for `load`, the commands, and all that the run left."""
    summary: dict[str, Any]
    """As in its summary.json."""

    def load(self, *, seed: int | None = None, best: bool = False, **settings: Any) -> Sampler:
        """Open it: `amortis.load` of its folder."""
        return load(self.folder, seed=seed, best=best, **settings)


def load(run: str | os.PathLike[str], *, seed: int | None = None, best: bool = False, **settings: Any) -> Sampler:
    """Open a finished run's folder. No engine is started before the first sample is drawn.

    `seed` is that of the draws, the run's own without it; with `best` the adapter is the one that was best by
    evaluation.metric while it trained, in place of the last one. `settings` are those that are others than in training,
    with two underscores for each dot or as a dictionary of dotted names: `model__name=PATH`, `**{"model.name": PATH}`.
    """
    return Sampler(Path(run), _as_arguments(settings), seed, best=best)


def train(
    config: Mapping[str, Any] | str | os.PathLike[str],
    *,
    watch: Callable[[RunState], None] | None = None,
    **settings: Any,
) -> TrainResult:
    """Train as `amortis train` does; `config` is a YAML file's path, or what it would hold as a dictionary.

    `settings` go over both, as in `load`. `watch` is called with the run's state twice a second; without it a line is
    written to standard error now and then. An interruption (Ctrl-C) ends the run in good order, and the result says so.
    """
    from common.config_loading import load_config, load_settings
    from deploy.run.train import in_lines
    from deploy.run.train import train as run_to_the_end

    arguments = _as_arguments(settings)
    found = load_settings(config, arguments) if isinstance(config, Mapping) else load_config(Path(config), arguments)

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    def report(folder: Path) -> None:
        from deploy.sampler.report.page import report_at_the_end

        say(report_at_the_end(folder))

    def evaluate(folder: Path) -> dict[str, Any]:
        from deploy.sampler.diagnosed_run import evaluated_and_diagnosed

        return evaluated_and_diagnosed(folder, say)

    trained = run_to_the_end(found, evaluate, watch or in_lines(say), say, _diagnose, report)
    return TrainResult(trained.config.run_folder, trained.summary)


def _diagnose(subject: Subject) -> dict[str, Any]:
    from deploy.sampler.diagnosis import at_the_end

    return at_the_end(subject)


def _as_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the command line takes them."""
    return [
        f"--{name.replace('__', '.')}={value if isinstance(value, str) else _as_text(value)}"
        for name, value in settings.items()
    ]


def _as_text(value: Any) -> str:
    return str(value) if isinstance(value, os.PathLike) else json.dumps(value)
