"""`amortis buffer stats | export | import | clear | quarantine` on the buffer of a run, in progress or over."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table

from buffer.connection import memory_of
from buffer.control import Control
from buffer.exchange import export_buffer, import_buffer
from buffer.replay import BufferFull
from common.config import RunConfig
from common.errors import RunFault, UserError
from common.json_text import dumps
from common.terminal import cells, visible
from common.trajectory import MalformedTrajectory, Trajectory
from deploy.cli.display import print_figures
from deploy.run.open_buffer import OpenBuffer, open_buffer

_SHOWN = 10


def buffer_command(options: argparse.Namespace, _: list[str], console: Console) -> int:
    """`amortis buffer ACTION RUN …`."""
    action = {"stats": stats, "export": export, "import": import_, "clear": clear, "quarantine": quarantine}
    with open_buffer(options.run, options.redis_url) as opened:
        try:
            result, status = action[options.action](options, opened, console)
        except BufferFull as error:
            raise RunFault(str(error)) from error
        except RedisError as error:
            raise RunFault(f"Redis was lost: {error}") from error
    if options.json:
        print(dumps(result))
    return status


def stats(options: argparse.Namespace, opened: OpenBuffer, console: Console) -> tuple[Any, int]:
    """Sizes and counters."""
    found: dict[str, Any] = asdict(opened.buffer.stats())
    memory = memory_of(opened.client)
    found.update(
        queries=len(opened.buffer.queries()),
        queries_with_trajectories=len(opened.buffer.counts()),
        max_bytes=opened.config.buffer.max_bytes,
        redis_used_bytes=memory.used,
        redis_max_bytes=memory.limit,
    )
    if not options.json:
        shown = {name.replace("_", " "): f"{value:,}" for name, value in found.items()}
        print_figures(console, str(options.run), shown)
    return found, 0


def export(options: argparse.Namespace, opened: OpenBuffer, console: Console) -> tuple[Any, int]:
    """To a file."""
    if options.file.exists() and not options.overwrite:
        raise UserError("FILE", str(options.file), "exists", "choose another, or give --overwrite")
    if not options.file.resolve().parent.is_dir():
        raise UserError("FILE", str(options.file), "is in no existing folder", "make the folder first")
    n = export_buffer(opened.buffer, options.file, _codec(opened.config).decode)
    size = options.file.stat().st_size
    _show(options, console, f"{n} trajectories, {size:,} bytes: {options.file}")
    return {"exported": n, "bytes": size, "file": str(options.file)}, 0


def import_(options: argparse.Namespace, opened: OpenBuffer, console: Console) -> tuple[Any, int]:
    """From a file; exit status 1 if any trajectory was rejected."""
    from common.tasks import make_task

    task = make_task(opened.config.task, _codec(opened.config), opened.config.actor.max_model_len)
    space = task.action_space

    def why_invalid(item: Trajectory) -> str | None:
        if item.task != task.name:
            return f"of task {item.task}, this run's is {task.name}"
        return space.why_invalid(item.action_ids)

    opened.buffer.open()
    if not opened.buffer.queries():
        opened.buffer.put_queries(task.queries("train"))
    report = import_buffer(opened.buffer, options.file, why_invalid)
    counts = f"{report.read} read, {report.added} added, {report.duplicates} there already, {report.evicted} evicted"
    _show(options, console, f"{counts}, {len(report.rejected)} rejected")
    for where, reason in report.rejected[:_SHOWN]:
        _show(options, console, f"  {where}: {reason}")
    if len(report.rejected) > _SHOWN:
        _show(options, console, f"  and {len(report.rejected) - _SHOWN} more (--json lists all)")
    return asdict(report), 1 if report.rejected else 0


def clear(options: argparse.Namespace, opened: OpenBuffer, console: Console) -> tuple[Any, int]:
    """Everything that is stored."""
    size = opened.buffer.stats().size
    running = any(actor["alive"] for actor in Control(opened.client, opened.keys).actors().values())
    if not options.yes:
        raise UserError(
            "--yes",
            None,
            f"{size} trajectories of {options.run}{' (in progress)' if running else ''} would be deleted",
            "give --yes to delete them; `amortis buffer export` saves them first",
        )
    opened.buffer.clear()
    _show(options, console, f"{size} trajectories deleted")
    return {"deleted": size}, 0


def quarantine(options: argparse.Namespace, opened: OpenBuffer, console: Console) -> tuple[Any, int]:
    """What could not be used."""
    found = opened.buffer.quarantine.newest(max(1, options.n))
    table = Table("when", "reason", "origin", "bytes", "actions")
    rows = []
    for entry in found:
        actions = _actions(entry.payload)
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.at))
        shown = "unreadable" if actions is None else str(actions[:8])
        table.add_row(*cells(at, entry.reason, entry.origin, len(entry.payload), shown))
        rows.append(
            {
                "at": entry.at,
                "reason": entry.reason,
                "origin": entry.origin,
                "payload_hex": entry.payload.hex(),
                "action_ids": actions,
            }
        )
    total = opened.buffer.quarantine.count
    _show(options, console, table if rows else "nothing was set aside")
    if total > len(rows):
        _show(options, console, f"{total} were set aside in all, {len(rows)} are shown")
    return rows, 0


def _actions(payload: bytes) -> list[int] | None:
    try:
        return [int(token) for token in Trajectory.from_bytes(payload).action_ids]
    except MalformedTrajectory:
        return None


def _codec(config: RunConfig) -> Any:
    from common.tokens import codec_of

    return codec_of(config.model)


def _show(options: argparse.Namespace, console: Console, what: Any) -> None:
    if not options.json:
        if isinstance(what, str):
            console.print(visible(what), markup=False, highlight=False)
        else:
            console.print(what)
