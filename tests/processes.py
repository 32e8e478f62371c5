"""Processes by their id, as Linux tells of them."""

from __future__ import annotations

from pathlib import Path


def alive(pid: int) -> bool:
    """Whether it is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
