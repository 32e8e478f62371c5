"""Trains in a container: joins the Ray cluster, and after a restart goes on from the last checkpoint.

`python -m deploy.docker.entrypoint CONFIG… [--section.key value …]`. With RAY_HEAD=HOST:PORT the container becomes a
Ray node without cores or GPUs, as only a node can place actors on others; without it, it is one already. SIGTERM, as
from `docker compose stop`, is passed on to `amortis train`, which saves a checkpoint; the node then leaves the cluster.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from common.config import RunConfig
from common.config_loading import load_config
from common.errors import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_USER, UserError
from deploy.run.run_folder import is_in_progress
from deploy.run.summary import can_go_on

HEAD_VARIABLE = "RAY_HEAD"
JOIN_LIMIT_S = 120.0
LEAVE_LIMIT_S = 30.0


class Supervisor:
    """Runs one command after the other until a signal comes, which it passes on."""

    def __init__(self) -> None:
        self.stopped = False
        self._child: subprocess.Popen[bytes] | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def run(self, command: Sequence[str], limit_s: float | None = None) -> int:
        """The command's exit status; it is not started once a stop was asked for."""
        if self.stopped:
            return EXIT_INTERRUPTED
        # A session of its own: Ctrl-C in a terminal would reach it twice.
        self._child = subprocess.Popen(command, start_new_session=True)
        if self.stopped:
            self._child.terminate()
        try:
            return self._child.wait(limit_s)
        except subprocess.TimeoutExpired:
            print(f"amortis: {command[0]} did not end within {limit_s:.0f} s", file=sys.stderr)
            self._child.kill()
            return EXIT_FAULT
        finally:
            self._child = None

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self._child is not None:
            self._child.terminate()


def going_on(config: RunConfig) -> list[str]:
    """Options for a run whose folder an earlier start of the container left: a checkpoint is gone on with.

    A folder without one is moved aside.
    """
    if config.run.name is None or not config.run_folder.exists():
        return []
    if can_go_on(config.run_folder) or is_in_progress(config.run_folder):
        # Of a run in progress, which another container may have, `amortis train` says so.
        return ["--run.resume", "true"]
    # It ended before its first checkpoint: there is nothing to go on with, but its logs say why.
    kept = next(path for n in itertools.count(1) if not (path := Path(f"{config.run_folder}.failed-{n}")).exists())
    config.run_folder.rename(kept)
    print(f"amortis: an earlier start of this run left no checkpoint; its folder is {kept} now", file=sys.stderr)
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    """Join, train, leave; the exit status, 0 too where a stop was asked for."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    n_files = next((i for i, word in enumerate(given) if word.startswith("-")), len(given))
    configs, overrides = given[:n_files], given[n_files:]
    supervisor = Supervisor()
    head = os.environ.get(HEAD_VARIABLE)
    try:
        if not configs:
            raise UserError("CONFIG", None, "is missing", "name a YAML file")
        options = going_on(load_config([Path(config) for config in configs], overrides))
        join = _join(head) if head else None
    except UserError as error:
        print(f"amortis: {error}", file=sys.stderr)
        return EXIT_USER
    except OSError as error:
        print(f"amortis: {HEAD_VARIABLE} = {head}: {error}; name the host and port of Ray's head", file=sys.stderr)
        return EXIT_USER
    status = supervisor.run(join, JOIN_LIMIT_S) if join else 0
    if status == 0:
        status = supervisor.run([_program("amortis"), "train", *configs, *options, *overrides])
    if join:
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run([_program("ray"), "stop"], timeout=LEAVE_LIMIT_S, check=False)
    return 0 if supervisor.stopped and status in (0, EXIT_INTERRUPTED) else status


def _join(head: str) -> list[str]:
    """The head's name is looked up here: Ray's own look-up outlasts its patience where a name server is slow."""
    name, _, port = head.rpartition(":")
    address = f"{socket.gethostbyname(name)}:{port}"
    size = ["--num-cpus=0", "--num-gpus=0"]
    return [
        _program("ray"),
        "start",
        f"--address={address}",
        *size,
        "--metrics-export-port=8080",
        "--disable-usage-stats",
    ]


def _program(name: str) -> str:
    """A program of this Python's environment."""
    return str(Path(sys.executable).parent / name)


if __name__ == "__main__":
    sys.exit(main())
