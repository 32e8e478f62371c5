"""Names and folders of runs: had by one process, deleted only where that is asked for, given back after a failure."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from redis import Redis

from buffer.claim import LAPSES_S
from buffer.connection import Keys
from buffer.control import Control
from common.config import RunConfig
from common.errors import RunFault, UserError
from common.folder_lock import LAUNCHER, LEARNER, locked
from deploy.run.checks import prepare
from deploy.run.run_folder import check_folder, claimed, is_in_progress
from tests.deploy.run.runs import config_of, contents, make_run

BUSY = UserError("test", None, "is taken", "wait")


def held_by_another(folder: Path, name: str) -> subprocess.Popen[str]:
    """A process that has a lock of the folder; it says so on its output."""
    code = (
        "import sys, time; from pathlib import Path; from common.folder_lock import locked;"
        "from common.errors import UserError;"
        f"lock = locked(Path({str(folder)!r}), {name!r}, UserError('x', None, 'y', 'z')); lock.__enter__();"
        "print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def start_unnamed(config: RunConfig, barrier: object, names: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    with claimed(config) as named:
        (named.run_folder / "mine").write_text(str(named.run.name))
        names.put(named.run.name)  # type: ignore[attr-defined]
        barrier.wait()  # type: ignore[attr-defined]


@pytest.mark.parametrize("overwrite", ["false", "true"])
def test_runs_without_a_name_that_start_in_one_second_have_a_folder_each(
    tmp_path: Path, digit_model: Path, overwrite: str
) -> None:
    config = prepare(config_of(tmp_path, digit_model, "--run.overwrite", overwrite))
    assert config.run.name is None and not (tmp_path / "runs").exists(), "checking takes no name"
    context = multiprocessing.get_context("fork")
    # Started just after a second has begun, so that all see the same one.
    time.sleep(1 - time.time() % 1)
    barrier, names = context.Barrier(4), context.Queue()
    started = [context.Process(target=start_unnamed, args=(config, barrier, names)) for _ in range(4)]
    for process in started:
        process.start()
    found = {names.get(timeout=20) for _ in started}
    for process in started:
        process.join(20)
    assert len(found) == 4 and all(re.fullmatch(r"rng-\d{8}-\d{6}(-\d)?", name) for name in found)
    assert {path.name: (path / "mine").read_text() for path in (tmp_path / "runs").iterdir()} == {
        name: name for name in found
    }


def test_of_runs_that_are_given_one_name_at_once_one_has_it(tmp_path: Path, digit_model: Path) -> None:
    config = prepare(config_of(tmp_path, digit_model, "--run.name", "same"))

    def start(number: int) -> str:
        try:
            with claimed(config):
                time.sleep(0.5)
        except UserError as error:
            return str(error)
        return "had it"

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(start, range(4)))
    assert said.count("had it") == 1
    assert all("a run of this name exists" in text or "is in progress" in text for text in said if text != "had it")


@pytest.mark.parametrize("option", ["--run.overwrite", "--run.resume"])
@pytest.mark.parametrize("lock", [LAUNCHER, LEARNER])
def test_a_run_in_progress_is_neither_deleted_nor_resumed(
    tmp_path: Path, digit_model: Path, option: str, lock: str
) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "busy"))
    before = contents(folder)
    again = prepare(config_of(tmp_path, digit_model, "--run.name", "busy", option, "true"))
    process = held_by_another(folder, lock)
    try:
        for attempt in (lambda: claimed(again).__enter__(), lambda: check_folder(again)):
            with pytest.raises(UserError, match=r"run\.name = 'busy': is in progress; .*amortis stop"):
                attempt()
    finally:
        process.kill()
        process.wait()
    assert contents(folder) == before and not is_in_progress(folder), "its lock goes with the process"


def test_an_expectation_maximisation_whose_step_has_a_learner_is_in_progress(tmp_path: Path) -> None:
    (tmp_path / "em" / "e1").mkdir(parents=True)
    with locked(tmp_path / "em" / "e1", LEARNER, BUSY):
        assert is_in_progress(tmp_path / "em")
    assert not is_in_progress(tmp_path / "em")


def test_a_run_is_replaced_where_that_is_asked_for_and_only_there(tmp_path: Path, digit_model: Path) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "mine"))
    before = contents(folder)
    given = config_of(tmp_path, digit_model, "--run.name", "mine")
    with pytest.raises(UserError, match=r"a run of this name exists.*--run\.overwrite true"):
        prepare(given)
    with pytest.raises(UserError, match=r"a run of this name exists"):
        # Another process may have made it after the check.
        claimed(given).__enter__()
    assert contents(folder) == before
    with claimed(prepare(config_of(tmp_path, digit_model, "--run.name", "mine", "--run.overwrite", "true"))):
        assert contents(folder) == {}


def test_what_is_no_run_is_never_replaced(tmp_path: Path, digit_model: Path) -> None:
    letters = tmp_path / "runs" / "letters"
    letters.mkdir(parents=True)
    (letters / "to-a-friend.txt").write_text("dear")
    with pytest.raises(UserError, match=r"run\.overwrite = True: .*letters holds something else than a run"):
        prepare(config_of(tmp_path, digit_model, "--run.name", "letters", "--run.overwrite", "true"))
    assert contents(letters) == {"to-a-friend.txt": b"dear"}


@pytest.mark.parametrize("failure", [UserError("redis", None, "did not start", "mend it"), OSError("no sockets")])
def test_a_start_that_fails_before_anything_is_produced_gives_its_name_back(
    tmp_path: Path, digit_model: Path, failure: Exception
) -> None:
    config = prepare(config_of(tmp_path, digit_model, "--run.name", "mine"))
    with pytest.raises(type(failure)), claimed(config) as named:
        (named.run_folder / "config.yaml").write_text("task: {}")
        raise failure
    assert not config.run_folder.exists()


def test_what_a_run_produced_is_kept_however_it_ends(tmp_path: Path, digit_model: Path) -> None:
    config = prepare(config_of(tmp_path, digit_model, "--run.name", "mine"))
    with pytest.raises(RunFault), claimed(config) as named:
        (named.run_folder / "metrics.jsonl").write_text('{"step": 1}\n')
        raise RunFault("not finite")
    assert contents(config.run_folder) == {"metrics.jsonl": b'{"step": 1}\n'}


def test_a_failed_start_leaves_the_run_that_it_was_to_resume(tmp_path: Path, digit_model: Path) -> None:
    folder = make_run(config_of(tmp_path, digit_model, "--run.name", "mine"))
    before = contents(folder)
    again = prepare(config_of(tmp_path, digit_model, "--run.name", "mine", "--run.resume", "true"))
    with pytest.raises(OSError, match="no sockets"), claimed(again):
        raise OSError("no sockets")
    assert contents(folder) == before


@pytest.fixture
def shared(tmp_path: Path, digit_model: Path, redis_url: str, redis_client: Redis) -> RunConfig:
    """A run that was given a Redis, checked."""
    return prepare(config_of(tmp_path, digit_model, "--run.name", "same", "--redis.url", redis_url))


def elsewhere(config: RunConfig, folder: Path) -> RunConfig:
    """The same run as another machine starts it, which shares the Redis alone."""
    return config.model_copy(update={"run": config.run.model_copy(update={"folder": folder / "elsewhere"})})


def test_a_name_in_a_shared_redis_is_one_run_s_at_a_time(shared: RunConfig, tmp_path: Path) -> None:
    second = elsewhere(shared, tmp_path)
    with claimed(shared):
        start = time.monotonic()
        with pytest.raises(UserError, match=r"run\.name = 'same': is a run in progress.*run\.redis_name.*amortis stop"):
            claimed(second).__enter__()
        assert time.monotonic() - start < LAPSES_S / 2, "a living run is told from a crashed one soon"
        assert not second.run_folder.exists(), "the name is not taken"
    with claimed(second):
        pass


def test_an_unnamed_run_takes_a_name_that_is_free_in_its_redis_too(
    tmp_path: Path, digit_model: Path, redis_url: str, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.run.run_folder.time.strftime", lambda form: "20260101-000000")
    config = prepare(config_of(tmp_path, digit_model, "--redis.url", redis_url))
    with claimed(config) as first, claimed(elsewhere(config, tmp_path)) as second:
        assert (first.run.name, second.run.name) == ("rng-20260101-000000", "rng-20260101-000000-2")
    assert not (tmp_path / "elsewhere" / "rng-20260101-000000").exists()


@pytest.mark.parametrize("part", ["learner", "actor-3"])
def test_a_name_is_refused_while_its_learner_or_an_actor_gives_signs_of_life(
    shared: RunConfig, redis_client: Redis, part: str
) -> None:
    control = Control(redis_client, Keys("same"))
    if part == "learner":
        control.report_learner({"phase": "training"})
    else:
        control.heartbeat(part, {"phase": "sampling"})
    for attempt in (lambda: prepare(shared), lambda: claimed(shared).__enter__()):
        with pytest.raises(UserError, match=rf"run\.name = 'same': is a run in progress in that Redis: {part} gave"):
            attempt()
    assert control.stop_reason() is None and control.alive() == [part], "nothing is done to it"
    control.tell_ended()
    prepare(shared)


def test_a_run_whose_parts_said_that_they_end_keeps_nobody_out(shared: RunConfig, redis_client: Redis) -> None:
    control = Control(redis_client, Keys("same"))
    control.report_learner({"phase": "done"})
    control.heartbeat("actor-0", {"phase": "stopped"})
    with claimed(shared):
        pass


def test_a_crashed_run_s_name_is_free_again_in_the_stated_time(
    shared: RunConfig, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buffer.claim.LAPSES_S", 2.0)
    key = Keys("same").claim
    # Held by nobody who renews it, as a launcher that was killed leaves it.
    redis_client.set(key, '{"host": "gone", "pid": 1}', px=2_000)
    prepare(shared)
    start = time.monotonic()
    with claimed(shared):
        assert 0.5 < time.monotonic() - start < 4
        assert b'"claim"' in redis_client.get(key)  # type: ignore[operator]
    assert redis_client.get(key) is None


def test_the_buffer_of_a_run_of_another_folder_is_not_deleted_unasked(
    shared: RunConfig, redis_client: Redis, tmp_path: Path
) -> None:
    Control(redis_client, Keys("same")).put_config(elsewhere(shared, tmp_path))
    for attempt in (lambda: prepare(shared), lambda: claimed(shared).__enter__()):
        with pytest.raises(UserError, match=r"keeps the buffer of a run of this name, of .*elsewhere/same"):
            attempt()
    with claimed(shared.model_copy(update={"run": shared.run.model_copy(update={"overwrite": True})})):
        pass
    shutil.rmtree(shared.run_folder)
    Control(redis_client, Keys("same")).put_config(shared)
    # Its own folder was deleted by hand.
    with claimed(prepare(shared)):
        pass


UNWRITABLE = [
    ("--run.folder", "{file}/below", r"run\.folder = .*nothing can be written there \(Not a directory\)"),
    ("--run.folder", "/proc/runs", r"run\.folder = '/proc/runs': nothing can be written there"),
    ("--run.name", "n" * 300, r"run\.name = 'nnn.*File name too long.*choose a shorter one"),
    ("--run.folder", "/" + "f" * 300, r"run\.folder = '/fff.*nothing can be written there \(File name too long\)"),
    ("--run.folder", "{deep}", r"run\.(name|folder) = .*File name too long"),
]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that is mounted to be read only, which stops root too."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(("option", "value", "expected"), UNWRITABLE, ids=["file", "proc", "name", "folder", "path"])
def test_a_place_where_no_run_can_be_is_said_before_anything_starts(
    tmp_path: Path, digit_model: Path, option: str, value: str, expected: str
) -> None:
    (tmp_path / "file").write_text("")
    deep = str(tmp_path / "/".join(["d" * 200] * 20))
    config = config_of(tmp_path, digit_model, option, value.format(file=tmp_path / "file", deep=deep))
    with pytest.raises(UserError, match=expected) as caught:
        prepare(
            config
            if config.run.name
            else config.model_copy(update={"run": config.run.model_copy(update={"name": "r"})})
        )
    assert "\n" not in str(caught.value) and not (tmp_path / "runs").exists()


def test_a_read_only_place_is_said_before_anything_starts(read_only: Path, tmp_path: Path, digit_model: Path) -> None:
    with pytest.raises(UserError, match=r"run\.folder = .*nothing can be written there \(Read-only file system\)"):
        prepare(config_of(tmp_path, digit_model, "--run.folder", str(read_only / "runs"), "--run.name", "r"))
