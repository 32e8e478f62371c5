"""`amortis report RUN [RUN…]`: a run's page, or several runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from common.json_text import dumps
from deploy.cli.sampler import AddCommand


def add_report_command(add: AddCommand) -> None:
    """Declare it."""
    sub = add(
        "report",
        report,
        "Make one page of what a run was and whether its sampler can be trusted; of several runs, side by side.",
        epilog="The page is one file that asks nothing of the network. A run makes its own at its end; this makes it "
        "anew, after a diagnosis say, and needs no engine and no model.",
    )
    sub.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs' folders")
    sub.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write it (default: RUN/report.html; needed for several)"
    )


def report(options: argparse.Namespace, _: list[str], console: Console) -> int:
    """`amortis report RUN [RUN…] --output FILE`."""
    from deploy.sampler.report.page import told, write_report

    path = write_report(options.runs, options.output)
    if options.json:
        print(dumps({"report": str(path)}))
    else:
        console.print(told(path), markup=False, highlight=False, soft_wrap=True)
    return 0
