"""The image's recipe: linted, pinned, not root, no secrets, and its install steps are the bootstrap's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compose import DOCKERFILE, image_environment, instructions

ROOT = Path(__file__).parents[3]


def of(kind: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == kind]


def test_hadolint_finds_nothing() -> None:
    binary = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if binary is None:
        pytest.skip("hadolint is not installed")
    result = subprocess.run([binary, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_stage_builds_on_a_pinned_image_or_on_another_stage() -> None:
    stages: set[str] = set()
    for line in of("FROM"):
        source, word, name = line.split()
        assert word == "AS" and (source in stages or re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+-[\w-]+", source)), line
        stages.add(name)
    assert {"cpu", "gpu"} <= stages


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_the_last_stages_are_small_and_not_root(target: str) -> None:
    text = DOCKERFILE.read_text()
    assert re.search(rf"^FROM runtime AS {target}$", text, re.MULTILINE)
    runtime = text[text.index("FROM base AS runtime") :]
    assert re.findall(r"^USER (\S+)$", runtime, re.MULTILINE) == ["1000:1000"]
    assert not re.search(r"^RUN(?!.*useradd)", runtime, re.MULTILINE)


def test_no_secret_reaches_a_layer() -> None:
    assert of("ARG") == [] and of("ADD") == []
    names = set(image_environment("cpu")) | set(image_environment("gpu"))
    assert not [name for name in names if re.search("PASSWORD|TOKEN|SECRET|REDIS__URL", name)]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".env", "**/*.env", ".git"} <= set(ignored)


def test_the_build_leaves_out_what_the_image_does_not_need_but_nothing_that_it_copies() -> None:
    ignored = set((ROOT / ".dockerignore").read_text().splitlines())
    assert {".venv", "runs", "tests", "docs"} <= ignored
    copied = {word for line in of("COPY") if "--from" not in line for word in line.split()[:-1]} - {"."}
    assert all((ROOT / word).exists() for word in copied) and not copied & ignored


def test_packages_are_installed_by_the_bootstrap_which_knows_the_traps() -> None:
    lines = [re.sub(r"--mount=\S+ ", "", line) for line in of("RUN") if "bootstrap" in line]
    assert lines == [
        f"AMORTIS_DEVICE={device} python deploy/bootstrap.py --runtime --no-model" for device in ("cpu", "gpu")
    ]
    assert "constraints.txt" in (ROOT / "deploy" / "bootstrap.py").read_text()


def test_threads_of_learner_and_actors_do_not_spin_on_cores_that_they_share() -> None:
    for target in ("cpu", "gpu"):
        assert image_environment(target)["OMP_WAIT_POLICY"] == "PASSIVE"


def test_caches_and_the_default_model_have_their_places() -> None:
    environment = image_environment("cpu")
    assert environment["AMORTIS_CACHE"] == "/opt/amortis"
    caches = [value for name, value in environment.items() if "CACHE" in name or name == "HF_HOME"]
    assert all(value.startswith(("/cache/", "/opt/amortis")) for value in caches) and len(caches) == 5
