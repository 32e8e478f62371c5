"""What the commands on runs and buffers take, declared without what they are made of: `--help` is there at once."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from buffer.variables import URL_VARIABLE

Command = Callable[[argparse.Namespace, list[str], Console], int]

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def later(module: str, name: str) -> Command:
    """A command whose module is imported when it is called."""

    def command(options: argparse.Namespace, rest: list[str], console: Console) -> int:
        found: Command = getattr(importlib.import_module(module), name)
        return found(options, rest, console)

    command.__name__ = name
    return command


def add_buffer_command(commands: Any) -> None:
    """Declare `buffer` with its actions."""
    sub = commands.add_parser("buffer", help="Look into, export, import or clear a run's replay buffer.")
    sub.set_defaults(command=later("deploy.cli.buffer", "buffer_command"), takes_settings=False)
    actions = sub.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        action.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
        action.add_argument(
            "--redis-url", help=f"where the run's buffer is, if it was given a Redis; better in {URL_VARIABLE}"
        )
        action.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
        return action

    add("stats", "Show sizes and counters.")
    export = add("export", "Write all trajectories to a file.")
    export.add_argument("file", type=Path, metavar="FILE", help="JSON Lines if it ends in .jsonl, else binary")
    export.add_argument("--overwrite", action="store_true", help="replace an existing file")
    import_ = add("import", "Insert the trajectories of a file that export wrote.")
    import_.add_argument("file", type=Path, metavar="FILE", help="JSON Lines if it ends in .jsonl, else binary")
    clear = add("clear", "Delete all trajectories of the run; adapters and checkpoints stay.")
    clear.add_argument("--yes", action="store_true", help="don't ask")
    quarantine = add("quarantine", "Show what was set aside as malformed, newest first.")
    quarantine.add_argument("-n", type=int, default=20, help="entries (default: 20)")


def add_run_commands(commands: Any) -> None:
    """Declare `status`, `stop`, `logs` and `actors`."""

    def add(parent: Any, name: str, text: str, function: str = "") -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = parent.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("run", metavar="RUN", help="a run's folder, or its name in the given Redis")
        sub.add_argument("--redis-url", help=f"where the run is, if it was given a Redis; better in {URL_VARIABLE}")
        sub.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
        sub.set_defaults(command=later("deploy.cli.runs", function or name), takes_settings=False)
        return sub

    sub = add(commands, "status", "Show a run in progress: actors, versions, rates, lag.")
    sub.add_argument("--once", action="store_true", help="print it once instead of a live table")
    sub.add_argument(
        "--samples",
        type=int,
        nargs="?",
        const=5,
        metavar="N",
        help="print the newest and the best N trajectories of the buffer as text instead (default: 5)",
    )
    sub = add(commands, "stop", "Stop a run in good order: checkpoint, adapter, summary.")
    sub = add(commands, "logs", "Show the log lines of all processes of a run.")
    sub.add_argument("-f", "--follow", action="store_true", help="go on with new lines")
    sub.add_argument("-n", type=int, default=100, help="lines (default: 100)")
    sub.add_argument("--process", help="of one process: launcher, learner, actor-0, …")
    sub.add_argument("--level", choices=LEVELS, default="INFO", help="least severe level (default: INFO)")
    actors = commands.add_parser("actors", help="Add or remove actors of a run in progress.")
    actions = actors.add_subparsers(dest="action", required=True, metavar="ACTION")
    sub = add(
        actions,
        "scale",
        "Have another number of actors; those too many finish what they are at.",
        "scale",
    )
    sub.add_argument("n", type=int, metavar="N", help="actors")
