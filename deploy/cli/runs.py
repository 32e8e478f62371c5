"""`amortis status | stop | logs | actors` on a run in progress, from any machine that reaches its Redis."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from redis.exceptions import RedisError
from rich.console import Console
from rich.live import Live

from buffer.connection import Client, Keys, connect
from buffer.control import Control
from buffer.embedded import running_server
from buffer.evaluations import Evaluations
from buffer.log_stream import MAX_LINES, LogStream
from buffer.replay import ReplayBuffer
from buffer.variables import URL_VARIABLE
from common.config import RedisSection, RunConfig
from common.config_loading import load_run
from common.errors import RunFault, UserError
from common.json_text import dumps
from common.shown import as_rows
from common.terminal import visible_lines
from deploy.cli.arguments import LEVELS
from deploy.cli.status import Status, samples_table, status_table
from deploy.run.find_model import find_model
from deploy.run.open_buffer import open_buffer

OPERATOR_STOP = "amortis stop"
"""Why a run ended that somebody stopped by that command."""


ORDERS: tuple[Literal["newest"], Literal["best"]] = ("newest", "best")
_STEPS = "[em][0-9]*"
"""Folders of an expectation maximisation's steps, each a run of its own."""
# Somebody waits for the answer.
IMPATIENT = {"retries": 3, "timeout_s": 3.0}


@dataclass
class OpenRun:
    """A run and the Redis that it lives in."""

    config: RunConfig
    client: Client
    keys: Keys
    embedded: bool
    """Whether that Redis ends with the run."""

    @property
    def control(self) -> Control:
        return Control(self.client, self.keys)

    @property
    def evaluations(self) -> Evaluations:
        return Evaluations(self.client, self.keys)


@contextlib.contextmanager
def open_run(run: str, url: str | None) -> Iterator[OpenRun]:
    """A run by its folder, or by its name in a given Redis. Raises UserError if it can't be found."""
    folder = _step_in_progress(Path(run))
    is_folder = (folder / "config.yaml").is_file()
    own = load_run(folder, load_task=False) if is_folder else None
    server = running_server(folder / "redis") if is_folder else None
    address = url or server or os.environ.get(URL_VARIABLE)
    if address is None and (folder / "summary.json").is_file():
        remedy = "read its summary.json, or go on with --run.resume true"
        raise UserError("RUN", run, "is over, and nothing of it is at work", remedy)
    if address is None and is_folder:
        raise UserError("RUN", run, "has no Redis that is up", f"start it again, or set {URL_VARIABLE}, or --redis-url")
    if address is None:
        remedy = f"give one, or a run's name with --redis-url or {URL_VARIABLE}"
        raise UserError("RUN", run, "is no run's folder", remedy)
    section = RedisSection() if own is None else own.redis
    client = connect(section.model_copy(update=IMPATIENT), address)
    try:
        keys = Keys(folder.name if own is None else own.redis_name)
        found = Control(client, keys).config()
        if found is None:
            raise UserError(
                "RUN",
                run,
                f"is not in that Redis under the name {keys.run}",
                f"give the run's folder or its run.name, and its Redis with --redis-url or {URL_VARIABLE}",
            )
        yield OpenRun(found, client, keys, embedded=address == server)
    except RedisError as error:
        raise RunFault(f"Redis was lost: {error}") from error
    finally:
        client.close()


def _step_in_progress(folder: Path) -> Path:
    """The step that an expectation maximisation is at, or was; other runs' own folder."""
    steps = [path.parent for path in folder.glob(f"{_STEPS}/config.yaml")]
    return max(steps, key=lambda step: (step / "config.yaml").stat().st_mtime, default=folder)


def status(options: argparse.Namespace, _: list[str], console: Console) -> int:
    """`amortis status RUN`."""
    if options.samples is not None:
        return samples(options, console)
    with open_run(options.run, options.redis_url) as opened:
        buffer = ReplayBuffer.of(opened.config, opened.client, opened.keys)
        look = partial(Status.read, opened.keys.run, opened.config, opened.control, buffer, opened.evaluations)
        first = look()
        time.sleep(1.0)
        found = look(first)
        if options.json:
            print(dumps(found.as_dict()))
        elif options.once or not console.is_terminal:
            console.print(status_table(found))
        else:
            with _until_over(opened), Live(status_table(found), console=console, auto_refresh=False) as live:
                while not found.over:
                    time.sleep(1.0)
                    found = look(found)
                    live.update(status_table(found), refresh=True)
    return 0


