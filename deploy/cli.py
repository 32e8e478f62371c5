"""The command line: `amortis train`, `compare`, `evaluate`, `sample`, `status`, `stop` and the others of `--help`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from common.errors import EXIT_FAULT, EXIT_INTERRUPTED, EXIT_USER, RunFault, UserError
from common.json_text import dumps

if TYPE_CHECKING:
    from common.config import RunConfig

Command = Callable[[argparse.Namespace, list[str], Console], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors that a user can mend are one line and exit status 2."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in (train, compare, evaluate, sample):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Libraries' notes to their own developers; ours are errors and logs.
    warnings.simplefilter("ignore", FutureWarning)
    console = Console(stderr=options.json)
    try:
        command: Command = options.command
        return command(options, rest, console)
    except UserError as error:
        print(f"amortis: {error}", file=sys.stderr)
        return EXIT_USER
    except RunFault as fault:
        runs = options.command in (train, compare, learner)
        print(f"amortis: {'the run stopped itself: ' if runs else ''}{fault}", file=sys.stderr)
        return EXIT_FAULT
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
        sub.set_defaults(command=command)
        return sub

    sub = add(
        "train",
        train,
        "Train a sampler; writes runs/NAME/.",
        epilog="Any setting can follow, e.g. --learner.lr 1e-4 --run.name mine; docs/configuration.md lists them. "
        "Environment variables such as AMORTIS_LEARNER__LR come next, then the file.",
    )
    sub.add_argument("config", type=Path, metavar="CONFIG", help="YAML file")
    sub = add(
        "compare",
        compare,
        "Train and evaluate several configurations for several seeds; one table and one plot.",
        epilog="Settings for all of them can follow, e.g. --learner.steps 50. What is done already is kept: the same "
        "command goes on where an earlier one was interrupted.",
    )
    sub.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="run configurations, or one comparison")
    sub.add_argument("--seeds", type=int, nargs="+", help="seeds of each (default: the comparison's, or 0 1)")
    sub.add_argument("--folder", type=Path, help="where it is kept (default: comparisons/NAME)")
    sub.add_argument("--parallel", type=int, default=1, metavar="N", help="cells to run at a time (default: 1)")
    sub.add_argument("--data", type=Path, help="folder that relative paths of data are in (default: the working one)")
    moved = (
        "Settings can follow where they are others than in training, e.g. --model.name PATH if the model lies "
        "elsewhere by now, or --task.test_path FILE."
    )
    sub = add("evaluate", evaluate, "Measure a trained sampler anew.", epilog=moved)
    sub.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    sub = add("sample", sample, "Draw from a trained sampler, with log q and log R of each sample.", epilog=moved)
    sub.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    sub.add_argument("--prompt", help="X; without it the task's first test query")
    sub.add_argument("-n", type=int, default=8, help="samples (default: 8)")
    sub.add_argument("--temperature", type=float, default=1.0, help="sampling temperature (default: 1)")
    sub.add_argument("--base", action="store_true", help="sample from the base model under the same mask")
    from deploy.buffer_cli import add_buffer_command, buffer_command

    sub = commands.add_parser("buffer", help="Look into, export, import or clear a run's replay buffer.")
    sub.set_defaults(command=buffer_command)
    add_buffer_command(sub)
    from deploy.run_cli import add_run_commands

    add_run_commands(commands)
    sub = add("doctor", doctor, "Check that every component is there and works.")
    sub.add_argument("--quick", action="store_true", help="don't start an engine or Ray")
    sub = add("learner", learner, "Run the learner process of a run by hand (the launcher does it otherwise).")
    sub.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    return parser


def train(options: argparse.Namespace, overrides: list[str], console: Console) -> int:
    """`amortis train CONFIG`."""
    from common.config_loading import load_config
    from deploy.checks import prepare
    from deploy.display import print_figures
    from deploy.run_folder import claimed

    with claimed(prepare(load_config(options.config, overrides))) as config:
        summary = _run(config, console)
    if options.json:
        print(dumps(summary))
    print_figures(console, f"{config.run_folder}", summary)
    from deploy.run_cli import OPERATOR_STOP

    # Stopped on purpose is no failure; a supervisor that starts failed runs again must leave it alone.
    on_purpose = summary.get("stopped_because") == OPERATOR_STOP
    return EXIT_INTERRUPTED if summary["interrupted"] and not on_purpose else 0


def _run(config: RunConfig, console: Console) -> dict[str, Any]:
    """A run of either kind, whose folder is claimed; its summary."""
    if config.em.iterations:
        from deploy.em import run_em

        return run_em(config, lambda text: console.print(text, markup=False, highlight=False))
    if config.learner.objective == "prompting":
        from deploy.prompting import run_prompting

        return run_prompting(config)
    from deploy.display import LiveDisplay
    from deploy.launcher import Launcher

    with LiveDisplay(console) as display:
        return Launcher(config, display.watch).run()


def compare(options: argparse.Namespace, overrides: list[str], console: Console) -> int:
    """`amortis compare CONFIG…`."""
    from deploy.compare import Comparison, run_comparison

    if options.parallel < 1:
        raise UserError("--parallel", options.parallel, "runs nothing", "give 1 or more")
    comparison = Comparison.load(options.configs, seeds=options.seeds, data=options.data, overrides=overrides)
    folder = options.folder or Path("comparisons") / comparison.name
    table, unfinished = run_comparison(comparison, folder, console, options.parallel)
    if options.json:
        print(table.to_json())
    table.show(console)
    for problem in unfinished:
        print(f"amortis: {problem}", file=sys.stderr)
    return EXIT_FAULT if unfinished else 0


def evaluate(options: argparse.Namespace, overrides: list[str], console: Console) -> int:
    """`amortis evaluate RUN`."""
    from common.files import check_writable, write_whole
    from deploy.display import print_figures
    from deploy.inference import FinishedRun

    run = FinishedRun(options.run, overrides)
    check_writable("RUN", str(options.run), options.run, "copy it to where it can be", "for evaluation.json ")
    figures = run.figures()
    write_whole(options.run / "evaluation.json", dumps(figures, indent=2))
    if options.json:
        print(dumps(figures))
    else:
        print_figures(console, f"{options.run}", figures)
        for label, row in figures.get("samplers", {}).items():
            print_figures(console, label, row)
    return 0


def sample(options: argparse.Namespace, overrides: list[str], console: Console) -> int:
    """`amortis sample RUN --prompt … -n 8`."""
    if options.n < 1:
        raise UserError("-n", options.n, "draws nothing", "give 1 or more")
    from rich.table import Table

    from common.tasks import SampleRequest
    from common.tasks.base import HIGHEST_TEMPERATURE

    if not 0 < options.temperature <= HIGHEST_TEMPERATURE:
        problem = f"is not above 0 and up to {HIGHEST_TEMPERATURE:g}"
        raise UserError("--temperature", options.temperature, problem, "give e.g. 1.0")
    from deploy.inference import FinishedRun

    run = FinishedRun(options.run, overrides)
    query = run.query(options.prompt)
    sampler, adapter = run.sampler()
    request = SampleRequest("samples", not options.base, options.temperature, options.n)
    drawn = sampler.collect([query], request, adapter, run.config.actor.max_in_flight)[query.id]
    rows = [
        {
            "text": run.codec.decode(item.action_ids),
            "log_q": item.behaviour.log_prob,
            "log_r": float(item.log_reward(run.config.reward_weights)[-1]),
            "token_ids": item.action_ids.tolist(),
        }
        for item in drawn
    ]
    if options.json:
        print(dumps(rows))
        return 0
    console.print(run.codec.decode_prompt(query.prompt_ids), markup=False, highlight=False)
    table = Table()
    for column in ("log q", "log R", "Z"):
        table.add_column(column, justify="left" if column == "Z" else "right")
    for row in rows:
        table.add_row(f"{row['log_q']:.3f}", f"{row['log_r']:.3f}", repr(row["text"]))
    console.print(table)
    return 0


def doctor(options: argparse.Namespace, _: list[str], console: Console) -> int:
    """`amortis doctor`."""
    from rich.table import Table

    from deploy.doctor import examine

    findings = examine(quick=options.quick)
    if options.json:
        print(json.dumps([finding.__dict__ for finding in findings]))
    else:
        table = Table("component", "found", "version", "works", "remark")
        for finding in findings:
            works = "-" if finding.works is None else "yes" if finding.works else "NO"
            table.add_row(finding.component, "yes" if finding.found else "NO", finding.version, works, finding.remark)
        console.print(table)
    return 0 if all(finding.found and finding.works is not False for finding in findings) else EXIT_FAULT


def learner(options: argparse.Namespace, _: list[str], console: Console) -> int:
    """`amortis learner RUN`."""
    from learner.__main__ import main as learner_main

    return learner_main([str(options.run)])


if __name__ == "__main__":
    sys.exit(main())
