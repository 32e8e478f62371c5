"""Finds Prometheus' programs: on the PATH, else from the distribution's package, unpacked without root into the cache.

For the tests, and for `promtool` at hand. Debian and its like have the package; nothing else is fetched from anywhere.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common.default_model import cache_folder

PACKAGE = "prometheus"
PROGRAMS = ("prometheus", "promtool")
FETCH_LIMIT_S = 120.0


class ToolMissing(Exception):
    """Why a program can't be had here."""


def find_tool(name: str, folder: Path | None = None) -> Path:
    """Path of `prometheus` or `promtool`, fetched into `folder` (the cache) if need be. Raises ToolMissing."""
    if name not in PROGRAMS:
        raise ValueError(f"{name!r}: one of {', '.join(PROGRAMS)}")
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    unpacked = (folder or cache_folder() / "tools") / PACKAGE
    program = unpacked / "usr" / "bin" / name
    if not program.exists():
        _fetch(unpacked)
    return program


def _fetch(target: Path) -> None:
    """Download and unpack the package; the folder appears whole or not at all."""
    missing = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if missing:
        raise ToolMissing(f"no {PACKAGE} on the PATH, and no {' and no '.join(missing)} to fetch its package with")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        work = Path(name)
        # apt leaves its own rights behind where it may not write: the folder must be open to it.
        work.chmod(0o755)
        _run(["apt-get", "download", PACKAGE], work)
        archives = list(work.glob(f"{PACKAGE}_*.deb"))
        if not archives:
            raise ToolMissing(f"apt-get has downloaded no {PACKAGE} package")
        _run(["dpkg", "-x", str(archives[0]), "unpacked"], work)
        if not target.exists():
            (work / "unpacked").rename(target)


def _run(command: list[str], folder: Path) -> None:
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise ToolMissing(f"{' '.join(command)} took longer than {FETCH_LIMIT_S:g} s") from error
    if result.returncode:
        raise ToolMissing(f"{' '.join(command)} failed: {(result.stderr.strip() or 'no message').splitlines()[-1]}")


if __name__ == "__main__":
    try:
        for program_name in PROGRAMS:
            print(find_tool(program_name))
    except ToolMissing as problem:
        sys.exit(f"amortis: {problem}")