def samples(options: argparse.Namespace, console: Console) -> int:
    """`amortis status RUN --samples N`: of a run in progress, or of the buffer that one has left."""
    if options.samples < 1:
        raise UserError("--samples", options.samples, "shows nothing", "give 1 or more")
    from common.tokens import codec_of

    with _buffer_of(options) as (config, buffer):
        config = config.model_copy(
            update={"model": config.model.model_copy(update={"name": find_model(config.model.name)})}
        )
        found = {}
        for order in ORDERS:
            items = buffer.top(options.samples, order)
            queries = buffer.queries(sorted({item.query_id for item in items})) if items else {}
            found[order] = as_rows(items, queries, codec_of(config.model), config.reward_weights)
    if options.json:
        print(dumps(found))
        return 0
    for order, rows in found.items():
        console.print(samples_table(f"the {order} in the buffer, log R in nats", rows))
    return 0


@contextlib.contextmanager
def _buffer_of(options: argparse.Namespace) -> Iterator[tuple[RunConfig, ReplayBuffer]]:
    folder = _step_in_progress(Path(options.run))
    if (folder / "config.yaml").is_file():
        with open_buffer(folder, options.redis_url) as left:
            yield left.config, left.buffer
        return
    with open_run(options.run, options.redis_url) as opened:
        yield opened.config, ReplayBuffer.of(opened.config, opened.client, opened.keys)


@contextlib.contextmanager
def _until_over(opened: OpenRun) -> Iterator[None]:
    """Look at a run until Ctrl-C, or until its own Redis has ended with it."""
    try:
        yield
    except KeyboardInterrupt:
        return
    except RedisError:
        if not opened.embedded:
            raise
        print("amortis: the run is over", file=sys.stderr)


def stop(options: argparse.Namespace, _: list[str], console: Console) -> int:
    """`amortis stop RUN`."""
    with open_run(options.run, options.redis_url) as opened:
        opened.control.request_stop(OPERATOR_STOP)
        reason = opened.control.stop_reason()
    if options.json:
        print(json.dumps({"run": opened.keys.run, "stop": reason}))
    else:
        console.print(f"{opened.keys.run} stops: {reason}", markup=False, highlight=False)
    return 0


def scale(options: argparse.Namespace, _: list[str], console: Console) -> int:
    """`amortis actors scale RUN N`."""
    if options.n < 1:
        raise UserError("N", options.n, "is no number of actors", "give 1 or more, or stop the run with `amortis stop`")
    with open_run(options.run, options.redis_url) as opened:
        if opened.control.stop_reason() is not None:
            raise UserError("RUN", options.run, "is over", "start it again with --run.resume true")
        opened.control.want_actors(options.n)
    if options.json:
        print(json.dumps({"run": opened.keys.run, "actors": options.n}))
    else:
        console.print(f"{opened.keys.run}: {options.n} actors are wanted", markup=False, highlight=False)
    return 0


def logs(options: argparse.Namespace, _: list[str], console: Console) -> int:
    """`amortis logs RUN`."""
    try:
        with open_run(options.run, options.redis_url) as opened:
            stream = LogStream(opened.client, opened.keys)
            _print(_wanted(options, stream.newest(MAX_LINES))[-max(1, options.n) :], options)
            with _until_over(opened):
                while options.follow:
                    time.sleep(0.5)
                    _print(_wanted(options, stream.further()), options)
    except UserError:
        folder = Path(options.run)
        files = [*folder.glob("logs/*.log"), *folder.glob(f"{_STEPS}/logs/*.log")]
        if not files:
            raise
        # The run is over: what its processes wrote is in its folder.
        lines = sorted((line for path in files for line in _read(path)), key=lambda line: str(line.get("time")))
        _print(_wanted(options, lines)[-max(1, options.n) :], options)
    return 0


def _read(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError):
            yield dict(json.loads(text))


def _wanted(options: argparse.Namespace, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    least = LEVELS.index(options.level)
    return [
        line
        for line in lines
        if options.process in (None, line.get("process")) and LEVELS.index(str(line.get("level", "INFO"))) >= least
    ]


def _print(lines: list[dict[str, Any]], options: argparse.Namespace) -> None:
    for line in lines:
        print(json.dumps(line, ensure_ascii=False) if options.json else _shown(line), flush=True)
    sys.stdout.flush()


def _shown(line: dict[str, Any]) -> str:
    version = "" if line.get("adapter_version") is None else f" v{line['adapter_version']}"
    text = f"{line.get('time')} {line.get('level'):<7} {line.get('process')}{version}: {line.get('message')}"
    return visible_lines(f"{text}\n{line['exception']}" if line.get("exception") else text)
