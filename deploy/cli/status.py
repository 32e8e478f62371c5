"""What a running system looks like from Redis: learner, buffer and actors, with rates since the look before."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from rich.console import Group
from rich.table import Table

from buffer.control import Control
from buffer.evaluations import Evaluations
from buffer.replay import ReplayBuffer
from common.balance import bottleneck
from common.config import RunConfig
from common.shown import shortened
from common.terminal import cells, title
from deploy.cli.display import actors_alive, evaluation_lines, set_aside
from deploy.run.progress import of_actors

PROMPT_LETTERS = 100


@dataclass(frozen=True)
class ActorStatus:
    """One actor."""

    name: str
    alive: bool
    starting: bool
    """Its engine isn't up yet: until then it may be silent, and isn't dead."""
    phase: str
    host: str
    adapter_version: int
    lag: int
    """Adapter versions that it is behind the newest."""
    pushed: int
    pushed_per_s: float
    silent_s: float
    """Since its last word."""
    reward_failures: int
    """Texts that a reward of the user's own gave no value for."""
    reward_error: str | None
    """Why the last of them has none."""


@dataclass(frozen=True)
class Status:
    """A run at one moment."""

    run: str
    at: float
    phase: str
    step: int
    steps: int
    figures: dict[str, float]
    """The last step's loss, mean log R, log Z, staleness, effective sample size."""
    adapter_version: int
    buffer_size: int
    pushed: int
    trained: int
    quarantined: int
    """Trajectories set aside."""
    pushed_per_s: float
    trained_per_s: float
    actors_wanted: int
    actors: tuple[ActorStatus, ...]
    stop: str | None
    """Why the run ends or has ended."""
    bottleneck: str | None
    """Whether learner or actors are too slow for the other; None before there is anything to tell."""
    drawn: str | None
    """How many samples there are of those that are drawn for the run's end, while they are."""
    stop_when: str | None
    """How far `learner.stop_when` is, where it is set."""
    evaluation: dict[str, Any]
    """The last evaluation and diagnosis while it trains, and the best adapter; empty where there was none."""

    @classmethod
    def read(
        cls,
        run: str,
        config: RunConfig,
        control: Control,
        buffer: ReplayBuffer,
        evaluations: Evaluations,
        before: Self | None = None,
    ) -> Self:
        """Look at the run now."""
        now, learner, stats = time.time(), control.learner(), buffer.stats()
        version = int(learner.get("adapter_version", 0))
        passed = now - before.at if before is not None else 0.0
        earlier = {} if before is None else {actor.name: actor for actor in before.actors}

        def rate(new: int, old: int) -> float:
            return max(0, new - old) / passed if passed else 0.0

        actors, words = [], control.actors()
        for name, status in sorted(words.items(), key=lambda item: (len(item[0]), item[0])):
            pushed, serves = int(status.get("pushed", 0)), int(status.get("adapter_version", 0))
            actors.append(
                ActorStatus(
                    name=name,
                    alive=bool(status["alive"]),
                    starting=bool(status["starting"]),
                    phase=str(status.get("phase")),
                    host=str(status.get("host")),
                    adapter_version=serves,
                    lag=max(0, version - serves),
                    pushed=pushed,
                    pushed_per_s=rate(pushed, earlier[name].pushed) if name in earlier else 0.0,
                    silent_s=max(0.0, now - float(status["at"])),
                    reward_failures=int(status.get("reward_failures", 0)),
                    reward_error=status.get("reward_error"),
                )
            )
        shown = ("loss", "log_reward", "log_z", "staleness", "effective_sample_size")
        return cls(
            run=run,
            at=now,
            phase=str(learner.get("phase", "starting")),
            step=int(learner.get("step", 0)),
            steps=int(learner.get("steps", config.learner.steps)),
            figures={name: float(learner[name]) for name in shown if name in learner},
            adapter_version=version,
            buffer_size=stats.size,
            pushed=stats.pushed,
            trained=stats.trained,
            quarantined=stats.quarantined,
            pushed_per_s=rate(stats.pushed, before.pushed) if before is not None else 0.0,
            trained_per_s=rate(stats.trained, before.trained) if before is not None else 0.0,
            actors_wanted=control.planned_actors() or config.actor.least_count,
            actors=tuple(actors),
            stop=control.stop_reason(),
            bottleneck=bottleneck(learner, words.values(), config),
            drawn=of_actors(word for word in words.values() if word["alive"]),
            stop_when=learner.get("stop_when"),
            evaluation=evaluations.state(),
        )

    @property
    def over(self) -> bool:
        """Whether nothing goes on any more."""
        return self.stop is not None and not any(actor.alive or actor.starting for actor in self.actors)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def samples_table(heading: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Trajectories as text, of `common.shown`; what a model wrote is neither markup nor moves the cursor."""
    table = Table(title=title(heading), title_justify="left")
    for name in ("log R", "prior", "likelihood", "constraint", "version", "source"):
        table.add_column(name, justify="left" if name == "source" else "right", no_wrap=True)
    table.add_column("prompt → Z", overflow="fold", ratio=1)
    for row in rows:
        numbers = [f"{row[name]:.2f}" for name in ("log_r", "log_prior", "log_likelihood", "log_constraint")]
        text = f"{shortened(row['prompt'], PROMPT_LETTERS)} → {row['text']}"
        table.add_row(*cells(*numbers, f"v{row['adapter_version']}", row["source"], text))
    return table


def status_table(status: Status) -> Group:
    """Two tables: the run, and its actors."""
    heading = title(f"amortis: {status.run} — {status.stop or status.phase}")
    run = Table(title=heading, show_header=False, title_justify="left")
    for row in {
        "step": f"{status.step}/{status.steps}",
        **{name.replace("_", " "): f"{value:.3f}" for name, value in status.figures.items()},
        "buffer": f"{status.buffer_size} ({status.pushed} pushed, {status.trained} trained)",
        "pushed/s": f"{status.pushed_per_s:.1f}",
        "trained/s": f"{status.trained_per_s:.1f}",
        "set aside": set_aside(status.quarantined, [asdict(actor) for actor in status.actors]),
        "adapter": f"v{status.adapter_version}",
        **({"bottleneck": status.bottleneck} if status.bottleneck else {}),
        **({"drawn": status.drawn} if status.drawn else {}),
        **evaluation_lines(status.evaluation),
        **({"stop when": status.stop_when} if status.stop_when else {}),
        "actors alive": actors_alive([asdict(actor) for actor in status.actors], status.actors_wanted),
    }.items():
        run.add_row(*cells(*row))
    actors = Table()
    for name in ("actor", "heard", "phase", "host", "serves", "lag", "pushed", "per s"):
        actors.add_column(name, overflow="fold", min_width=8 if name == "phase" else None)
    for actor in status.actors:
        heard = f"{actor.silent_s:.0f} s ago" if actor.alive or actor.starting else "NO"
        serves, rate = f"v{actor.adapter_version}", f"{actor.pushed_per_s:.1f}"
        actors.add_row(*cells(actor.name, heard, actor.phase, actor.host, serves, actor.lag, actor.pushed, rate))
    return Group(run, actors)
