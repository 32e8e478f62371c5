"""The whole system against the loop that users would otherwise write (`benchmarks/synchronous.py`), on this machine's
CPUs, one after the other: `python -m benchmarks.whole_system`. Other work beside it spoils it.

Trained trajectories a second on `continuation` and `subjectivity`, each as often as a step used it (the loop, which is
on-policy, uses each once), and how long `rng` takes to a total variation of 0.08, each with the same configuration,
model, precision and loss. The system's figures are of its own metrics.jsonl once it is warm; its start, which the loop
has hardly any of, is told beside them.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Result, arguments, at_least, report
from benchmarks.synchronous import SynchronousLoop
from common.config_loading import load_config
from common.devices import available_cores
from common.tasks import make_task
from common.tokens import codec_of
from deploy.comparison import compare
from deploy.run.checks import prepare

WARM_STEPS, LOOP_WARM_STEPS = 10, 1
CLOSE, EXACT_EVERY = 0.08, 5
RNG_STEPS = 150
STORIES = Path(compare.__file__).parent / "data" / "stories_train.csv"
BATCH = "learner: {queries_per_step: 4, trajectories_per_query: 8, lr: 5.0e-4, sync_every: 5, steps: STEPS}\n"
CONFIGURATIONS = {
    "continuation": "task: {name: continuation, train_path: HOME/continuation.txt, test_size: 8, max_len: 20}\n"
    + BATCH,
    "subjectivity": "task: {name: subjectivity, train_path: HOME/reviews.jsonl, test_path: HOME/reviews.jsonl}\n"
    + BATCH,
    "rng": "task: {name: rng}\nactor: {samples_per_query: 16}\n"
    f"learner: {{queries_per_step: 1, trajectories_per_query: 32, lr: 3.0e-3, lr_schedule: linear, sync_every: 5,"
    f" steps: STEPS, evaluate_every: {EXACT_EVERY}}}\n",
}


@dataclass(frozen=True)
class Speed:
    """What was trained on, in how long."""

    trajectories: int
    seconds: float
    whole_s: float
    """With the start."""
    new: int
    """Trajectories that were sampled meanwhile."""
    close_after_s: float | None = None
    """Of training, to the wanted total variation."""

    @property
    def a_second(self) -> float:
        return self.trajectories / self.seconds


def write_data(home: Path) -> None:
    """Sentences of stories, which reviews are here as well, and how they begin."""
    with STORIES.open(encoding="utf-8") as file:
        stories = list(csv.DictReader(file))
    sentences = [row[f"sentence{i}"] for row in stories for i in (1, 2, 3)][:120]
    begun = [" ".join(sentence.split()[:4]) for sentence in sentences]
    (home / "continuation.txt").write_text("\n".join(dict.fromkeys(begun)))
    labels = cycle(["objective", "subjective"])
    rows = [{"text": text, "label_text": next(labels)} for text in sentences]
    (home / "reviews.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def write_given(home: Path, name: str, steps: int) -> Path:
    """A configuration and its data."""
    write_data(home)
    given = home / f"{name}.yaml"
    given.write_text(CONFIGURATIONS[name].replace("HOME", str(home)).replace("STEPS", str(steps)))
    return given


def train(given: Path, home: Path, *more: str) -> list[dict[str, Any]]:
    """`amortis train` as a user starts it, without the evaluation at the end; its metrics.jsonl."""
    options = ["--run.folder", str(home / "runs"), "--run.name", given.stem, "--run.evaluate_samples", "false", *more]
    command = [sys.executable, "-m", "deploy.cli.main", "train", str(given), "--json", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = (home / "runs" / given.stem / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def steps_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of all lines those that are a training step's."""
    return [row for row in rows if "step_s" in row]


def of_system(given: Path, home: Path) -> Speed:
    """The whole system's."""
    begun = time.monotonic()
    steps = steps_of(train(given, home))
    whole_s = time.monotonic() - begun
    timed = steps[WARM_STEPS:]
    seconds = timed[-1]["elapsed_s"] - steps[WARM_STEPS - 1]["elapsed_s"]
    begun_at = steps[0]["time"] - steps[0]["step_s"]
    close = [row["time"] - begun_at for row in steps if row.get("total_variation", 1.0) <= CLOSE]
    new = timed[-1]["trajectories_pushed"] - steps[WARM_STEPS - 1]["trajectories_pushed"]
    return Speed(sum(row["trajectories"] for row in timed), seconds, whole_s, new, min(close, default=None))


def of_loop(given: Path, steps: int) -> Speed:
    """The loop on all cores; the exact figures that it is judged by are no part of its time."""
    torch.set_num_threads(available_cores())
    begun = time.monotonic()
    config = prepare(load_config(given, []))
    task = make_task(config.task, codec_of(config.model), config.actor.max_model_len)
    loop, order = SynchronousLoop(config, task), cycle(task.queries("train"))
    exact, trained, seconds, close = loop.policy(), 0, 0.0, None
    for number in range(steps):
        started = time.monotonic()
        n = loop.step(list(islice(order, config.learner.queries_per_step)), number)
        taken_s = time.monotonic() - started
        if number >= LOOP_WARM_STEPS:
            trained, seconds = trained + n, seconds + taken_s
        due = given.stem == "rng" and (number + 1) % EXACT_EVERY == 0
        if due and task.evaluate_policy(exact)["total_variation"] <= CLOSE:
            close = seconds
            break
    return Speed(trained, seconds, time.monotonic() - begun, trained, close)


def by_trajectories(home: Path, name: str, steps: int, loop_steps: int) -> list[Result]:
    """Trained trajectories a second of both."""
    given = write_given(home, name, steps)
    loop, system = of_loop(given, loop_steps), of_system(given, home)
    return [
        Result(f"{name}: the loop", loop.a_second, "trained/s"),
        Result(f"{name}: amortis", system.a_second, "trained/s"),
        at_least(f"{name}: amortis / the loop", system.a_second / loop.a_second, "x", 5.0),
        Result(f"{name}: amortis, new ones", system.new / system.seconds, "pushed/s"),
        Result(f"{name}: amortis, all but its training", system.whole_s - system.seconds, "s"),
    ]


def by_closeness(home: Path) -> list[Result]:
    """How long both train on `rng`."""
    given = write_given(home, "rng", RNG_STEPS)
    loop, system = of_loop(given, RNG_STEPS), of_system(given, home)
    found = [
        Result(f"rng to total variation {CLOSE}: the loop", loop.close_after_s or float("nan"), "s"),
        Result(f"rng to total variation {CLOSE}: amortis", system.close_after_s or float("nan"), "s"),
    ]
    if loop.close_after_s and system.close_after_s:
        found.append(at_least("rng: the loop / amortis", loop.close_after_s / system.close_after_s, "x", 3.0))
    return found


def main(tasks: Sequence[str] = tuple(CONFIGURATIONS)) -> None:
    """Measure one after the other and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks, help="of these alone (default: all)")
    parser.add_argument("--steps", type=int, default=50, help="the system's, continuation and subjectivity")
    parser.add_argument("--loop-steps", type=int, default=6, help="the loop's, which are alike")
    options = parser.parse_args()
    results = list[Result]()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.tasks:
            home = Path(folder)
            of_rng = name == "rng"
            results += by_closeness(home) if of_rng else by_trajectories(home, name, options.steps, options.loop_steps)
    report(f"amortis and a synchronous loop, {available_cores()} CPU cores", results, options.json)


if __name__ == "__main__":
    main()
