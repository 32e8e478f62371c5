"""Ports for processes of which each takes the next one."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

LOW, HIGH = 20_000, 30_000
"""Below those that the system gives away itself, which may be gone a moment later."""


def free_ports(n: int) -> int:
    """The first of `n` TCP ports in a row that nobody listens on."""
    generator = random.Random()
    while True:
        first = generator.randrange(LOW, HIGH - n)
        with ExitStack() as probes:
            try:
                for port in range(first, first + n):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
