"""How many actors one Redis serves: 1 to 256 load generators replay trajectories at an actor's pace beside a learner
that draws from the same buffer, then as fast as Redis takes them; and how fast it hands an adapter out:
`python -m benchmarks.scaling`. `docs/scaling.md` says what follows.

Generators are threads of one process with a connection each, the learner's draws are timed in another. What they
replay is a run's buffer, as `amortis buffer export` writes it (`--recorded FILE`), or else made up in such a run's
lengths; the actions are changed each time, so that none is a duplicate.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learner_step import LENGTHS
from benchmarks.measure import Result, arguments, at_most, report
from buffer.adapters import AdapterRegistry
from buffer.connection import Keys, connect
from buffer.embedded import EmbeddedRedis
from buffer.exchange import import_buffer
from buffer.replay import ReplayBuffer
from common.config import BufferSection, RedisSection
from common.reward import RewardWeights
from common.trajectory import Behaviour, Trajectory

GENERATORS = (1, 4, 16, 64, 256)
A_SECOND, PUSHED_TOGETHER = 16.0, 8
"""Of a generator, in trajectories: an H200 gave 14 to 20 a second on `subjectivity`. They come together."""
QUERIES, DRAWN_QUERIES, DRAWN_EACH, DRAWS_A_SECOND = 1_000, 16, 16, 10.0
AT_FULL_SPEED = 16
SIZES_MIB, READERS = (2, 32), (1, 8)
"""Of adapters: of rank 16 they have 2 MiB in the default model's attention, and some ten times as much in that of a
model of 7 billion parameters."""
DRAW_LIMIT_MS = 50.0
"""A learner's step on a GPU took 38 to 90 ms."""


def made_up(random_: np.random.Generator, n: int) -> list[Trajectory]:
    """Trajectories of the lengths that a run's buffer held."""
    found = []
    for k in random_.choice(LENGTHS, n).tolist():
        floats = random_.standard_normal(k + 1).astype(np.float32)
        found.append(
            Trajectory.without_tools(
                query_id="0" * 32,
                task="benchmark",
                action_ids=random_.integers(0, 49_152, k),
                log_prior=floats,
                log_likelihood=floats,
                log_constraint=floats,
                behaviour=Behaviour(adapter_version=1, sampler_log_prob=floats[:k], stop_log_prob=-0.5),
                actor_id="actor-0",
            )
        )
    return found


def recorded(path: Path, url: str) -> list[Trajectory]:
    """Of a run's buffer; those without tools, as changed actions would not fit what tools wrote."""
    buffer = buffer_on(url, "recorded")
    import_buffer(buffer, path)
    found = buffer.sample(QUERIES, 100, seed=0)
    return [item for item in found if len(item.input_ids) == len(item.action_ids) > 0]


class Generator:
    """Replays trajectories as if they were new ones of random queries."""

    def __init__(self, url: str, given: Sequence[Trajectory], seed: int) -> None:
        self._buffer, self._given = buffer_on(url), given
        self._random, self._numbers = random.Random(seed), np.random.default_rng(seed)

    def push(self) -> float:
        """Some of one query; the seconds that this took."""
        query = f"{self._random.randrange(QUERIES) * 2654435761 % 2**32:08x}" + "0" * 24
        batch = [self._changed(self._random.choice(self._given), query) for _ in range(PUSHED_TOGETHER)]
        started = time.perf_counter()
        self._buffer.push(batch)
        return time.perf_counter() - started

    def _changed(self, item: Trajectory, query: str) -> Trajectory:
        actions = self._numbers.integers(0, 49_152, len(item.action_ids)).astype(np.int32)
        return item.model_copy(update={"query_id": query, "action_ids": actions, "input_ids": actions})


def buffer_on(url: str, name: str = "scaling") -> ReplayBuffer:
    """A client of its own; the buffer holds 100,000 trajectories at most and evicts from then on."""
    section = BufferSection(capacity=100_000, capacity_per_query=100, max_bytes=2**40)
    return ReplayBuffer(connect(RedisSection(timeout_s=60), url), Keys(name), section, RewardWeights())


