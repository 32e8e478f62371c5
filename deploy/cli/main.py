"""The command line: `amortis train`, `compare`, `doctor`, `learner`, and the others from the files beside."""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from common.errors import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_USER, RunFault, UserError
from common.json_text import dumps
from common.terminal import cells, visible_lines
from deploy.cli.arguments import Command, add_buffer_command, add_run_commands
from deploy.cli.report import add_report_command
from deploy.cli.sampler import add_sampler_commands
from deploy.cli.termination import Terminated, terminating

if TYPE_CHECKING:
    from deploy.run.diagnosis import Subject


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors that a user can mend are one line and exit status 2."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not options.takes_settings:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Learner and actors share cores: a thread that waits for another must not keep one busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Bars of libraries break into tables and logs.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Libraries' notes to their own developers; ours are errors and logs.
    warnings.simplefilter("ignore", FutureWarning)
    console = Console(stderr=options.json)
    try:
        command: Command = options.command
        with terminating():
            return command(options, rest, console)
    except UserError as error:
        print(f"amortis: {visible_lines(str(error))}", file=sys.stderr)
        return EXIT_USER
    except RunFault as fault:
        runs = options.command in (train, compare, learner)
        stopped = "the run stopped itself: " if runs else ""
        print(f"amortis: {stopped}{visible_lines(str(fault))}", file=sys.stderr)
        return EXIT_FAULT
    except Terminated:
        print("amortis: ended by SIGTERM", file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """One whose errors are one line; its commands' parsers are of this kind too."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USER, f"amortis: {message}; see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="amortis", description="Fine-tune a language model into a sampler of an intractable posterior."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, text: str, **extra: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False, **extra)
        sub.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
        sub.set_defaults(command=command, takes_settings=command in (train, compare))
        return sub

    sub = add(
        "train",
        train,
        "Train a sampler; writes runs/NAME/.",
        epilog="Any setting can follow, e.g. --learner.lr 1e-4 --run.name mine; docs/configuration.md lists them. "
        "Environment variables such as AMORTIS_LEARNER__LR come next, then the files, the last one first.",
    )
    sub.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="YAML files, later ones over earlier ones")
    sub.add_argument("--dry-run", action="store_true", help="show all settings and whether it can start; start nothing")
    sub = add(
        "compare",
        compare,
        "Train and evaluate several configurations for several seeds; one table and one plot.",
        epilog="Settings for all of them can follow, e.g. --learner.steps 50. What is done already is kept: the same "
        "command goes on where an earlier one was interrupted.",
    )
    sub.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="run configurations, or one comparison")
    sub.add_argument("--seeds", type=int, nargs="+", help="seeds of each (default: the comparison's, or 0 1)")
    sub.add_argument("--methods", nargs="+", metavar="NAME", help="run the cells of these alone (default: all)")
    sub.add_argument("--conditions", nargs="+", metavar="NAME", help="run the cells of these alone (default: all)")
    sub.add_argument("--folder", type=Path, help="where it is kept (default: comparisons/NAME)")
    sub.add_argument("--overwrite", action="store_true", help="train finished cells anew that were made otherwise")
    sub.add_argument("--dry-run", action="store_true", help="check all, and list what would become of each cell")
    sub.add_argument("--parallel", type=int, default=1, metavar="N", help="cells to run at a time (default: 1)")
    sub.add_argument("--data", type=Path, help="folder that relative paths of data are in (default: the working one)")
    add_sampler_commands(add)
    add_report_command(add)
    add_buffer_command(commands)
    add_run_commands(commands)
    sub = add("doctor", doctor, "Check that every component is there and works.")
    sub.add_argument("--quick", action="store_true", help="don't start an engine or Ray")
    sub = add("learner", learner, "Run the learner process of a run by hand (the launcher does it otherwise).")
    sub.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    return parser


def train(options: argparse.Namespace, overrides: list[str], console: Console) -> int:
    """`amortis train CONFIG…`."""
    from common.config_loading import read_given, whole

    with _no_garbage():
        _check_files(options.configs, overrides)
        given = read_given(options.configs, overrides)
        if "methods" in given.data:
            raise UserError("methods", None, "are a comparison's", "run it by `amortis compare`")
        if options.dry_run:
            from deploy.cli.dry_run import dry_run

            return dry_run(given, console, as_json=options.json)
        # What is wrong with a setting is said before anything is imported that takes long.
        config = whole(given)
        from deploy.cli.display import LiveDisplay, print_figures
        from deploy.run.train import train as run_to_the_end

    def evaluate(folder: Path) -> dict[str, Any]:
        from deploy.sampler.diagnosed_run import evaluated_and_diagnosed

        return evaluated_and_diagnosed(folder, say)

    def diagnose(subject: Subject) -> dict[str, Any]:
        from deploy.sampler.diagnosis import at_the_end

        return at_the_end(subject)

    def report(folder: Path) -> None:
        from deploy.sampler.report.page import report_at_the_end

        closing.append(report_at_the_end(folder))

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    closing: list[str] = []
    try:
        with LiveDisplay(console) as display:
            trained = run_to_the_end(config, evaluate, display.watch, say, diagnose, report)
        summary = trained.summary
        if options.json:
            print(dumps(summary))
        print_figures(console, f"{trained.config.run_folder}", summary)
    except UserError as error:
        raise given.located_check(error) from error
    finally:
        # Of a run that stopped itself too, whose error comes after it.
        for line in closing:
            say(line)
    from deploy.cli.runs import OPERATOR_STOP

    # Stopped on purpose is no failure; a supervisor that starts failed runs again must leave it alone.
    on_purpose = summary.get("stopped_because") == OPERATOR_STOP
    return EXIT_INTERRUPTED if summary["interrupted"] and not on_purpose else 0


def _check_files(configs: Sequence[Path], overrides: Sequence[str]) -> None:
    """Raises UserError where what stands in the place of a file is a setting, or the value of one."""
    missing = [str(path) for path in configs if not os.path.exists(path)]
    settings = [text for text in missing if re.fullmatch(r"[a-z_.]+=.*", text)]
    if settings:
        name, _, value = settings[0].partition("=")
        raise UserError("CONFIG", settings[0], "is a setting and no file", f"write --{name} {value}")
    empty = [
        text
        for text, after in itertools.pairwise([*overrides, "--"])
        if text.startswith("--") and "=" not in text and after.startswith("--")
    ]
    if missing and empty:
        problem = f"is no file, and {empty[0]} has no value"
        raise UserError("CONFIG", missing[0], problem, f"give all files first, and then {empty[0]} {missing[0]}")


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Importing makes a million objects that stay: looking for garbage among them takes a fifth of a start."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def compare(options: argparse.Namespace, overrides: list[str], console: Console) -> int:
    """`amortis compare CONFIG…`."""
    from deploy.comparison.compare import INTERRUPTED, run_comparison, states
    from deploy.comparison.definition import Comparison, Part

    if options.parallel < 1:
        raise UserError("--parallel", options.parallel, "runs nothing", "give 1 or more")
    _check_files(options.configs, overrides)
    comparison = Comparison.load(options.configs, seeds=options.seeds, data=options.data, overrides=overrides)
    folder = options.folder or Path("comparisons") / comparison.name
    part = Part(options.conditions, options.methods)
    if options.dry_run:
        found = states(comparison, folder, part)
        for name, state in found:
            console.print(f"{name}: {state}", markup=False, highlight=False, soft_wrap=True)
        if options.json:
            print(dumps(dict(found)))
        return 0
    table, unfinished = run_comparison(comparison, folder, console, options.parallel, part, overwrite=options.overwrite)
    if options.json:
        print(table.to_json())
    table.show(console)
    for figure in table.missing:
        known = ", ".join(table.measured[0].figures)
        print(f"amortis: figures: no cell has {figure!r}; there are {known}", file=sys.stderr)
    for problem in unfinished:
        print(f"amortis: {problem}", file=sys.stderr)
    if not unfinished:
        return 0
    return EXIT_INTERRUPTED if unfinished[-1] == INTERRUPTED else EXIT_FAULT


def doctor(options: argparse.Namespace, _: list[str], console: Console) -> int:
    """`amortis doctor`."""
    from rich.table import Table

    from deploy.cli.doctor import examine

    findings = examine(quick=options.quick)
    if options.json:
        print(json.dumps([finding.__dict__ for finding in findings]))
    else:
        table = Table("component", "found", "version", "works", "remark")
        for finding in findings:
            works = "-" if finding.works is None else "yes" if finding.works else "NO"
            found = "yes" if finding.found else "NO"
            table.add_row(*cells(finding.component, found, finding.version, works, finding.remark))
        console.print(table)
    return 0 if all(finding.found and finding.works is not False for finding in findings) else EXIT_FAULT


def learner(options: argparse.Namespace, _: list[str], console: Console) -> int:
    """`amortis learner RUN`."""
    from learner.__main__ import main as learner_main

    return learner_main([str(options.run)])


if __name__ == "__main__":
    sys.exit(main())
