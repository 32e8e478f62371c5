"""Whether a learner's memory stays what it is over 1,000 steps: `python -m benchmarks.learner_memory`, some minutes.

The trainer of a run of the default model, with its Redis, on a buffer of rationales of many lengths that nobody adds
to, as the actors' side has no part in it. The first steps are left out: allocators fill up.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import SecretStr

from benchmarks.learner_step import LENGTHS, of_process_kib
from benchmarks.made_run import untrained_run
from benchmarks.measure import Result, arguments, at_most, report
from buffer.connection import Keys, connect
from buffer.control import Control
from buffer.embedded import EmbeddedRedis
from buffer.replay import ReplayBuffer
from common.trajectory import Behaviour, Query, Trajectory
from deploy.sampler.finished_run import FinishedRun
from learner.__main__ import build_trainer

FIRST, GROWTH_LIMIT_MIB = 100, 50
QUERIES, EACH = 20, 10
GIVEN = """task: {name: continuation, train_path: HOME/prompts.txt, max_len: 64}
learner: {queries_per_step: 2, trajectories_per_query: 2, sync_every: 5, checkpoint_every: 100, steps: STEPS}
buffer: {samples_per_insert: 1000000, samples_per_insert_band: 0}
run: {evaluate_samples: false}
metrics: {enabled: false}
"""


class Memory:
    """A sink of the trainer's that looks at the process after every step."""

    def __init__(self) -> None:
        self.mib: list[float] = []

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """What the process holds now."""
        self.mib.append(of_process_kib("VmRSS") / 2**10)

    def write_evaluation(self, step: int, now: int, figures: Mapping[str, float]) -> None:
        """Of no interest."""

    def write_samples(self, step: int, title: str, samples: Sequence[Mapping[str, Any]]) -> None:
        """Of no interest."""

    def close(self) -> None:
        """Nothing is left."""


def fill(buffer: ReplayBuffer, queries: Sequence[Query], allowed: Sequence[int]) -> None:
    """Rationales of many lengths with rewards."""
    generator = np.random.default_rng(0)
    buffer.put_queries(queries)
    for query in queries:
        group = []
        for k in generator.choice(LENGTHS, EACH).tolist():
            floats = -generator.random(k + 1).astype(np.float32)
            group.append(
                Trajectory.without_tools(
                    query_id=query.id,
                    task=query.task,
                    action_ids=generator.choice(allowed, k),
                    log_prior=floats.cumsum(),
                    log_likelihood=np.zeros(k + 1),
                    log_constraint=np.zeros(k + 1),
                    behaviour=Behaviour(sampler_log_prob=floats[:k], stop_log_prob=-1.0),
                    source="seed",
                )
            )
        buffer.push(group)


def train(run: FinishedRun) -> list[float]:
    """Train a run; what the process held after each step, in MiB."""
    with EmbeddedRedis(run.folder / "redis") as server:
        redis = run.config.redis.model_copy(update={"url": SecretStr(server.url)})
        config = run.config.model_copy(update={"redis": redis})
        client, keys, memory = connect(redis), Keys(config.redis_name), Memory()
        buffer, space = ReplayBuffer.of(config, client, keys), run.task.action_space
        buffer.open()
        allowed = [int(token) for token in space.allowed_array if token != space.terminator_id]
        fill(buffer, run.task.queries("train")[:QUERIES], allowed)
        trainer = build_trainer(config, Control(client, keys), keys)
        trainer.sinks = [memory]
        trainer.run()
        client.close()
    return memory.mib


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--steps", type=int, default=1_000, help="of the learner (default: 1000)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "prompts.txt").write_text("\n".join(f"Once upon a time {i} foxes" for i in range(2 * QUERIES)))
        given = home / "given.yaml"
        given.write_text(GIVEN.replace("HOME", json.dumps(str(home))[1:-1]).replace("STEPS", str(options.steps)))
        found = train(untrained_run(given, home / "runs", "memory"))
    first = min(FIRST, options.steps // 2)
    report(
        f"a learner of {options.steps} steps",
        [
            Result(f"after step {first}", found[first - 1], "MiB"),
            Result("after the last step", found[-1], "MiB"),
            Result("at most", max(found), "MiB"),
            at_most(f"growth from step {first} to the last", found[-1] - found[first - 1], "MiB", GROWTH_LIMIT_MIB),
        ],
        options.json,
    )


if __name__ == "__main__":
    main()
