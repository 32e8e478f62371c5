"""A user's function in its own process: whatever it does wrong is told, ended and survived."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.tools import ToolBox, ToolSection
from common.user_process import UserCodeError, UserFunction, UserProcess
from tests.processes import alive

HOSTILE = """
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import beside

LIMIT = 3


def echo(text):
    return beside.twice(text)


def fail(text):
    raise ValueError("no " + text * 1000)


def leave(text):
    sys.exit(3)


def interrupt(text):
    raise KeyboardInterrupt


def kill(text):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_by_a_nameless_signal(text):
    os.kill(os.getpid(), signal.SIGRTMIN + 3)


def exit_hard(text):
    os._exit(3)


def sleep_for_ever(text):
    time.sleep(600)


def block_signals(text):
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    while True:
        pass


def print_much(text):
    for _ in range(200):
        print("x" * 100_000)
        print("y" * 100_000, file=sys.stderr)
        os.write(1, b"z" * 1000)
    return text


def read_input(text):
    return input()


def close_input_and_output(text):
    sys.stdin.close(), sys.stdout.close(), sys.stderr.close()
    os.closerange(0, 3)
    return text


def close_all(text):
    os.closerange(0, 1000)
    return text


def flood(text):
    return "x" * 100_000_000


def half_a_character(text):
    return "\\ud800"


def leave_a_child(text):
    child = subprocess.Popen(["sleep", "600"])
    Path(text).write_text(str(child.pid))
    time.sleep(600)


def die_beside_a_child(text):
    child = subprocess.Popen(["sleep", "600"])
    Path(text).write_text(str(child.pid))
    os._exit(1)


def come_back_twice(text):
    os.fork()
    return text


def many_processes(text):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return str(sum(pool.map(abs, [-1, -2])))


def where(text):
    return repr(sys.argv)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("user")
    (found / "hostile.py").write_text(HOSTILE)
    (found / "beside.py").write_text("def twice(text): return text + text\n")
    return found


def function(folder: Path, name: str, limit_s: float = 30.0) -> UserFunction:
    text = f"{folder / 'hostile.py'}:{name}" if ":" not in name else name
    return UserFunction("tool", "task.tool.name", text, folder, "task.tool.folder", "insert(text)", limit_s)


@pytest.fixture
def started() -> Iterator[list[UserProcess]]:
    processes: list[UserProcess] = []
    yield processes
    for process in processes:
        process.close()


def start(started: list[UserProcess], folder: Path, name: str) -> UserProcess:
    started.append(UserProcess(function(folder, name)))
    return started[-1]


@pytest.mark.parametrize("name", ["hostile:echo", "file"])
def test_a_function_is_found_in_a_file_or_a_module_with_what_lies_beside_it(
    folder: Path, started: list[UserProcess], name: str
) -> None:
    process = start(started, folder, "echo" if name == "file" else name)
    assert process.ask("é", 10) == "éé"
    long = "a\n" * 500_000
    assert process.ask(long, 10) == long * 2


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("fail", "raised", r"ValueError: no abc.*… \(hostile\.py, line 20\)"),
        ("leave", "raised", r"SystemExit: 3 \(hostile\.py, line 24\)"),
        ("interrupt", "raised", "KeyboardInterrupt"),
        ("read_input", "raised", "EOFError"),
        ("half_a_character", "raised", "UnicodeEncodeError"),
        ("kill", "ended", "its process was ended by SIGKILL"),
        ("kill_by_a_nameless_signal", "ended", f"its process was ended by signal {signal.SIGRTMIN + 3}$"),
        ("exit_hard", "ended", "its process ended with status 3"),
        ("close_all", "ended", "."),
        ("flood", "too_long", "answered with 100000.* bytes"),
        ("sleep_for_ever", "timed_out", r"longer than its limit of 0\.5 s"),
        ("block_signals", "timed_out", r"longer than its limit of 0\.5 s"),
    ],
)
def test_what_goes_wrong_is_told_and_the_next_request_is_answered_the_same(
    folder: Path, started: list[UserProcess], name: str, kind: str, message: str
) -> None:
    process = start(started, folder, name)
    process.load()
    for _ in range(2):
        with pytest.raises(UserCodeError, match=message) as found:
            process.ask("abc", 0.5 if kind == "timed_out" else 20)
        assert found.value.kind == kind and len(str(found.value)) < 400


@pytest.mark.parametrize("name", ["print_much", "close_input_and_output", "come_back_twice"])
def test_what_does_no_harm_is_answered_every_time_by_its_own_answer(
    folder: Path, started: list[UserProcess], name: str
) -> None:
    process = start(started, folder, name)
    assert [process.ask(text, 20) for text in ("a", "b", "c", "d")] == ["a", "b", "c", "d"]


def test_it_may_use_processes_of_its_own(folder: Path, started: list[UserProcess]) -> None:
    process = start(started, folder, "many_processes")
    assert process.ask("", 20) == "3"


@pytest.mark.parametrize("free", [0, 1, 3, 5, 7])
def test_who_has_too_few_descriptors_for_it_is_told_and_keeps_them(
    folder: Path, started: list[UserProcess], free: int
) -> None:
    process = start(started, folder, "echo")
    before, limits = os.listdir("/proc/self/fd"), resource.getrlimit(resource.RLIMIT_NOFILE)
    # All below the highest that is open are taken, so that no more than these are left.
    highest = max(map(int, before))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest + 1 - len(before))]
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + free, limits[1]))
    try:
        with pytest.raises(UserCodeError, match=r"its process can't be started \(.*Too many open files") as found:
            process.submit("a", 10)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in held:
            os.close(descriptor)
    assert found.value.kind == "unloadable" and not process.busy
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert process.ask("a", 10) == "aa"


