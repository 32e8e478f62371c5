"""A user's function in a process of its own, which may raise, hang, die or flood without harm to who asks it.

The asker's side of `common.user_code`: requests and answers are JSON in frames, nothing is pickled, and neither side
of it ever blocks, so that an engine's loop can look for answers between its steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError
from common.user_code import HEADER, LOADED, MAX_FRAME_BYTES

START_LIMIT_S = 30.0
"""A process imports the user's module first."""
_ROOT = Path(__file__).resolve().parents[1]
_READ_BYTES = 1 << 16
_END_S = 0.2
"""Between the end of what a dying process says and its own."""

Failure = Literal["raised", "timed_out", "ended", "too_long", "unloadable"]


class UserCodeError(Exception):
    """A request that got no answer: what went wrong, and the message to show."""

    def __init__(self, kind: Failure, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.kind: Failure = kind
        self.remedy = remedy


@dataclass(frozen=True)
class UserFunction:
    """Which function, in which role (see `common.user_code.ROLES`), and what it is called in the settings."""

    role: str
    setting: str
    text: str
    """my_file.py:function, or package.module:function."""
    folder: Path
    """Where the module is, besides PYTHONPATH."""
    folder_setting: str
    signature: str
    """How to write it."""
    start_limit_s: float = START_LIMIT_S

    def error(self, problem: str, remedy: str) -> UserError:
        """What a user is told who named this function."""
        return UserError(self.setting, self.text, problem, remedy)


@dataclass(frozen=True)
class Answer:
    """What the function gave."""

    value: Any


class UserProcess:
    """One process and at most one request under way. What hangs or dies is ended, its children with it, and replaced
    at the next request."""

    def __init__(self, function: UserFunction) -> None:
        self._function = function
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = self._answers = self._lifeline = -1
        self._loaded = False
        self._number = LOADED
        self._outgoing, self._incoming = b"", bytearray()
        self._limit_s = self._deadline = 0.0
        self.busy = False
        """Whether there is a request under way."""

    def load(self) -> None:
        """Start, and wait until the function is loaded; raises UserError if it can't be."""
        try:
            if not self._lives():
                self._start()
            while not self._loaded:
                self._work(1.0)
        except UserCodeError as error:
            self.close()
            raise self._function.error(str(error), error.remedy or "mend it") from error

    def ask(self, request: Any, limit_s: float) -> Any:
        """The function's answer; raises UserCodeError."""
        self.submit(request, limit_s)
        while True:
            found = self.poll(1.0)
            if found is not None:
                return found.value

    def submit(self, request: Any, limit_s: float) -> None:
        """Send a request; `poll` gives its answer. The limit counts from when the function is loaded."""
        assert not self.busy, "a request is under way"
        if not self._lives():
            self._start()
        # Numbered, so that an answer is never taken for another request's.
        self._number = self._number % 0xFFFFFFFF + 1
        data = json.dumps(request).encode()
        self._outgoing, self._limit_s = HEADER.pack(self._number, len(data)) + data, limit_s
        self.busy = True
        if self._loaded:
            self._deadline = time.monotonic() + limit_s

    def poll(self, wait_s: float = 0.0) -> Answer | None:
        """The answer to the request under way, None while there is none; raises UserCodeError where there won't be."""
        try:
            found = self._work(wait_s)
        except UserCodeError as error:
            self.busy = False
            if error.kind != "raised":
                self.close()
            raise
        if found is not None:
            self.busy = False
        return found

    @property
    def waits_for(self) -> tuple[int, int | None]:
        """What becomes readable when there is something to `poll` for, and what must become writable before, if
        anything."""
        return self._answers, self._requests if self._loaded and self._outgoing else None

    def close(self) -> None:
        """End the process and all that it started."""
        if self._process is None:
            return
        # Before it is waited for: until then nobody else can have its number.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for descriptor in (self._requests, self._answers, self._lifeline):
            os.close(descriptor)
        self._process = None
        self._requests = self._answers = self._lifeline = -1
        self.busy = self._loaded = False

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _lives(self) -> bool:
        if self._process is None:
            return False
        if self._ended():
            self.close()
            return False
        return True

    def _ended(self) -> bool:
        assert self._process is not None
        return _how_ended(self._process.pid) is not None

    def _start(self) -> None:
        function, opened = self._function, list[int]()
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            for _ in range(3):
                opened += os.pipe()
            theirs, ours, answers, theirs_too, lifeline, ours_too = opened
            given = (theirs, theirs_too, lifeline)
            arguments = (function.role, function.text, str(function.folder.expanduser().resolve()), *map(str, given))
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "common.user_code", *arguments],
                # What it prints goes nowhere, and there is nothing to read.
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=given,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )
        except OSError as error:
            for descriptor in opened:
                os.close(descriptor)
            raise UserCodeError(
                "unloadable", f"its process can't be started ({error})", "look at the limits"
            ) from error
        for descriptor in given:
            os.close(descriptor)
        self._requests, self._answers, self._lifeline = ours, answers, ours_too
        for descriptor in (self._requests, self._answers):
            os.set_blocking(descriptor, False)
        self._loaded, self._outgoing, self._incoming = False, b"", bytearray()
        self._deadline = time.monotonic() + function.start_limit_s

    def _work(self, wait_s: float) -> Answer | None:
        """Send and receive what can be; raises UserCodeError."""
        wait_s = max(0.0, min(wait_s, self._deadline - time.monotonic()))
        sends = [self._requests] if self._loaded and self._outgoing else []
        ready = wait_for([self._answers], sends, wait_s)
        ended = self._ended()
        if self._requests in ready:
            self._send()
        # What it said before it ended counts.
        over = self._receive() if self._answers in ready or ended else False
        found = self._next_frame()
        if found is not None:
            return found
        if over or ended:
            raise UserCodeError("ended", self._how_it_ended())
        if time.monotonic() < self._deadline:
            return None
        if not self._loaded:
            limit = self._function.start_limit_s
            raise UserCodeError("unloadable", f"took longer than {limit:g} s to be imported", "import less")
        if self.busy:
            raise UserCodeError("timed_out", f"took longer than its limit of {self._limit_s:g} s")
        return None

    def _send(self) -> None:
        try:
            self._outgoing = self._outgoing[os.write(self._requests, self._outgoing) :]
        except BlockingIOError:
            return
        except OSError:
            # Its reading end is closed: that it ends, or takes too long, is seen above.
            self._outgoing = b""

    def _receive(self) -> bool:
        """Take in what there is; whether it was the last."""
        while True:
            try:
                part = os.read(self._answers, _READ_BYTES)
            except BlockingIOError:
                return False
            if not part:
                return True
            self._incoming += part
            if len(self._incoming) > 2 * MAX_FRAME_BYTES:
                raise UserCodeError("too_long", f"answered with more than {MAX_FRAME_BYTES} bytes")

    def _next_frame(self) -> Answer | None:
        """The answer to the request under way, if it has come as a whole."""
        while len(self._incoming) >= HEADER.size:
            number, length = HEADER.unpack(self._incoming[: HEADER.size])
            if length > MAX_FRAME_BYTES:
                raise UserCodeError("too_long", f"answered with {length} bytes")
            if len(self._incoming) < HEADER.size + length:
                return None
            data = bytes(self._incoming[HEADER.size : HEADER.size + length])
            del self._incoming[: HEADER.size + length]
            if number in (LOADED, self._number):
                found = self._read_frame(number, data)
                if found is not None:
                    return found
        return None

    def _read_frame(self, number: int, data: bytes) -> Answer | None:
        try:
            said = json.loads(data)
            ((kind, value),) = said.items()
        except (ValueError, AttributeError, RecursionError) as error:
            raise UserCodeError("ended", f"wrote into what its answers go through ({error})") from error
        if number == LOADED and kind == "loaded":
            self._loaded, self._deadline = True, time.monotonic() + self._limit_s
            return None
        if number == LOADED and kind == "unloadable":
            problem, remedy = map(str, value)
            remedy = remedy.replace("{folder}", self._function.folder_setting)
            remedy = remedy.replace("{signature}", f"write it as {self._function.signature}")
            raise UserCodeError("unloadable", problem, remedy)
        if kind == "answer":
            return Answer(value)
        if kind == "raised":
            raise UserCodeError("raised", str(value))
        raise UserCodeError("too_long", f"answered with {value} bytes")

    def _how_it_ended(self) -> str:
        assert self._process is not None
        when = "" if self._loaded else " while it was imported"
        found = _how_ended(self._process.pid)
        until = time.monotonic() + _END_S
        while found is None and time.monotonic() < until:
            time.sleep(0.001)
            found = _how_ended(self._process.pid)
        if found is None:
            return f"closed what its answers go through{when}"
        how, number = found
        if how == os.CLD_EXITED:
            return f"its process ended with status {number}{when}"
        return f"its process was ended by {_signal_name(number)}{when}"


def _signal_name(number: int) -> str:
    """Real-time signals have none but for the first and the last."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _how_ended(pid: int) -> tuple[int, int] | None:
    """How a child ended and its status or signal, None while it lives. It is not waited for, so that its number stays
    its own until what it started is ended."""
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        # Somebody else waits for all children, and nothing is known of it any more.
        return os.CLD_EXITED, 0
    return None if found is None else (found.si_code, found.si_status)


def wait_for(readable: Sequence[int], writable: Sequence[int], wait_s: float) -> list[int]:
    """The descriptors that can be read from or written to, as soon as there is one; none after `wait_s`."""
    poll = select.poll()
    for descriptor in readable:
        poll.register(descriptor, select.POLLIN)
    for descriptor in writable:
        poll.register(descriptor, select.POLLOUT)
    return [descriptor for descriptor, _ in poll.poll(1_000 * max(0.0, wait_s))]
