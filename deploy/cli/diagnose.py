"""`amortis diagnose RUN`: how far a trained sampler is from its posterior, and what to do about it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from functools import cache, partial

from rich import box
from rich.console import Console
from rich.table import Table

from common.errors import UserError
from common.files import check_writable
from common.json_text import dumps
from common.terminal import cells, visible
from deploy.cli.display import teller
from deploy.run.summary import BEST_CALIBRATION, BEST_DIAGNOSIS, CALIBRATION, DIAGNOSIS
from deploy.sampler.diagnosed_run import chosen_queries, subject_of
from deploy.sampler.diagnosis import SHOWN_ID, Diagnosis, Drawn, Finding
from deploy.sampler.diagnosis import diagnose as diagnosis_of
from deploy.sampler.finished_run import FinishedRun
from deploy.sampler.ground_truth import chosen_method, ground_truth
from deploy.sampler.report.page import report_at_the_end
from deploy.sampler.simulation import calibration_of, variants_of

LEAST_SAMPLES = 25
"""Of fewer weights Pareto k̂ can't be read."""
LEAST_REPEATS = 50
"""Of fewer the bands of a calibration are as wide as what they are to find."""
TOLD = 8
"""Queries whose prompts and reasons are printed, from the worst on; the file has all."""
_LEGEND = (
    "log Z ± its standard error; KL(q‖p) in nats; ESS as a share of the draws; k̂ is Pareto's; len: mean length under q "
    "and under the weights; known: rationales likely enough to be drawn, of those that are known; base: the base "
    "model's ESS"
)


def diagnose(options: argparse.Namespace, overrides: list[str], console: Console) -> int:
    """`amortis diagnose RUN --queries 8 --samples 256`."""
    if options.samples < LEAST_SAMPLES:
        problem = "are too few draws to judge their weights by"
        raise UserError("--samples", options.samples, problem, f"give {LEAST_SAMPLES} or more")
    if options.sbc < 0 or 0 < options.sbc < LEAST_REPEATS:
        problem = "are too few repeats to tell uniform ranks from others"
        raise UserError("--sbc", options.sbc, problem, f"give {LEAST_REPEATS} or more, or leave it out")
    run = FinishedRun(options.run, overrides, best=options.best)
    queries = chosen_queries(run, options.queries, "train" if options.train else "test")
    check_writable("RUN", str(options.run), options.run, "copy it to where it can be", "for diagnosis.json ")
    # Whatever can't be done is told before an engine is started.
    method = None if options.truth is None else chosen_method(run.task, run.config, options.truth)
    variants = variants_of(run.task, run.config, options.sbc) if options.sbc else []
    seed = run.seed(options.seed)
    name, policy = BEST_DIAGNOSIS if options.best else DIAGNOSIS, cache(run.policy)
    calibrated, say = None, teller(options.run)
    say(f"starting an engine to draw {options.samples} samples of each of {len(queries)} queries")
    sampler, adapter = run.sampler(seed)
    try:
        subject = subject_of(run, queries, lambda: (sampler, adapter), policy, say)
        truth = None
        if method is not None:
            truth = partial(ground_truth, run.config, sampler, policy, method=method, seed=seed, adapter=adapter)
        found = diagnosis_of(subject, options.samples, truth)
        # Kept before the calibration, which may fail.
        found.save(options.run, name)
        if variants:
            say(f"calibrating by {options.sbc} simulations")
            calibrated = calibration_of(run.config, sampler, adapter, variants, options.sbc, seed)
            calibrated.save(options.run, BEST_CALIBRATION if options.best else CALIBRATION)
    finally:
        sampler.close()
        sampler.policy.close()
    if options.json:
        more = {} if calibrated is None else {"calibration": calibrated.to_dict()}
        print(dumps({**asdict(found), **more}))
    else:
        show(console, str(options.run), found, name)
        if calibrated is not None:
            place = f"{options.run}/{BEST_CALIBRATION if options.best else CALIBRATION}.png"
            console.print(f"calibration {calibrated.words()}; {place}", markup=False, highlight=False)
    console.print(report_at_the_end(options.run), markup=False, highlight=False, soft_wrap=True)
    return 0


def show(console: Console, run: str, found: Diagnosis, name: str = DIAGNOSIS) -> None:
    """The verdict first, then a line a query, readable on 80 columns."""

    def say(text: str) -> None:
        console.print(visible(text), markup=False, highlight=False)

    say(f"{run}: {found.words()}")
    say(f"trained for {found.trained_for}; judged against R")
    say(f"reward: {found.reward_precision.words()}")
    say(f"known rationales: {found.known}")
    console.print(_table(found))
    say(_LEGEND)
    told = sorted(found.queries, key=lambda finding: -finding.judgement.verdict.rank)[:TOLD]
    for finding in told:
        text = finding.prompt if finding.target is None else f"{finding.prompt} → {finding.target}"
        say(_cut(f"{finding.query_id[:SHOWN_ID]}  {text}", console.width))
        if finding.truth is not None:
            say(f"  truth: {finding.truth}")
        for reason in finding.judgement.reasons:
            say(f"  {reason}")
        if finding.judgement.remedy:
            say(f"  remedy: {finding.judgement.remedy}")
    if len(found.queries) > TOLD:
        say(f"and {len(found.queries) - TOLD} more, none of which fares worse")
    if found.left_out:
        say(f"almost no valid draw, and left out: {', '.join(key[:SHOWN_ID] for key in found.left_out)}")
    say(f"samples, weights and all figures: {run}/{name}")


def _table(found: Diagnosis) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("query")
    table.add_column("verdict")
    for column in ("log Z", "KL(q‖p)", "ESS", "k̂", "len", "known", "base"):
        table.add_column(column, justify="right", no_wrap=True)
    for finding in found.queries:
        table.add_row(*cells(*_row(finding)))
    return table


_SHORT = {"good": "good", "usable with correction": "correct", "not to be trusted": "REFUSE"}


def _row(finding: Finding) -> tuple[str, ...]:
    figures = finding.figures
    modes = figures.modes
    return (
        finding.query_id[:SHOWN_ID],
        _SHORT[finding.judgement.verdict.value],
        f"{figures.log_z.value:.2f} ± {figures.log_z.se:.2f}",
        "{:.2f}–{:.2f}".format(*figures.kl_q_p),
        f"{figures.ess:.0%}",
        "-" if figures.pareto_k is None else f"{figures.pareto_k:.2f}",
        f"{figures.mean_length:.1f} {figures.mean_length_weighted:.1f}",
        "-" if modes is None else f"{modes.known - modes.missed}/{modes.known}",
        _ess_of(finding.base),
    )


def _ess_of(base: Drawn | None) -> str:
    return "-" if base is None else f"{base.figures.ess:.0%}"


def _cut(text: str, width: int) -> str:
    """A prompt on one line: its end, which differs where its beginning is an instruction, is worth as much."""
    line = visible(text)
    half = (width - 3) // 2
    return line if len(line) <= width else f"{line[:half]} … {line[-half:]}"
