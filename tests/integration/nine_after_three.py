"""A user's tool for the tests."""

from __future__ import annotations


def insert(text: str) -> str | None:
    """A nine after every three, but for one that follows a five."""
    return None if text.replace(" ", "").endswith("53") else "9"
