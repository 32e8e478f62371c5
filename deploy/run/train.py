"""A training of any kind, from its configuration to its summary: what the command line and Python both start."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import WITHOUT_TRAINING, RunConfig
from common.errors import RunFault, UserError
from deploy.run.checks import prepare
from deploy.run.diagnosis import Diagnose
from deploy.run.launcher import RunState, Watcher
from deploy.run.progress import SAY_EVERY_S
from deploy.run.run_folder import PRODUCED, claimed


@dataclass(frozen=True)
class Trained:
    """A run that is over."""

    config: RunConfig
    """Resolved, with the run's name."""
    summary: dict[str, Any]


def train(
    config: RunConfig,
    evaluate: Callable[[Path], dict[str, Any]],
    watch: Watcher = lambda state: None,
    say: Callable[[str], None] = lambda text: None,
    diagnose: Diagnose | None = None,
    report: Callable[[Path], None] = lambda folder: None,
) -> Trained:
    """Check the configuration, claim the run's folder, and run to the end.

    `evaluate` gives the figures of the finished run in a folder, its diagnosis included, which an expectation
    maximisation ends with; `diagnose` diagnoses the sampler that any other run ends with. `watch` sees the state of a
    run's training, and of each step of an expectation maximisation; `say` gets a line at each of these steps, and now
    and then one of how far a run without training is. `report` makes the report of a run's folder at its end, or when
    it stops itself. Raises UserError and RunFault.
    """
    if threading.current_thread() is not threading.main_thread():
        # Signals, by which a run is stopped in good order, come to that thread alone.
        raise UserError("train", None, "is called in a thread beside the main one", "call it in the main thread")
    with claimed(prepare(config)) as named:
        try:
            summary = _run(named, evaluate, watch, say, diagnose)
        except RunFault:
            if any((named.run_folder / name).is_file() for name in PRODUCED):
                report(named.run_folder)
            raise
        report(named.run_folder)
        return Trained(named, summary)


def _run(
    config: RunConfig,
    evaluate: Callable[[Path], dict[str, Any]],
    watch: Watcher,
    say: Callable[[str], None],
    diagnose: Diagnose | None,
) -> dict[str, Any]:
    if config.em.iterations:
        from deploy.run.em import run_em

        return run_em(config, evaluate, say, watch)
    if config.learner.objective == "prompting":
        from deploy.run.prompting import run_prompting

        return run_prompting(config, diagnose, say)
    if config.learner.objective in WITHOUT_TRAINING:
        from deploy.run.inference import run_inference

        return run_inference(config, say)
    from deploy.run.launcher import Launcher

    return Launcher(config, watch, diagnose=diagnose).run()


def in_lines(say: Callable[[str], None]) -> Watcher:
    """A watcher that says the phase when it changes, and in between now and then how far the run is."""
    last_phase, last_s = "", 0.0

    def watch(state: RunState) -> None:
        nonlocal last_phase, last_s
        now = time.monotonic()
        if state.phase == last_phase and now - last_s < SAY_EVERY_S:
            return
        last_phase, last_s = state.phase, now
        line, learner = f"[{now - state.started:4.0f} s] {state.phase}", state.learner
        if learner.get("step"):
            line += f": step {learner['step']} of {learner.get('steps', state.config.learner.steps)}"
            if learner.get("log_reward") is not None:
                line += f", mean log R {learner['log_reward']:.3f} nats"
        if state.drawn is not None:
            line += f", drawn {state.drawn}"
        say(line)

    return watch
