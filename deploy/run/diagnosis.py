"""What a diagnosis is made of, filled in by whoever has an engine up; and the one that a run ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.adapter_files import files_sha256
from common.config import RunConfig
from common.errors import RunFault, UserError
from common.log import get_logger
from common.tasks import SampleRequest, Task
from common.trajectory import Query, Trajectory
from deploy.run.actor_pool import EvaluationStopped
from deploy.run.cluster import own_gpus

if TYPE_CHECKING:
    from learner.policy import LoraPolicy

log = get_logger("launcher")

Collect = Callable[[Sequence[SampleRequest]], Mapping[str, Mapping[str, Sequence[Trajectory]]]]
"""All samples of requests, by label and query id; what made no valid trajectory is missing."""
BestKnown = Callable[[Sequence[str], int], Mapping[str, Sequence[Trajectory]]]
"""Of each query by id the so many rationales of the highest log R that the run's buffer holds. Raises UserError or
RedisError where it can't be read."""


@dataclass(frozen=True)
class Subject:
    """A sampler that is diagnosed, and what that takes."""

    folder: Path
    config: RunConfig
    """Resolved, precisions included."""
    task: Task[Any]
    adapter_sha256: str | None
    """None for the untrained model."""
    queries: Sequence[Query]
    collect: Collect
    """Of these queries, at temperature 1, from the trained policy and from the base model."""
    policy: Callable[[], LoraPolicy]
    """The exact policy; loaded when it is asked for."""
    best_known: BestKnown | None
    """None where there never was a buffer."""
    should_stop: Callable[[], bool] = lambda: False
    """Looked at between passes of a model: whether the user wants an end."""

    def check_stop(self) -> None:
        """Raises EvaluationStopped if the user wants an end."""
        if self.should_stop():
            raise EvaluationStopped


Diagnose = Callable[[Subject], Mapping[str, Any]]
"""Diagnoses, leaves diagnosis.json in the run's folder, and gives what summary.json is to say of it."""


def of_adapter(
    folder: Path,
    config: RunConfig,
    task: Task[Any],
    queries: Sequence[Query],
    collect: Collect,
    best_known: BestKnown,
    should_stop: Callable[[], bool],
) -> Subject:
    """The sampler that a run's learner has just left, its engine still up."""
    adapter = folder / "adapter"
    files = {path.name: path.read_bytes() for path in adapter.iterdir()}

    def policy() -> LoraPolicy:
        import torch

        from learner.policy import LoraPolicy

        model, section = config.model.name, config.learner
        assert model is not None
        # Where the learner was, which has ended: an actor's GPU may have no room.
        n_own = len(own_gpus(config))
        place = f"cuda:{torch.cuda.device_count() - n_own}" if n_own else section.device
        return LoraPolicy.trained(model, adapter, task.action_space, dtype=section.dtype, device=torch.device(place))

    return Subject(folder, config, task, files_sha256(files), queries, collect, policy, best_known, should_stop)


UNFINISHED: Mapping[str, Any] = {"diagnosis": "none: the run was ended while it was made; `amortis diagnose` makes one"}
"""What summary.json says until there is one: it is written before as well, as a diagnosis loads models, and a process
that takes more memory than there is gets killed without a word."""


def is_wanted(config: RunConfig) -> bool:
    """Whether a run's settings ask for a diagnosis at its end."""
    return config.diagnose.final and config.run.evaluate_samples


def diagnosed(config: RunConfig, diagnose: Diagnose | None, subject: Callable[[], Subject]) -> dict[str, Any]:
    """What summary.json says of a finished sampler; empty where it isn't diagnosed.

    A run is as good without: why there is no diagnosis is said in its place.
    """
    if diagnose is None or not is_wanted(config):
        return {}
    try:
        return dict(diagnose(subject()))
    except EvaluationStopped:
        raise
    except (UserError, RunFault) as error:
        log.error("no diagnosis: %s", error)
        return {"diagnosis": f"none: {error}"}
    except Exception as error:
        log.exception("no diagnosis")
        return {"diagnosis": f"none ({type(error).__name__}: {error}); `amortis diagnose` makes one"}
