"""The page itself: one file, escaped throughout, that asks nothing of the network and runs no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common.errors import UserError
from common.files import write_whole
from common.log import get_logger
from common.terminal import visible_lines
from deploy.sampler.report.contents import made_at, run_shown
from deploy.sampler.report.found import REPORT, FoundRun, read_run
from deploy.sampler.report.side_by_side import side_by_side

log = get_logger("report")
_TEMPLATES = Path(__file__).parent / "templates"


def write_report(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Make the page of a run, or that of several beside one another; where it was written.

    Without `output` a single run's is its own report.html. Raises UserError for a folder that is no run, and where
    nothing can be written.
    """
    repeated = [str(run) for i, run in enumerate(runs) if run.resolve() in [other.resolve() for other in runs[:i]]]
    if repeated:
        raise UserError("RUN", repeated[0], "is given twice", "name each run once")
    found = [read_run(run) for run in runs]
    if output is None and len(runs) > 1:
        raise UserError("--output", None, "is needed for a report of several runs", "give a file, e.g. report.html")
    page, path = _page(found), output or runs[0] / REPORT
    try:
        write_whole(path, page)
    except OSError as error:
        problem = f"can't be written ({error.strerror or error})"
        raise UserError("--output", str(path), problem, "make room there, or give another file") from error
    return path


def told(report: Path) -> str:
    """Where a report is, as an address that terminals open."""
    return f"report: {report.resolve().as_uri()}"


def report_at_the_end(run: Path) -> str:
    """Make a run's report; a line that says where it is. What keeps it from being made is said in that line, and is no
    fault of the run's."""
    try:
        return told(write_report([run]))
    except Exception as error:
        log.warning("the report can't be made", exc_info=True)
        return f"the report can't be made: {error}; `amortis report {run}` makes it later"


def render(runs: Sequence[Path]) -> str:
    """The page as HTML. Raises UserError for a folder that is no run."""
    return _page([read_run(run) for run in runs])


def _page(found: Sequence[FoundRun]) -> str:
    if len(found) == 1:
        shown = run_shown(found[0])
        return _fill_in("run.html.j2", title=f"Run {shown.name}", run=shown)
    several = side_by_side(found)
    return _fill_in("side_by_side.html.j2", title=f"{len(found)} runs side by side", runs=several)


def _fill_in(template: str, **shown: Any) -> str:
    return _environment().get_template(template).render(made=made_at(), **shown)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        # Every value, whatever the template's name; what the page's own drawings hold is marked as safe.
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment


def _visible(value: Any) -> Any:
    """A text with what a page can't hold, or what turns its direction, written out; models write anything."""
    return visible_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _breakable(name: str) -> Markup:
    """A setting's or a figure's name, which may be broken behind its dots and underscores, and escaped as any text."""
    return Markup("<wbr>").join(re.split(r"(?<=[._])", visible_lines(name)))
