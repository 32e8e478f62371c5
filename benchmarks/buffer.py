"""The replay buffer against raw Redis commands on the same bytes, on one server, in one run.

`python -m benchmarks.buffer` takes a few minutes and 5 GB of memory at the full size of 10⁶ trajectories;
`--largest 100000` is quick. With `--context PYTHON`, an interpreter that has cpprb or dm-reverb, it runs those beside.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from redis import Redis

from benchmarks.measure import Result, arguments, at_least, at_most, medians_ms, report
from buffer.connection import Keys, connect
from buffer.embedded import EmbeddedRedis
from buffer.replay import ReplayBuffer
from common.config import BufferSection, RedisSection
from common.reward import RewardWeights
from common.trajectory import Behaviour, Trajectory

K = 96
"""Actions: a trajectory of 96 has 2,034 bytes on the wire."""
BATCH, PUSHED_TOGETHER, DRAWN, DRAWN_QUERIES = 64, 8, 256, 16
"""Samples of a query come in groups, and a step takes as many queries as trajectories of each: in the middle of the
settings of Hu et al."""
ROUNDS = 200
CONTEXT_LIMIT_S = 120
OPTIONS = {"auto-aof-rewrite-percentage": 0}
"""The log is written but not rewritten: that would hit one operation or another at random."""
WEIGHTS = RewardWeights(prior=0, likelihood=0)


def trajectory(query: int, index: int, rng: np.random.Generator) -> Trajectory:
    """A trajectory of random numbers; `index` makes its actions, and so its id, its own."""
    actions = np.full(K, index % 50_000, np.int32)
    actions[0] = index // 50_000
    floats = rng.standard_normal(K + 1).astype(np.float32)
    behaviour = Behaviour(adapter_version=1 + index // 1_000, sampler_log_prob=floats[:K], stop_log_prob=-0.5)
    return Trajectory.without_tools(
        query_id=f"{query * 2654435761 % 2**32:08x}" + "0" * 24,
        task="benchmark",
        action_ids=actions,
        log_prior=floats,
        log_likelihood=floats,
        log_constraint=floats * 3,
        behaviour=behaviour,
        actor_id="actor-0",
    )


class Bench:
    """One server, and the buffer on it at growing sizes."""

    def __init__(self, client: Redis, run: str, n_queries: int) -> None:
        self.client, self.n_queries, self.size = client, n_queries, 0
        self.keys = Keys(run)
        section = BufferSection(capacity=10**8, capacity_per_query=10**8, max_bytes=2**50)
        self.buffer = ReplayBuffer(client, self.keys, section, WEIGHTS)
        by_loss = section.model_copy(update={"replay_priority": "loss"})
        self.by_loss = ReplayBuffer(client, self.keys, by_loss, WEIGHTS)
        self.rng = np.random.default_rng(0)

    def batch(self, n: int) -> list[Trajectory]:
        """New trajectories, spread over the queries."""
        indices = range(self.size, self.size + n)
        self.size += n
        return [trajectory(index // PUSHED_TOGETHER % self.n_queries, index, self.rng) for index in indices]

    def fill(self, size: int) -> None:
        """Push up to a size."""
        while self.size < size:
            self.buffer.push(self.batch(min(1_000, size - self.size)))

    def times(self, rounds: int) -> dict[str, float]:
        """Median ms of push, sample and update at the present size."""
        n_queries = min(DRAWN_QUERIES, self.n_queries)
        batches = [self.batch(BATCH) for _ in range(rounds + 2)]
        drawn = self.buffer.sample(n_queries, DRAWN // n_queries, seed=0)
        priorities = [random.random() for _ in drawn]
        return medians_ms(
            rounds,
            push=lambda i: self.buffer.push(batches[i]),
            sample=lambda i: self.buffer.sample(n_queries, DRAWN // n_queries, seed=i),
            update=lambda i: self.by_loss.update_priorities(drawn, priorities),
        )


def raw_commands(client: Redis, bench: Bench) -> list[Result]:
    """Push against pipelined SET, sampling against MGET, of the same bytes."""
    n_queries = min(DRAWN_QUERIES, bench.n_queries)
    each = DRAWN // n_queries
    batches = [bench.batch(BATCH) for _ in range(ROUNDS + 2)]
    payloads = [[item.to_bytes() for item in batch] for batch in batches]
    # As many values that the ones drawn lie as scattered in memory as those of the buffer do.
    raw = max(DRAWN, bench.size // 4)
    for start in range(0, raw, 500):
        client.mset({f"raw:{start + j}": payloads[j // BATCH][j % BATCH] for j in range(500)})
    names = [[f"raw:{random.randrange(raw)}" for _ in range(DRAWN)] for _ in range(ROUNDS + 2)]

    def raw_set(i: int) -> None:
        pipe = client.pipeline(transaction=False)
        for j, payload in enumerate(payloads[i]):
            pipe.set(f"raw:set:{i}:{j}", payload)
        pipe.execute()

    found = medians_ms(
        ROUNDS,
        set=raw_set,
        push=lambda i: bench.buffer.push(batches[i]),
        mget=lambda i: client.mget(names[i]),
        payloads=lambda i: list(bench.buffer._drawn(n_queries, each, each // 2, i, None, payloads=True)),
        sample=lambda i: bench.buffer.sample(n_queries, DRAWN // n_queries, seed=i),
    )
    layout = f"{bench.n_queries} queries" if bench.n_queries > 1 else "1 query"
    for key in client.scan_iter(match="raw:*", count=10_000):
        client.unlink(key)
    return [
        Result(f"{BATCH} pipelined SETs of {len(payloads[0][0])} bytes", found["set"], "ms"),
        Result(f"push of {BATCH}, {layout}", found["push"], "ms"),
        at_least(f"push / SET throughput, {layout}", found["set"] / found["push"], "ratio", 0.4),
        Result(f"MGET of {DRAWN}", found["mget"], "ms"),
        Result(f"sample of {DRAWN}, bytes as MGET gives them, {layout}", found["payloads"], "ms"),
        Result(f"sample of {DRAWN}, decoded and checked, {layout}", found["sample"], "ms"),
        at_most(f"sample / MGET time, bytes, {layout}", found["payloads"] / found["mget"], "ratio", 5),
        at_most(f"sample / MGET time, decoded, {layout}", found["sample"] / found["mget"], "ratio", 5),
    ]


def scaling(client: Redis, n_queries: int, sizes: Sequence[int]) -> list[Result]:
    """Costs at growing sizes, then the comparison with raw commands and the memory at the largest."""
    bench = Bench(client, f"bench{n_queries}", n_queries)
    before = int(client.info("memory")["used_memory"])
    layout = f"{n_queries} queries" if n_queries > 1 else "1 query"
    rows: dict[int, dict[str, float]] = {}
    results = []
    for size in sizes:
        bench.fill(size)
        print(f"{layout}: {size} stored", file=sys.stderr)
        if size == sizes[-1]:
            used = int(client.info("memory")["used_memory"]) - before
            wire = len(trajectory(0, 0, np.random.default_rng(0)).to_bytes())
            results.append(at_most(f"memory / wire bytes a trajectory, {layout}", used / size / wire, "ratio", 1.5))
        rows[size] = bench.times(ROUNDS)
    for operation in ("push", "sample", "update"):
        results += [Result(f"{operation} at {size}, {layout}", row[operation], "ms") for size, row in rows.items()]
        first, last = sizes[0], sizes[-1]
        bound = float(np.log(last) / np.log(first))
        growth = rows[last][operation] / rows[first][operation]
        results.append(at_most(f"{operation}: growth {first} to {last}, {layout}", growth, "ratio", round(bound, 2)))
    results.append(at_most(f"priority update of {DRAWN} at {sizes[-1]}, {layout}", rows[sizes[-1]]["update"], "ms", 2))
    results += raw_commands(client, bench)
    return results


def context(python: str, size: int) -> list[Result]:
    """cpprb and dm-reverb, each in its own process, at the same item size; what doesn't work is said and left out."""
    script, found = str(Path(__file__).with_name("context.py")), []
    for library in ("cpprb", "reverb"):
        command = [python, script, library, str(size), str(21 * K + 18)]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=CONTEXT_LIMIT_S)
            found += [Result(**row) for row in json.loads(answer.stdout.splitlines()[-1])]
        except subprocess.TimeoutExpired:
            print(f"{library}: no answer within {CONTEXT_LIMIT_S} s", file=sys.stderr)
        except subprocess.CalledProcessError as error:
            print(f"{library}: {(error.stderr.strip().splitlines() or ['failed'])[-1]}", file=sys.stderr)
    return found


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--largest", type=int, default=10**6, help="trajectories stored at most (default: 1000000)")
    parser.add_argument("--context", metavar="PYTHON", help="an interpreter that has cpprb or dm-reverb")
    options = parser.parse_args()
    sizes = [10**n for n in range(3, 10) if 10**n <= options.largest]
    results = []
    for n_queries in (100, 1):
        with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder), options=OPTIONS) as server:
            results += scaling(connect(RedisSection(timeout_s=60), server.url), n_queries, sizes)
    if options.context:
        results += context(options.context, sizes[-1])
    report(f"replay buffer, {os.cpu_count()} cores", results, options.json)


if __name__ == "__main__":
    main()
