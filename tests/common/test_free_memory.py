"""How much memory is free, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.free_memory import free_memory_bytes


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max", 4000 * 1024),
        # 3 MB of which 2 MB are taken, 0.5 MB by caches that give way.
        ("3000000", 1_500_000),
        ("1000000", 0),
        # More than the machine has.
        ("9000000000", 4000 * 1024),
    ],
)
def test_what_is_free_is_the_machine_s_or_what_a_container_s_limit_leaves(
    tmp_path: Path, limit: str, expected: int
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       9000 kB\nMemFree:    10 kB\nMemAvailable:    4000 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    (tmp_path / "memory.stat").write_text("anon 1500000\ninactive_file 500000\n")
    assert free_memory_bytes(tmp_path / "meminfo", tmp_path) == expected


def test_without_a_container_it_is_the_machine_s(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable:    4000 kB\n")
    assert free_memory_bytes(tmp_path / "meminfo", tmp_path / "none") == 4000 * 1024
    assert free_memory_bytes() > 0
