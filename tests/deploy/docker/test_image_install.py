"""The image's install steps, as they stand in the Dockerfile, in a clean folder with a clean virtual environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.compose import instructions

ROOT = Path(__file__).parents[3]
STAGES = ("packages-cpu", "build-cpu")
LIMIT_S = 900


def steps_of(stages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """COPY and RUN of some stages, build mounts left out."""
    stage = ""
    for name, rest in instructions():
        if name == "FROM":
            stage = rest.split()[-1]
        elif name in ("COPY", "RUN") and stage in stages:
            yield name, re.sub(r"--mount=\S+ ", "", rest)


def copy(arguments: str, app: Path) -> None:
    """What git keeps of the named files and folders; a build's own ignore file leaves out more."""
    *sources, target = arguments.split()
    for source in sources:
        for name in subprocess.check_output(["git", "ls-files", source], cwd=ROOT, text=True).splitlines():
            into = app / name if target in (".", "./", source) else app / target
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, into)


@pytest.mark.timeout(LIMIT_S)
def test_the_install_steps_of_the_image_leave_a_working_amortis_in_a_clean_environment(tmp_path: Path) -> None:
    app, programs = tmp_path / "app", tmp_path / "bin"
    for folder in (app, programs):
        folder.mkdir()
    # The base image's interpreter, which has nothing of ours.
    (programs / "python").symlink_to(Path(sys._base_executable))  # type: ignore[attr-defined]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    path = f"{app}/.venv/bin:{programs}:/usr/local/bin:/usr/bin:/bin"
    # Nothing is run often enough here to be worth compiling all packages for.
    environment = {**kept, "PATH": path, "PYTHONPATH": str(app), "PIP_COMPILE": "0"}

    def run(command: str) -> str:
        found = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command], cwd=app, env=environment, capture_output=True, text=True
        )
        assert found.returncode == 0, f"{command}\n{found.stdout[-2000:]}{found.stderr[-3000:]}"
        return found.stdout

    try:
        steps = list(steps_of(STAGES))
        assert [name for name, _ in steps].count("RUN") >= 3
        for name, arguments in steps:
            copy(arguments, app) if name == "COPY" else run(arguments)
        assert "status" in run("amortis --help")
        assert (
            run("python -c 'import vllm, ray, amortis, deploy.cli; print(deploy.cli.__file__)'")
            .strip()
            .startswith(str(app))
        )
        # What is only for tests and tools is not in the image.
        assert run("python -c 'import importlib.util as i; print(i.find_spec(\"pytest\"))'").strip() == "None"
    finally:
        shutil.rmtree(app, ignore_errors=True)
