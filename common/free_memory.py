"""How much main memory a process may still take before the kernel ends one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def free_memory_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """What is free on this machine, or less where a container's limit (cgroup v2) leaves less; caches that give way
    count as free."""
    with contextlib.suppress(OSError, ValueError):
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        cached = _fields(cgroup / "memory.stat").get("inactive_file", 0)
        return max(0, min(_machine(meminfo), limit - used + cached))
    return _machine(meminfo)


def _machine(meminfo: Path) -> int:
    with contextlib.suppress(OSError, ValueError, KeyError):
        return 1024 * _fields(meminfo)["MemAvailable"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _fields(path: Path) -> dict[str, int]:
    """Names and numbers, one a line."""
    lines = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
