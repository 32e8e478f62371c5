"""Ports for what listens on several."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

LOW, HIGH = 20_000, 32_768
"""Below those that the system gives away itself, which may be gone a moment later."""


def free_port_with(*offsets: int) -> int:
    """A TCP port on loopback that nobody listens on, nor on those so far behind it."""
    generator = random.Random()
    while True:
        port = generator.randrange(LOW, HIGH - max(offsets))
        with ExitStack() as probes:
            try:
                for offset in (0, *offsets):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except OSError:
                continue
            return port
