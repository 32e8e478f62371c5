"""What Ray needs of the machine that starts it: a short path for sockets, and a token that can be read or written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from common.errors import UserError
from common.files import check_writable

MAX_SOCKET_PATH = 103 if sys.platform == "darwin" else 107
"""Bytes that the kernel takes as the path of an AF_UNIX socket."""
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""What Ray adds to its temporary folder at most."""
_TOKEN = "RAY_AUTH_TOKEN"


def check_ray() -> None:
    """Whether Ray can be started here. Raises UserError naming the environment variable to change."""
    _check_temporary_folder()
    _check_token()


def _check_temporary_folder() -> None:
    variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(variable) or "/tmp"
    longest = os.path.join(folder, _SOCKET.format(pid=_longest_pid()))
    too_long = len(os.fsencode(longest)) - MAX_SOCKET_PATH
    room = len(os.fsencode(folder)) - too_long
    if too_long > 0:
        problem = f"makes paths of Ray's sockets {too_long} bytes too long ({MAX_SOCKET_PATH} is the system's limit)"
        raise UserError(variable, folder, problem, f"set RAY_TMPDIR to a folder of at most {room} bytes, such as /tmp")
    check_writable(
        variable, folder, Path(folder) / "ray", "set RAY_TMPDIR to a folder such as /tmp", "for Ray's files "
    )


def _longest_pid() -> str:
    try:
        return Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii").strip()
    except OSError:
        return "99999"


def _check_token() -> None:
    """A cluster that is started here is closed by a token, which Ray keeps in the home."""
    given = any(name in os.environ for name in (_TOKEN, f"{_TOKEN}_PATH"))
    if given or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    folder = Path.home() / ".ray"
    if (folder / "auth_token").is_file() and os.access(folder / "auth_token", os.R_OK):
        return
    remedy = f"set HOME to a folder that can be written, or {_TOKEN} to a secret of your own"
    check_writable("HOME", str(Path.home()), folder, remedy, "for the token of Ray, ")
