"""What a diagnosis costs: `amortis diagnose` against its engine's own time to generate and score the same number of
samples, `python -m benchmarks.diagnosis`.

One engine on the default model, one run with a replay buffer in its folder; 20 queries × 256 samples by the sampler
itself, then the whole diagnosis: those samples again, the base model's, the buffer's best with their exact log q (which
takes loading the learner's model), Pareto smoothing, bounds and verdicts, and the file that is written.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from actors.engine import LoadedAdapter
from actors.sampler import TrajectorySampler
from benchmarks.made_run import untrained_run
from benchmarks.measure import Result, arguments, at_most, report
from buffer.connection import Keys, connect
from buffer.embedded import EmbeddedRedis
from buffer.replay import ReplayBuffer
from common.tasks import SampleRequest
from deploy.sampler.diagnosed_run import subject_of
from deploy.sampler.diagnosis import KNOWN, TRAINED, diagnose
from deploy.sampler.finished_run import FinishedRun

QUERIES, SAMPLES, TOKENS, LIMIT = 20, 256, 24, 1.2
PROMPT = "Once upon a time there was a fox who lived at the edge of the forest, and every morning it"


def make_run(home: Path, n: int) -> FinishedRun:
    """A run as training leaves it, its adapter untrained."""
    given, data = home / "given.yaml", {"train_path": range(1), "test_path": range(1, n + 1)}
    for name, numbers in data.items():
        lines = [json.dumps({"x": f"{PROMPT} {i}", "y": " and so"}) for i in numbers]
        (home / f"{name}.jsonl").write_text("\n".join(lines))
    paths = ", ".join(f"{name}: {home}/{name}.jsonl" for name in data)
    task = f"{{name: jsonl, {paths}, prompt: '{{x}}', target: '{{y}}', min_len: 8, max_len: {TOKENS}}}"
    given.write_text(f"task: {task}\nactor: {{max_model_len: 128}}\n")
    return untrained_run(given, home / "runs", "diagnosed")


def fill_buffer(run: FinishedRun, sampler: TrajectorySampler, adapter: LoadedAdapter) -> None:
    """Twice as many rationales of each query as a diagnosis reads; the engine is warm after that."""
    queries, limit = run.task.queries("test"), run.config.actor.max_in_flight
    drawn = sampler.collect(queries, SampleRequest(TRAINED, True, 1.0, 2 * KNOWN), adapter, limit)
    with EmbeddedRedis(run.folder / "redis") as server:
        client = connect(run.config.redis, server.url)
        buffer = ReplayBuffer.of(run.config, client, Keys(run.config.redis_name))
        buffer.open()
        buffer.put_queries(queries)
        buffer.push([item for group in drawn.values() for item in group])
        client.close()


def seconds(work: Callable[[], object]) -> float:
    """What it takes, once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure in turns and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of each, minutes on a CPU (default: 1)")
    parser.add_argument("--queries", type=int, default=QUERIES, help=f"of each round (default: {QUERIES})")
    options = parser.parse_args()
    alone, whole = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as home:
        run = make_run(Path(home), options.queries)
        queries, limit = run.task.queries("test"), run.config.actor.max_in_flight
        sampler, adapter = run.sampler()
        fill_buffer(run, sampler, adapter)
        request = SampleRequest(TRAINED, True, 1.0, SAMPLES)
        for _ in range(options.rounds):
            alone.append(seconds(lambda: sampler.collect(queries, request, adapter, limit)))
            subject = subject_of(run, queries, lambda: (sampler, adapter))
            whole.append(seconds(lambda subject=subject: diagnose(subject, SAMPLES).save(run.folder)))  # type: ignore[misc]
        sampler.close()
        sampler.policy.close()
    ratio = statistics.median(pair[1] / pair[0] for pair in zip(alone, whole, strict=True))
    report(
        f"{options.queries} queries × {SAMPLES} samples of up to {TOKENS} tokens",
        [
            Result("generating and scoring alone", statistics.median(alone), "s"),
            Result("the whole diagnosis", statistics.median(whole), "s"),
            at_most("diagnosis / generating and scoring", ratio, "x", LIMIT),
        ],
        options.json,
    )


if __name__ == "__main__":
    main()
