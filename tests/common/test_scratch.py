"""Folders for a process's own files: gone with it, or with the next one's start."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from common.scratch import Scratch

HOLD = "import time; from common.scratch import Scratch; s = Scratch('weights'); print(s.folder); time.sleep(600)"


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def aged(folder: Path) -> Path:
    """Made long ago, as far as can be seen."""
    then = time.time() - 3600
    os.utime(folder / ".lock", (then, then))
    return folder


def test_a_folder_goes_when_it_is_closed_and_those_of_the_living_stay(tmp_path: Path) -> None:
    first = Scratch("weights")
    (aged(first.folder) / "v1").mkdir()
    second = Scratch("weights")
    assert first.folder != second.folder and (first.folder / "v1").is_dir()
    first.close()
    assert list(tmp_path.iterdir()) == [second.folder]
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_deleted_by_the_next_one_of_its_kind(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-u", "-c", HOLD], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        left = aged(Path(process.stdout.readline().strip()))
        Scratch("weights").close()
        assert left.is_dir(), "it is in use"
    finally:
        process.kill()
        process.communicate()
    Scratch("other").close()
    assert left.is_dir()
    foreign = tmp_path / "amortis-weights-foreign"
    foreign.mkdir()
    Scratch("weights").close()
    assert list(tmp_path.iterdir()) == [foreign], "without a lock nobody can tell whose it is"


def test_a_folder_that_may_not_be_locked_yet_stays(tmp_path: Path) -> None:
    young = tmp_path / "amortis-weights-young"
    young.mkdir()
    (young / ".lock").touch()
    Scratch("weights").close()
    assert young.is_dir()
