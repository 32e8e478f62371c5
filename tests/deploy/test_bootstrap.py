"""The set-up's decisions; the set-up itself is what made the environment that runs this test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy import bootstrap
from deploy.bootstrap import SetupError, choose_device, stamp

ROOT = Path(__file__).parents[2]


def test_the_device_is_what_the_machine_has_unless_it_is_asked_for() -> None:
    assert choose_device(None, gpu=False) == "cpu" and choose_device("", gpu=True) == "gpu"
    assert choose_device("cpu", gpu=True) == "cpu" and choose_device("gpu", gpu=False) == "gpu"
    with pytest.raises(SetupError, match="AMORTIS_DEVICE = 'tpu'"):
        choose_device("tpu", gpu=False)


def test_a_changed_requirement_asks_for_a_new_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text("a")
    (tmp_path / "constraints.txt").write_text("b")
    before = stamp("cpu")
    assert stamp("cpu") == before != stamp("gpu")
    assert stamp("cpu", "setup") != before
    (tmp_path / "constraints.txt").write_text("c")
    assert stamp("cpu") != before


def test_too_little_disk_is_said_before_anything_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / "none")
    monkeypatch.setattr(bootstrap, "MIN_FREE_BYTES", 2**60)
    with pytest.raises(SetupError, match="the packages need"):
        bootstrap.check_machine()


def test_a_package_whose_installation_was_cut_off_is_installed_again(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("whole-1.dist-info", "torn-1.dist-info"):
        (packages / name).mkdir(parents=True)
        (packages / name / "METADATA").write_text("")
    (packages / "whole-1.dist-info" / "RECORD").write_text("")
    bootstrap.forget_torn_packages(tmp_path)
    assert [path.name for path in packages.iterdir()] == ["whole-1.dist-info"]


def test_a_virtual_environment_without_pip_is_not_taken_as_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / "venv")
    assert not bootstrap.has_pip()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    assert not bootstrap.has_pip()


def test_the_set_up_needs_nothing_installed() -> None:
    # Isolated and without site-packages, as on a fresh machine.
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'deploy')!r}); import bootstrap; bootstrap.check_machine()"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)


def test_constraints_hold_plain_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    assert len(lines) > 100
    assert all("==" in line and "/" not in line and "@" not in line for line in lines)
