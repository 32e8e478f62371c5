"""A run's folder and its name in Redis: found free or fit to go on with, and had by one process at a time.

Nothing of another run is ever deleted: a folder that is there is replaced with `run.overwrite` alone, and never while a
run is in progress in it.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from redis.exceptions import RedisError

from buffer.append_only import trim_zeros
from buffer.claim import RunClaim, is_claimed, refuse_the_living
from buffer.connection import Client, Keys, connect_impatiently
from buffer.control import Control
from buffer.embedded import running_server
from common.config import RunConfig
from common.config_loading import load_resolved
from common.errors import RunFault, UserError
from common.files import check_lengths, check_writable
from common.folder_lock import LAUNCHER, LEARNER, is_locked, locked
from deploy.run.summary import can_go_on
from learner.checkpoint import checkpoints, find_checkpoint

LONGEST = "checkpoints/.step-000000.replaced/tensors.safetensors"
"""The longest path that is made in a run's folder."""
LEAST_FREE_BYTES = 2**30
PRODUCED = ("metrics.jsonl", "samples.jsonl", "summary.json")
"""A folder with one of these, its own or a step's, holds what is worth keeping, even if the run failed."""
_UNNAMED_TRIES = 1_000


Say = Callable[[str], None]
"""Takes what a user should know, and what is no error."""


def say(note: str) -> None:
    """Tell it beside what a command gives."""
    print(f"amortis: {note}", file=sys.stderr)


def check_folder(config: RunConfig, say: Say = say) -> None:
    """Whether the run can have its folder, as it is now. Raises UserError naming `run`."""
    run = config.run
    _check_place(config)
    if run.name is None:
        if run.resume:
            raise UserError("run.resume", True, "goes on with no run", "name it by --run.name")
        return
    folder = config.run_folder
    if is_in_progress(folder):
        raise _in_progress(config)
    if run.resume:
        _check_resumable(config, say)
    elif folder.exists():
        _check_replaceable(config)


def check_name_in_redis(config: RunConfig, say: Say = say) -> None:
    """Whether nobody has the run's name in a Redis that is shared. Raises UserError."""
    if config.redis.url is None or config.run.name is None:
        return
    client = connect_impatiently(config.redis)
    try:
        for name in _redis_names(config):
            # Whether a claim is renewed takes a while to see: that is left to `claimed`.
            if not is_claimed(client, name):
                refuse_the_living(client, name)
                _refuse_another_s(config, client, name)
        if config.run.resume and all(Control(client, Keys(name)).config() is None for name in _redis_names(config)):
            lost = f"redis.url holds nothing of {config.redis_name}"
            say(f"{lost}: the run goes on with an empty buffer and its seeds anew")
    except RedisError as error:
        raise RunFault(f"Redis was lost: {error}") from error
    finally:
        client.close()


def is_in_progress(folder: Path) -> bool:
    """Whether a run has this folder now: it is locked, or its server is up."""
    return is_locked(folder, LAUNCHER) or _has_living_parts(folder)


@contextlib.contextmanager
def claimed(config: RunConfig) -> Iterator[RunConfig]:
    """Have a prepared run's folder and its name in Redis until the end; the configuration with the name.

    The folder is made, which only one process can, or, with `run.resume` and `run.overwrite`, locked. A run without a
    name gets one that is free. If the start fails before anything was produced, the folder is removed again. Raises
    UserError where another run is in progress.
    """
    with contextlib.ExitStack() as stack:
        config = _claim(stack, config)
        folder = config.run_folder
        if config.run.resume:
            for data in _data_folders(folder):
                note = trim_zeros(data)
                if note is not None:
                    say(note)
        elif config.run.overwrite:
            _check_replaceable(config)
            empty(folder)
        yield config


