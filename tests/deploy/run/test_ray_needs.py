"""What Ray needs of the machine, asked before anything is started."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from deploy.run.ray_needs import MAX_SOCKET_PATH, check_ray


@pytest.fixture(autouse=True)
def usual_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own, no token, and the usual temporary folder."""
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_usual_machine_will_do(tmp_path: Path) -> None:
    check_ray()
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_whose_sockets_would_have_too_long_a_path_is_said(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = "/tmp/" + "t" * 93
    monkeypatch.setenv(variable, folder)
    with pytest.raises(UserError, match=rf"{variable} = '/tmp/ttt.*bytes too long \(107 .*set RAY_TMPDIR") as caught:
        check_ray()
    room = int(re.search(r"at most (\d+) bytes", caught.value.remedy)[1])  # type: ignore[index]
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/".ljust(room, "t"))
    check_ray()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/".ljust(room + 1, "t"))
    with pytest.raises(UserError, match=r"1 bytes too long"):
        check_ray()


def test_the_limit_is_that_of_the_system_and_the_path_that_of_ray(tmp_path: Path) -> None:
    """Both from their own: a socket's path as long as the limit, and Ray's source."""
    code = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
    for length, works in ((MAX_SOCKET_PATH, True), (MAX_SOCKET_PATH + 1, False)):
        path = f"{tmp_path}/".ljust(length, "s")
        if len(path) == length:
            done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)
            assert (done.returncode == 0) == works
    import ray._private.node as node

    source = Path(node.__file__).read_text(encoding="utf-8")
    assert 'f"session_{date_str}_{os.getpid()}"' in source and '"%Y-%m-%d_%H-%M-%S_%f"' in source
    assert 'default_prefix="plasma_store"' in source and '"sockets"' in source


@pytest.mark.parametrize("folder", ["/proc/none", "{file}/below"])
def test_a_temporary_folder_that_cannot_be_written_is_said(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_text("")
    monkeypatch.setattr("deploy.run.ray_needs.MAX_SOCKET_PATH", 1_000)
    monkeypatch.setenv("TMPDIR", folder.format(file=tmp_path / "f"))
    with pytest.raises(UserError, match=r"TMPDIR = .*for Ray's files nothing can be written there"):
        check_ray()


def test_a_home_that_cannot_be_written_is_said_unless_a_token_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/none")
    with pytest.raises(UserError, match=r"HOME = '/proc/none': for the token of Ray, nothing .*RAY_AUTH_TOKEN"):
        check_ray()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    check_ray()


def test_a_token_that_is_there_is_all_that_the_home_is_needed_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")

    def refuse(*_: object) -> None:
        raise AssertionError("nothing need be written")

    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr("deploy.run.ray_needs._check_temporary_folder", lambda: None)
    monkeypatch.setattr("deploy.run.ray_needs.check_writable", refuse)
    check_ray()
