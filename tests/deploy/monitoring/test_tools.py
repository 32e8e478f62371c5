"""Prometheus' programs: the PATH's, else the package's without root, else a reason why not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.monitoring.tools import ToolMissing, find_tool

APT = """#!/bin/sh
[ "$1 $2" = "download prometheus" ] || exit 9
echo package > prometheus_1.0_amd64.deb
"""
DPKG = """#!/bin/sh
[ "$1" = -x ] && grep -q package "$2" || exit 9
mkdir -p "$3/usr/bin" && echo '#!/bin/sh' > "$3/usr/bin/promtool" && cp "$3/usr/bin/promtool" "$3/usr/bin/prometheus"
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for programs, in front of a PATH that has the shell's own and no Prometheus."""
    folder, shell = tmp_path / "bin", tmp_path / "shell"
    folder.mkdir()
    shell.mkdir()
    for name in ("sh", "mkdir", "cp", "grep"):
        (shell / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{shell}")
    return folder


def put(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_the_path_comes_first(path: Path, tmp_path: Path) -> None:
    put(path, "promtool", "#!/bin/sh\n")
    assert find_tool("promtool", tmp_path / "cache") == path / "promtool"
    assert not (tmp_path / "cache").exists()


def test_the_package_is_fetched_once(path: Path, tmp_path: Path) -> None:
    put(path, "apt-get", APT)
    put(path, "dpkg", DPKG)
    found = find_tool("promtool", tmp_path / "cache")
    assert found.read_text() == "#!/bin/sh\n"
    (path / "apt-get").unlink()
    assert find_tool("prometheus", tmp_path / "cache") == found.with_name("prometheus")
    assert [item.name for item in (tmp_path / "cache").iterdir()] == ["prometheus"]


def test_a_machine_without_apt_is_told_so(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolMissing, match="no apt-get and no dpkg"):
        find_tool("promtool", tmp_path / "cache")


def test_a_failed_download_gives_apt_s_reason_and_leaves_nothing(path: Path, tmp_path: Path) -> None:
    put(path, "apt-get", "#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    put(path, "dpkg", DPKG)
    with pytest.raises(ToolMissing, match="Unable to locate package"):
        find_tool("promtool", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_other_programs_are_refused() -> None:
    with pytest.raises(ValueError, match="prometheus, promtool"):
        find_tool("sh")