def empty(folder: Path) -> None:
    """Delete what is in a folder, its locks left."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (LAUNCHER, LEARNER):
            path.unlink()


def _claim(stack: contextlib.ExitStack, config: RunConfig) -> RunConfig:
    """The configuration with a name that is claimed for as long as the stack is open."""
    run = config.run
    base = run.name or f"{config.task.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    further = (f"{base}-{n}" for n in range(2, _UNNAMED_TRIES))
    for name in [base] if run.name else itertools.chain([base], further):
        # A name that nobody chose is nobody's to overwrite.
        update = {"name": name, "overwrite": run.overwrite and run.name is not None}
        named = config.model_copy(update={"run": run.model_copy(update=update)})
        try:
            with contextlib.ExitStack() as attempt:
                attempt.enter_context(_claimed_folder(named))
                attempt.enter_context(_claimed_in_redis(named))
                stack.enter_context(attempt.pop_all())
        except UserError as error:
            if run.name or error.field != "run.name":
                raise
        else:
            return named
    raise UserError("run.name", None, f"{base} and {_UNNAMED_TRIES} more are taken", "give one")


@contextlib.contextmanager
def _claimed_folder(config: RunConfig) -> Iterator[None]:
    folder, run = config.run_folder, config.run
    made = True
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError as error:
        if not (run.resume or run.overwrite):
            raise _taken(run.name) from error
        made = False
    except OSError as error:
        problem = f"can't be made ({error.strerror})"
        raise UserError("run.folder", str(folder), problem, "choose another run.folder") from error
    with locked(folder, LAUNCHER, _in_progress(config)):
        if _has_living_parts(folder):
            raise _in_progress(config)
        try:
            yield
        except BaseException:
            if made and not any(path.name in PRODUCED for path in (*folder.glob("*"), *folder.glob("*/*"))):
                shutil.rmtree(folder, ignore_errors=True)
            raise


@contextlib.contextmanager
def _claimed_in_redis(config: RunConfig) -> Iterator[None]:
    """Nothing to claim in a server that is started for the run."""
    with contextlib.ExitStack() as stack:
        if config.redis.url is not None:
            client = connect_impatiently(config.redis)
            stack.callback(client.close)
            try:
                for name in _redis_names(config):
                    stack.enter_context(RunClaim(client, name))
                    _refuse_another_s(config, client, name)
            except RedisError as error:
                raise RunFault(f"Redis was lost: {error}") from error
        yield


def _has_living_parts(folder: Path) -> bool:
    """Whether a learner works in a run's folder, or a server is up there; an expectation maximisation's steps have
    their own."""
    steps = [path.parent for path in folder.glob(f"*/{LEARNER}")]
    learners = any(is_locked(part, LEARNER) for part in (folder, *steps))
    return learners or any(running_server(data) for data in _data_folders(folder))


def _data_folders(folder: Path) -> list[Path]:
    return [path for path in (folder / "redis", *folder.glob("*/redis")) if path.is_dir()]


def _in_progress(config: RunConfig) -> UserError:
    return UserError(
        "run.name",
        config.run.name,
        "is in progress",
        f"stop it with `amortis stop {config.run_folder}` or choose another name",
    )


def _check_place(config: RunConfig) -> None:
    """Whether folders can be made where the run is to be."""
    run, remedy = config.run, "choose another run.folder"
    check_writable("run.folder", str(run.folder), run.folder, remedy)
    parent = next(path for path in (run.folder, *run.folder.parents) if path.exists())
    if run.name is not None:
        try:
            check_lengths(config.run_folder / LONGEST, parent)
        except OSError as error:
            problem = f"makes no folder's name here ({error.strerror})"
            raise UserError("run.name", run.name, problem, "choose a shorter one") from error
        if run.resume and config.run_folder.is_dir():
            check_writable("run.folder", str(config.run_folder), config.run_folder, remedy)
    if shutil.disk_usage(parent).free < LEAST_FREE_BYTES:
        raise UserError("run.folder", str(run.folder), "less than 1 GiB free", remedy)


def _check_replaceable(config: RunConfig) -> None:
    """Whether what is there is a run, and is asked to be replaced."""
    folder, run = config.run_folder, config.run
    if not run.overwrite:
        raise _taken(run.name)
    found = {path.name for path in folder.iterdir()} - {LAUNCHER, LEARNER} if folder.is_dir() else {folder.name}
    if found and not found & {"config.yaml", "logs"}:
        raise UserError("run.overwrite", True, f"{folder} holds something else than a run", "choose another run.name")


def _check_resumable(config: RunConfig, say: Say) -> None:
    """Whether there is a checkpoint that can be read, and the buffer that belongs to it."""
    folder, name = config.run_folder, config.run.name
    if not (folder / "config.yaml").is_file() or not can_go_on(folder):
        raise UserError(
            "run.resume",
            True,
            f"no checkpoint of a run {name!r}",
            "leave run.resume out, or give run.folder and run.name as they are now",
        )
    begun = [path for path in (folder, *folder.glob("[em][0-9]*")) if checkpoints(path / "checkpoints")]
    if begun:
        # Of an expectation maximisation the step that it is at.
        latest = max(begun, key=lambda path: (path / "config.yaml").stat().st_mtime)
        found = find_checkpoint(latest / "checkpoints")
        for path, why in found.unreadable.items():
            say(f"{path} can't be read ({why}): going on from {found.path.name}")
    has_own = bool(_data_folders(folder))
    if config.redis.url is None and not has_own:
        problem = "the run to resume has its buffer in a Redis that it was given"
        raise UserError("redis.url", None, problem, "give that, by AMORTIS_REDIS__URL or --redis.url")
    if config.redis.url is not None and has_own:
        problem = f"the run to resume has its buffer in {folder}, in a server of its own"
        raise UserError("redis.url", "**********", problem, "leave it out")


def _refuse_another_s(config: RunConfig, client: Client, name: str) -> None:
    """What is kept under a run's name is deleted when it begins and used when it is resumed: it must be its own."""
    found = None if config.run.overwrite and not config.run.resume else Control(client, Keys(name)).config()
    if found is None or found.run.name is None:
        return
    kept, own = found.run_folder, {config.run_folder}
    if config.run.resume:
        # As it was before the folder was moved.
        own.add(load_resolved(config.run_folder / "config.yaml", load_task=False).run_folder)
    if kept not in own and not (config.em.iterations and kept.parent in own):
        otherwise = "" if config.run.resume else ", or delete it with --run.overwrite true"
        raise UserError(
            "run.name",
            config.run.name,
            f"that Redis keeps the buffer of a run of this name, of {kept}",
            f"choose another run.name or run.redis_name{otherwise}",
        )


def _redis_names(config: RunConfig) -> list[str]:
    """What its keys in Redis are named by: an expectation maximisation's steps have a name each."""
    whole = config.redis_name
    steps = range(1, config.em.iterations + 1)
    return [whole, *(f"{whole}-{part}{i}" for i in steps for part in "em")]


def _taken(name: str | None) -> UserError:
    return UserError(
        "run.name",
        name,
        "a run of this name exists",
        "choose another, go on with --run.resume true, or replace it with --run.overwrite true",
    )