def wait_until_gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


@pytest.mark.parametrize("name", ["leave_a_child", "die_beside_a_child"])
def test_what_it_started_is_ended_with_it(folder: Path, tmp_path: Path, started: list[UserProcess], name: str) -> None:
    process = start(started, folder, name)
    process.load()
    with pytest.raises(UserCodeError):
        process.ask(str(tmp_path / "pid"), 1.0)
    assert wait_until_gone(int((tmp_path / "pid").read_text()))


def test_all_of_it_ends_when_who_started_it_is_killed(folder: Path, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        "from pathlib import Path; from tests.common.test_user_process import function; "
        "from common.user_process import UserProcess; "
        f"UserProcess(function(Path({str(folder)!r}), 'leave_a_child')).ask({str(pid)!r}, 600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 30
        while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        child = int(pid.read_text())
        own = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
        assert alive(own)
    finally:
        parent.kill()
        parent.wait()
    assert wait_until_gone(child) and wait_until_gone(own)


def test_it_ends_at_once_when_who_started_it_was_killed_before_it_could_notice(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text("import time\ntime.sleep(600)\n")
    requests, answers, lifeline = os.pipe(), os.pipe(), os.pipe()
    # As it is when its parent dies while the interpreter starts; what requests go through may be open elsewhere.
    os.close(lifeline[1])
    given = (requests[0], answers[1], lifeline[0])
    process = subprocess.Popen(
        [sys.executable, "-m", "common.user_code", "tool", "hanging:f", str(tmp_path), *map(str, given)],
        pass_fds=given,
        start_new_session=True,
    )
    try:
        assert process.wait(20) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
        for descriptor in (*requests, *answers, lifeline[0]):
            os.close(descriptor)


def test_nobody_waits_for_an_answer_who_only_looks_for_it(folder: Path, started: list[UserProcess]) -> None:
    process = start(started, folder, "sleep_for_ever")
    process.load()
    before = time.monotonic()
    # More than a pipe holds, so that it can't be sent at once either.
    process.submit("x" * 5_000_000, 600)
    assert process.poll() is None and process.busy
    assert time.monotonic() - before < 1.0
    process.close()
    assert not process.busy


LOADING: dict[str, tuple[str, str]] = {
    "no such file": ("", r"there is no such file; name one that is there"),
    "raises": ("import os\nraise RuntimeError('at once')", r"RuntimeError: at once \(mine\.py, line 2\)\); mend it"),
    "bad syntax": ("def f(text)\n    pass", r"SyntaxError: .*line 1"),
    "exits": ("import sys; sys.exit('bye')", r"can't be imported \(SystemExit: bye"),
    "dies": ("import os; os._exit(4)", r"its process ended with status 4 while it was imported"),
    "hangs": ("import time; time.sleep(600)", r"took longer than 1 s to be imported"),
    "lacks a module": ("import no_such_module_here", r"ModuleNotFoundError: No module named 'no_such_module_here'"),
    "lacks it": ("def g(text): pass\ndef h(text): pass", r"there is no 'f' in .*; name one of g, h"),
    "no function": ("f = 3", r"'f' is not callable"),
    "too few": ("def f(): pass", r"can't be called with 1 arguments .*; write it as insert\(text\)"),
    "coroutine": ("async def f(text): pass", r"is a coroutine function"),
}


@pytest.mark.parametrize(("source", "message"), LOADING.values(), ids=LOADING)
def test_what_can_not_be_loaded_is_told_in_one_line(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "mine.py"
    if source:
        path.write_text(source)
    process = UserProcess(function(tmp_path, f"{path}:f", 1.0 if "sleep" in source else 30.0))
    with pytest.raises(UserError, match=message) as found:
        process.load()
    assert found.value.field == "task.tool.name" and "\n" not in str(found.value)


def test_importing_a_tool_does_not_touch_who_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving_tool.py").write_text("import os, signal\nos.kill(os.getppid(), 0)\nraise SystemExit(0)\n")
    with pytest.raises(UserError, match=r"task\.tool\.name.*SystemExit"):
        ToolBox(ToolSection(name="leaving_tool:f", folder=tmp_path))
    assert "leaving_tool" not in sys.modules


def test_a_tool_may_be_a_function_in_a_file(folder: Path) -> None:
    box: Any = ToolBox(ToolSection(name=f"{folder / 'hostile.py'}:echo"))
    assert box("3") == "33"
    box._call.close()


def test_a_folder_that_shadows_ours_does_no_harm(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, started: list[UserProcess]
) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "__init__.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.chdir(tmp_path)
    assert start(started, folder, "echo").ask("a", 10) == "aa"


def test_it_is_not_told_how_it_was_started(folder: Path, started: list[UserProcess]) -> None:
    assert "user_code" not in start(started, folder, "where").ask("", 10)


def test_a_process_that_was_killed_from_outside_is_replaced(folder: Path, started: list[UserProcess]) -> None:
    process = start(started, folder, "echo")
    process.load()
    assert process._process is not None
    os.kill(process._process.pid, signal.SIGKILL)
    wait_until_gone(process._process.pid)
    assert process.ask("a", 10) == "aa"