def generate(
    url: str, given: Sequence[Trajectory], n: int, pace: float, seconds: float, started: Any, answer: Any
) -> None:
    """`n` generators for so long, each of so many trajectories a second (0: at full speed); what each push took."""

    def work(seed: int) -> list[float]:
        generator, taken = Generator(url, given, seed), list[float]()
        ready.wait()
        # Not all at the same moment.
        due = begun = time.monotonic() + random.random() * PUSHED_TOGETHER / max(pace, 1.0)
        while due < begun + seconds and time.monotonic() < begun + seconds:
            time.sleep(max(0.0, due - time.monotonic()))
            taken.append(generator.push())
            due = max(due + PUSHED_TOGETHER / pace, time.monotonic()) if pace else time.monotonic()
        return taken

    ready = threading.Barrier(n, action=started.set)
    with ThreadPoolExecutor(n) as pool:
        answer.put([each for own in pool.map(work, range(n)) for each in own])


def beside_a_learner(
    url: str, given: Sequence[Trajectory], n: int, pace: float, seconds: float
) -> tuple[float, list[float], list[float]]:
    """Trajectories a second that got in, seconds of each push, and of each of the learner's draws."""
    context = multiprocessing.get_context("spawn")
    started, answer = context.Event(), context.Queue()
    process = context.Process(target=generate, args=(url, given, n, pace, seconds, started, answer))
    process.start()
    started.wait()
    buffer, drawn, end = buffer_on(url), list[float](), time.monotonic() + seconds
    before = buffer.stats().pushed
    while (now := time.monotonic()) < end:
        took = time.perf_counter()
        batch = buffer.sample(DRAWN_QUERIES, DRAWN_EACH, seed=len(drawn))
        buffer.update_priorities(batch, [random.random() for _ in batch])
        drawn.append(time.perf_counter() - took)
        time.sleep(max(0.0, now + 1 / DRAWS_A_SECOND - time.monotonic()))
    pushed = (buffer.stats().pushed - before) / seconds
    pushes = answer.get()
    process.join()
    return pushed, pushes, drawn


def handed_out(url: str, size: int, readers: int) -> float:
    """MiB a second that so many readers get of an adapter of that size, their checks of it included."""
    registry = AdapterRegistry(connect(RedisSection(timeout_s=60), url), Keys("scaling"))
    version = registry.latest() + 1
    registry.publish(version, {"adapter_model.safetensors": os.urandom(size)})
    clients = [connect(RedisSection(timeout_s=60), url) for _ in range(readers)]
    fetch: Callable[[Any], object] = lambda client: AdapterRegistry(client, Keys("scaling")).fetch(version)  # noqa: E731
    with ThreadPoolExecutor(readers) as pool:
        list(pool.map(fetch, clients))
        rounds, started = max(1, 2**28 // (size * readers)), time.perf_counter()
        for _ in range(rounds):
            list(pool.map(fetch, clients))
    return rounds * readers * size / 2**20 / (time.perf_counter() - started)


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--recorded", type=Path, metavar="FILE", help="trajectories, of `amortis buffer export`")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each number of generators (default: 10)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder)) as server:
        buffer_on(server.url).open()
        given = made_up(np.random.default_rng(0), 500)
        if options.recorded:
            given = recorded(options.recorded, server.url)
        size = float(np.mean([len(item.to_bytes()) for item in given]))
        results = [Result("bytes of a trajectory, mean", size, "bytes")]
        for n in GENERATORS:
            rate, pushes, drawn = beside_a_learner(server.url, given, n, A_SECOND, options.seconds)
            who = f"{n} generators of {A_SECOND:g}/s"
            p95 = float(np.percentile(drawn, 95)) * 1e3
            results += [
                Result(f"{who}: got in", rate, "trajectories/s"),
                Result(f"{who}: push of {PUSHED_TOGETHER}, p50", float(np.median(pushes)) * 1e3, "ms"),
                Result(f"{who}: push of {PUSHED_TOGETHER}, p95", float(np.percentile(pushes, 95)) * 1e3, "ms"),
                at_most(f"{who}: draw of {DRAWN_QUERIES * DRAWN_EACH}, p95", p95, "ms", DRAW_LIMIT_MS),
            ]
        rate, _, drawn = beside_a_learner(server.url, given, AT_FULL_SPEED, 0.0, options.seconds)
        results.append(Result(f"{AT_FULL_SPEED} generators at full speed: got in", rate, "trajectories/s"))
        p95 = float(np.percentile(drawn, 95)) * 1e3
        results.append(Result(f"{AT_FULL_SPEED} generators at full speed: draw, p95", p95, "ms"))
        for mib in SIZES_MIB:
            for readers in READERS:
                found = handed_out(server.url, mib * 2**20, readers)
                results.append(Result(f"adapter of {mib} MiB, {readers} readers at once", found, "MiB/s"))
    report(f"one Redis, {os.cpu_count()} cores for it, the generators and the learner", results, options.json)


if __name__ == "__main__":
    main()
