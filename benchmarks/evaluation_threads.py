"""What an evaluation gains when the actor takes the learner's cores for it: `python -m benchmarks.evaluation_threads`.

One engine that was made with one thread, as an actor makes it; the same requests with one thread, then with all cores.
Not in turns: an actor changes once, when training is over. oneDNN keeps the threads of a product for the last 32 sizes
of batch, so that the sizes here vary as a task's do.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from actors.engine import Engine, LoadedAdapter
from actors.scoring import ScoreText
from benchmarks.cpu_lora import make_engine
from benchmarks.measure import Result, arguments, at_least, medians_ms, report
from common.devices import available_cores

TEXTS, IN_FLIGHT, LENGTHS = 60, 24, (10, 80)


def evaluate(engine: Engine, adapter: LoadedAdapter, seed: int) -> None:
    """Sample `TEXTS` texts after prompts of many lengths, and score one text of such a length for each."""
    generator = np.random.default_rng(seed)
    waiting, in_flight = TEXTS, 0
    while waiting or engine.busy:
        while waiting and in_flight + 2 <= IN_FLIGHT:
            prompt, text = (
                generator.integers(100, 40_000, size).tolist() for size in generator.integers(*LENGTHS, size=2)
            )
            engine.submit_sample(f"sample-{waiting}", prompt, 1.0, adapter)
            engine.submit_score(f"score-{waiting}", ScoreText(tuple(text), 1))
            waiting, in_flight = waiting - 1, in_flight + 2
        in_flight -= len(engine.step())


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default: 3)")
    options = parser.parse_args()
    cores = available_cores()
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        engine, adapter = make_engine(Path(folder))
        for threads in (1, cores):
            engine.use_threads(threads)
            times = medians_ms(options.rounds, work=lambda i: evaluate(engine, adapter, i))
            found[threads] = times["work"] / 1e3
    results = [Result(f"sampling and scoring: {threads} threads", taken, "s") for threads, taken in found.items()]
    results.append(at_least("one thread / all cores", found[1] / found[cores], "x", 1.2))
    report(f"An engine made with one thread, {cores} cores", results, options.json)


if __name__ == "__main__":
    main()
