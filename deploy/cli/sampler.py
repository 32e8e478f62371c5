"""`amortis evaluate | diagnose | sample | serve | export` on a finished run."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from common.errors import RunFault, UserError
from common.json_text import dumps
from deploy.cli.arguments import later

if TYPE_CHECKING:
    from rich.table import Table

    from deploy.sampler.posterior import Posterior

AddCommand = Callable[..., argparse.ArgumentParser]
"""Declares a command: name, function, help."""


def add_sampler_commands(add: AddCommand) -> None:
    """Declare them."""
    moved = (
        "Settings can follow where they are others than in training, e.g. --model.name PATH if the model lies "
        "elsewhere by now, or --task.test_path FILE."
    )
    best = "the adapter that was best by evaluation.metric while it trained, in place of the last one"
    sub = add("evaluate", evaluate, "Measure a trained sampler anew.", epilog=moved)
    sub.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    sub.set_defaults(takes_settings=True)
    sub.add_argument("--best", action="store_true", help=best)
    sub = add(
        "diagnose",
        later("deploy.cli.diagnose", "diagnose"),
        "Say how far a trained sampler is from its posterior, where it fails, and what to do about it.",
        epilog=moved,
    )
    sub.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    sub.add_argument(
        "--queries",
        nargs="+",
        default=["8"],
        metavar="N|all|ID",
        help="how many test queries, spread evenly; all of them; or queries by id (default: 8)",
    )
    sub.add_argument("--train", action="store_true", help="training queries in their place")
    sub.add_argument("--samples", type=int, default=256, metavar="N", help="draws of each (default: 256)")
    sub.add_argument(
        "--truth",
        choices=("enumerate", "mcmc", "auto"),
        help="find the posterior out otherwise too: enumerated; by Metropolis-Hastings; or the first where there is "
        "little enough, else the second. See the settings inference.*",
    )
    sub.add_argument(
        "--sbc",
        type=int,
        default=0,
        metavar="N",
        help="besides, simulation-based calibration of N (50 or more) repeats: for tasks with choices, whose prompt "
        "tells Y",
    )
    sub.add_argument("--seed", type=int, help="of the draws (default: the run's)")
    sub.add_argument("--best", action="store_true", help=best)
    sub.set_defaults(takes_settings=True)
    sub = add("sample", sample, "Draw from a trained sampler, with log q and log R of each sample.", epilog=moved)
    sub.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    sub.add_argument("--prompt", help="X; without it the task's first test query")
    sub.add_argument("-n", type=int, default=8, help="samples (default: 8)")
    sub.add_argument("--temperature", type=float, default=1.0, help="sampling temperature (default: 1)")
    sub.add_argument("--seed", type=int, help="of the draws (default: the run's)")
    sub.add_argument(
        "--resample",
        action="store_true",
        help="draw the samples from many candidates ∝ their weights R/q, which makes good what the sampler is off by",
    )
    sub.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help="draws for --resample (default: 16 a sample, and 256 or more in all) or --targets (default: 256 or more)",
    )
    sub.add_argument(
        "--target",
        help="Y that log R is for, as it follows Z: the task's rows have one, --prompt has none",
    )
    sub.add_argument(
        "--targets", nargs="+", default=[], metavar="Y", help="texts whose p(Y|X) is estimated from weighted draws"
    )
    sub.add_argument(
        "--allow-unreliable",
        action="store_true",
        help="with --resample or --targets: answer even where the weights say that the answer means nothing",
    )
    sub.add_argument("--best", action="store_true", help=best)
    sub.add_argument("--base", action="store_true", help="sample from the base model under the same mask")
    sub.set_defaults(takes_settings=True)
    sub = add("serve", serve, "Serve a trained sampler over HTTP, for OpenAI's clients among others.", epilog=moved)
    sub.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    sub.add_argument("--best", action="store_true", help=best)
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    sub.add_argument("--port", type=int, default=8000, help="0 for a free one (default: 8000)")
    sub.add_argument(
        "--api-key",
        help="what clients must know, needed for any address but this machine's; better in AMORTIS_API_KEY, as other "
        "users of the machine can see a command's arguments",
    )
    sub.add_argument("--max-samples", type=int, default=1024, help="in flight, of all clients (default: 1024)")
    sub.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds a request (default: 600)")
    sub.add_argument("--seed", type=int, default=0, help="of what is drawn for requests without one (default: 0)")
    sub.set_defaults(takes_settings=True)
    sub = add("export", export, "Make a trained sampler into files that other programs take.", epilog=moved)
    sub.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    sub.add_argument("--best", action="store_true", help=best)
    sub.add_argument("--merged", type=Path, metavar="FOLDER", help="base model and adapter as one Hugging Face model")
    sub.add_argument("--adapter", type=Path, metavar="FOLDER", help="the PEFT adapter with a model card and the mask")
    sub.add_argument("--gguf", type=Path, metavar="FILE", help="base model and adapter as one file for llama.cpp")
    sub.add_argument(
        "--hub", metavar="OWNER/NAME", help="upload the merged model, or the adapter without --merged; needs HF_TOKEN"
    )
    sub.add_argument("--public", action="store_true", help="make the repository public, or write to one that is")
    sub.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        help="precision of merged weights (default: the base model's)",
    )
    sub.add_argument(
        "--prompt",
        help="X of the card's example and of the texts that merged weights are checked on (default: test queries)",
    )
    sub.set_defaults(takes_settings=True)


def evaluate(options: argparse.Namespace, overrides: list[str], console: Console) -> int:
    """`amortis evaluate RUN`."""
    from common.files import check_writable, write_whole
    from deploy.cli.display import print_figures, teller
    from deploy.sampler.finished_run import FinishedRun

    run = FinishedRun(options.run, overrides, best=options.best)
    check_writable("RUN", str(options.run), options.run, "copy it to where it can be", "for evaluation.json ")
    path = options.run / ("evaluation-best.json" if options.best else "evaluation.json")
    figures = run.figures(say=teller(options.run), keep=path.with_suffix(".jsonl"))
    write_whole(path, dumps(figures, indent=2))
    if options.json:
        print(dumps(figures))
    else:
        print_figures(console, f"{options.run}", figures)
        for label, row in figures.get("samplers", {}).items():
            print_figures(console, label, row)
    return 0


def sample(options: argparse.Namespace, overrides: list[str], console: Console) -> int:
    """`amortis sample RUN --prompt … -n 8 --resample`."""
    if options.n < 1:
        raise UserError("-n", options.n, "draws nothing", "give 1 or more")
    _check_resampling(options)
    from common.tasks import SampleRequest
    from common.tasks.base import HIGHEST_TEMPERATURE
    from common.terminal import visible_lines

    if not 0 < options.temperature <= HIGHEST_TEMPERATURE:
        problem = f"is not above 0 and up to {HIGHEST_TEMPERATURE:g}"
        raise UserError("--temperature", options.temperature, problem, "give e.g. 1.0")
    from deploy.cli.display import teller
    from deploy.run.progress import of_samples
    from deploy.sampler.finished_run import FinishedRun
    from deploy.sampler.posterior import PosteriorMaker, draws_for

    run = FinishedRun(options.run, overrides, best=options.best)
    query = run.query(options.prompt, target=options.target, targets=options.targets)
    if run.leaves_target_out(query):
        print("amortis: log R is without the likelihood of a target, as none is given: see --target", file=sys.stderr)
    if run.leaves_reference_prompt_out(query):
        reads = "reads this prompt, and not task.reference_prompt or task.reference_shots, as of a row in training"
        print(f"amortis: log R {reads}: in Python give a row", file=sys.stderr)
    seed = run.seed(options.seed)
    sampler, adapter = run.sampler(seed)
    n = options.candidates or draws_for(options.n, len(options.targets), resampled=options.resample)
    request = SampleRequest("samples", not options.base, options.temperature, n)
    told = of_samples(teller(options.run), "base" if options.base else "trained")
    drawn = sampler.collect([query], request, adapter, run.config.actor.max_in_flight, told)[query.id]
    if not drawn:
        raise RunFault(f"none of the samples could be scored, the last: {sampler.last_rejection}")
    maker, prompt = PosteriorMaker(run.config, run.task), run.codec.decode_prompt(query.prompt_ids)
    if options.resample or options.targets:
        found = maker.make(
            prompt,
            drawn,
            target=run.target_of(query),
            targets=options.targets,
            resampled=options.n if options.resample else None,
            shown=options.n,
            seed=seed,
            missing=n - len(drawn),
        )
        return _show_weighted(found, options, console)
    rows = [maker.row(item) for item in drawn]
    if options.json:
        print(dumps(rows))
        return 0
    console.print(visible_lines(prompt), markup=False, highlight=False)
    console.print(drawn_table(rows))
    return 0


def _check_resampling(options: argparse.Namespace) -> None:
    """Raises UserError for options that go with --resample or --targets alone."""
    if options.candidates is not None and options.candidates < 1:
        raise UserError("--candidates", options.candidates, "draws nothing", "give 1 or more")
    for name, value in (("--candidates", options.candidates), ("--allow-unreliable", options.allow_unreliable or None)):
        if value is not None and not (options.resample or options.targets):
            raise UserError(name, value, "is given without --resample or --targets", "add one, or leave it out")
    if options.candidates is not None and options.candidates < options.n and not options.resample:
        problem = f"is fewer than the {options.n} samples that are shown (-n)"
        raise UserError("--candidates", options.candidates, problem, "ask for as many, or give a lower -n")


def _show_weighted(found: Posterior, options: argparse.Namespace, console: Console) -> int:
    """What was resampled, or p(Y|X), and what it stands on. Raises UserError if that is nothing, unless it is wanted
    all the same."""
    from common.terminal import visible_lines
    from deploy.sampler.posterior import refuse

    option = "--resample" if options.resample else "--targets"
    way_out = f"raise --candidates, leave out {option} for plain samples, or add --allow-unreliable"
    error = refuse(found, option, way_out)
    if error is not None and not options.allow_unreliable:
        raise error
    if options.json:
        print(dumps(asdict(found)))
    else:
        console.print(visible_lines(found.prompt), markup=False, highlight=False)
        console.print(drawn_table([asdict(item) for item in found.samples]))
        if found.targets:
            console.print(_targets_table(found))
        k = "can't be told of so few" if found.pareto_k is None else f"{found.pareto_k:.2f}"
        worth = f"{found.candidates} candidates are worth {found.effective_sample_size:.1f} exact draws, Pareto k̂ {k}"
        console.print(worth, markup=False, highlight=False, soft_wrap=True)
    if error is not None:
        print(f"amortis: unreliable: {found.unreliable}", file=sys.stderr)
    return 0


def _targets_table(found: Posterior) -> Table:
    """p(Y|X) of each target; quoted, so that spaces at their ends are seen."""
    from rich.table import Table

    from common.terminal import cells

    table = Table()
    for column in ("p(Y|X)", "plain mean", "Y"):
        table.add_column(column, justify="left" if column == "Y" else "right")
    for item in found.targets:
        table.add_row(*cells(f"{item.probability:.4g}", f"{item.plain_mean:.4g}", repr(item.text)))
    return table


def drawn_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Samples with log q and log R; quoted, so that spaces at their ends are seen."""
    from rich.table import Table

    from common.terminal import cells

    table = Table()
    for column in ("log q", "log R", "Z"):
        table.add_column(column, justify="left" if column == "Z" else "right")
    for row in rows:
        table.add_row(*cells(f"{row['log_q']:.3f}", f"{row['log_r']:.3f}", repr(row["text"])))
    return table


