"""cpprb and dm-reverb at a given item size, for `benchmarks.buffer --context`, which runs it once a library.

Both keep their items in memory, cpprb in this very process: no network, no durability. Prints JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BATCH, DRAWN, ROUNDS = 64, 256, 200


def median_ms(operation: Callable[[], object]) -> float:
    """Median milliseconds of an operation."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        operation()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def cpprb(size: int, item_bytes: int) -> list[dict[str, Any]]:
    """Prioritized replay in this process."""
    from cpprb import PrioritizedReplayBuffer

    buffer = PrioritizedReplayBuffer(size, {"payload": {"shape": item_bytes, "dtype": np.uint8}})
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 255, (BATCH, item_bytes), dtype=np.uint8)
    for _ in range(0, size, BATCH):
        buffer.add(payload=batch, priorities=rng.random(BATCH))
    drawn = buffer.sample(DRAWN)["indexes"]
    return [
        row(f"cpprb in process: push of {BATCH}", median_ms(lambda: buffer.add(payload=batch))),
        row(f"cpprb in process: sample of {DRAWN} at {size:.2g}", median_ms(lambda: buffer.sample(DRAWN))),
        row(
            f"cpprb in process: priority update of {DRAWN}",
            median_ms(lambda: buffer.update_priorities(drawn, rng.random(DRAWN))),
        ),
    ]


def reverb(size: int, item_bytes: int) -> list[dict[str, Any]]:
    """A prioritized table on a server in this process, over its loopback client."""
    import reverb as dm_reverb

    table = dm_reverb.Table(
        "table",
        dm_reverb.selectors.Prioritized(1.0),
        dm_reverb.selectors.Fifo(),
        max_size=size,
        rate_limiter=dm_reverb.rate_limiters.MinSize(1),
    )
    client = dm_reverb.Client(f"localhost:{dm_reverb.Server([table]).port}")
    payload = np.zeros(item_bytes, np.uint8)

    def push() -> None:
        with client.writer(max_sequence_length=1) as writer:
            for _ in range(BATCH):
                writer.append([payload])
                writer.create_item("table", 1, 1.0)

    for _ in range(0, size, BATCH):
        push()
    return [
        row(f"dm-reverb: push of {BATCH}", median_ms(push)),
        row(f"dm-reverb: sample of {DRAWN} at {size:.2g}", median_ms(lambda: list(client.sample("table", DRAWN)))),
    ]


def row(name: str, value: float) -> dict[str, Any]:
    """One result without a target."""
    return {"name": name, "value": value, "unit": "ms"}


def main() -> None:
    """Measure one library: `context.py LIBRARY SIZE ITEM_BYTES`."""
    library, size, item_bytes = sys.argv[1:]
    print(json.dumps({"cpprb": cpprb, "reverb": reverb}[library](int(size), int(item_bytes))))


if __name__ == "__main__":
    main()
