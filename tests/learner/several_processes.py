"""What torchrun starts in `test_distributed.py`: the learner process of one run after the other.

`several_processes.py [--fail STEP | --die STEP | --hang STEP] RUN_FOLDER …`: process 1 fails, dies, or never comes to
an end, at its share of a step.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from learner import distributed
from learner.__main__ import main
from learner.policy import Actions, LoraPolicy
from learner.torchrun import own_rank


def go_wrong(how: str, step: int) -> None:
    """Have process 1 go wrong when it computes the step's log-probabilities."""
    honest, steps = LoraPolicy.log_probs, 0

    def log_probs(self: LoraPolicy, batch: Sequence[Actions]) -> Any:
        nonlocal steps
        steps += 1
        if steps == step and own_rank() == 1:
            if how == "--die":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "--hang":
                time.sleep(3_600)
            raise MemoryError("no memory for 8 trajectories")
        return honest(self, batch)

    LoraPolicy.log_probs = log_probs  # type: ignore[method-assign]


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0].startswith("--"):
        go_wrong(arguments[0], int(arguments[1]))
        del arguments[:2]
    # They meet once for all runs.
    joined = distributed.Processes("cpu", 2)
    joined.leave = lambda: None  # type: ignore[method-assign]
    distributed.Processes = lambda *_: joined  # type: ignore[assignment,misc]
    sys.exit(max(main([run]) for run in arguments))