def serve(options: argparse.Namespace, overrides: list[str], console: Console) -> int:
    """`amortis serve RUN`."""
    from deploy.sampler.service.server import Options, Ready, checked
    from deploy.sampler.service.server import serve as serve_run

    def tell(ready: Ready) -> None:
        if options.json:
            print(dumps({"address": ready.address, "models": ready.models}), flush=True)
            return
        example = json.dumps({"model": ready.models[0], "prompt": "…", "n": 4}, ensure_ascii=False)
        key = "" if keyless else ' -H "Authorization: Bearer $AMORTIS_API_KEY"'
        lines = (
            f"{options.run}: {' and '.join(ready.models)} at {ready.address}/v1; Ctrl-C stops it",
            f"curl {ready.address}/v1/completions -H 'Content-Type: application/json'{key} -d '{example}'",
        )
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    given = Options(
        options.host,
        options.port,
        options.api_key,
        options.max_samples,
        options.timeout,
        seed=options.seed,
        best=options.best,
    )
    keyless = checked(given).key is None
    serve_run(options.run, overrides, given, tell)
    return 0


def export(options: argparse.Namespace, overrides: list[str], console: Console) -> int:
    """`amortis export RUN --merged FOLDER --adapter FOLDER --gguf FILE --hub OWNER/NAME`."""
    from tempfile import TemporaryDirectory

    from deploy.cli.display import print_figures, teller
    from deploy.sampler.export import Places
    from deploy.sampler.export import export as export_run
    from deploy.sampler.finished_run import FinishedRun
    from deploy.sampler.hub import hub_access, publish

    places = Places(options.merged, options.adapter, options.gguf)
    if places == Places() and options.hub is None:
        raise UserError("export", None, "is told nothing to make", "give --merged, --adapter, --gguf or --hub")
    places.check()
    access = None if options.hub is None else hub_access(options.hub, public=options.public)
    run = FinishedRun(options.run, overrides, best=options.best)
    with TemporaryDirectory() as scratch:
        uploaded = options.merged or options.adapter
        if access is not None and uploaded is None:
            uploaded = Path(scratch) / "adapter"
            places = Places(adapter=uploaded, gguf=options.gguf)
        found = export_run(run, places, options.dtype, options.prompt, teller(options.run))
        if access is not None:
            found["hub"] = publish(access, uploaded, options.hub, public=options.public)
            if uploaded.is_relative_to(scratch):
                del found["adapter"]
    if options.json:
        print(dumps(found))
    else:
        print_figures(console, f"{options.run}", found)
    return 0
