"""How the learner becomes several processes: by torchrun, which starts it anew so many times on this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

SHUTDOWN_LIMIT_S = 60
"""What process 0 gets for a checkpoint when another one has ended."""


def started_by_torchrun() -> bool:
    """Whether this process is one of those."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def own_rank() -> int:
    """This process' number; 0 where there is one alone."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0


def name_of(rank: int) -> str:
    """What a process is called in the run's logs."""
    return "learner" if rank == 0 else f"learner-{rank}"


def become_torchrun(folder: Path, n: int) -> NoReturn:
    """Go on as torchrun, which starts `n` learners, watches them, and ends all when one of them fails."""
    # All are on this machine, whose own name may lead nowhere.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_LIMIT_S))
    # Each sets its own share of the cores later.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(n)]
    os.execv(sys.executable, [sys.executable, *torchrun, "-m", "learner", str(folder)])
