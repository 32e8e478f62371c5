"""How soon the command line answers: `python -m benchmarks.command_line`.

`amortis --help`, and `amortis train --dry-run` with the default model, on the task `rng` and on a task of rows, in
turns, each a process of its own. The first round fills the file system's cache and isn't counted. Beside them what no
check of a model can do without, in a process of its own: transformers loads its configuration and its tokenizer.
Then `amortis train` to its first learner step, where the engine was compiled before.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import Result, arguments, at_most, report
from benchmarks.whole_system import steps_of, train
from common.default_model import ensure_default_model

HELP_S, DRY_RUN_S = 0.5, 5.0
FIRST_STEP_S, FIRST_STEP_OF_GPU_S = 45.0, 30.0
BARE_LOAD = """
import sys
from transformers import AutoConfig, AutoTokenizer
AutoConfig.from_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained(sys.argv[1])
"""
ROWS = 200
CONFIGS = {
    "rng": "task: {name: rng}\n",
    "rows": "task: {name: continuation, train_path: rows.txt}\n",
}


def seconds(folder: Path, *words: str) -> float:
    """Of one call of Python, which must succeed."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def seconds_to_first_step(given: Path, home: Path) -> float:
    """Of `amortis train`, from the command on."""
    begun = time.time()
    first = steps_of(train(given, home, "--learner.steps", "1", "--run.overwrite", "true"))[0]
    return float(first["time"]) - begun


def main() -> None:
    """Measure and report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each (default: 5)")
    parser.add_argument("--starts", type=int, default=2, help="rounds of training's start (default: 2)")
    options = parser.parse_args()
    model = ensure_default_model()
    amortis, bare = ["-m", "deploy.cli.main"], "configuration and tokenizer by transformers"
    dry_runs = {f"--dry-run, {name}": [*amortis, "train", f"{name}.yaml", "--dry-run"] for name in CONFIGS}
    commands = {"--help": [*amortis, "--help"], **dry_runs, bare: ["-c", BARE_LOAD, str(model)]}
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "rows.txt").write_text("".join(f"The traveller came to house number {i}\n" for i in range(ROWS)))
        for name, text in CONFIGS.items():
            (folder / f"{name}.yaml").write_text(text)
        for i in range(options.rounds + 1):
            for name, words in commands.items():
                taken = seconds(folder, *words)
                if i:
                    times[name].append(taken)
        # The first compiles.
        _, *starts = (seconds_to_first_step(folder / "rng.yaml", folder) for _ in range(options.starts + 1))
    taken_s = {name: statistics.median(measured) for name, measured in times.items()}
    results = [
        at_most("--help", taken_s["--help"], "s", HELP_S),
        *(at_most(name, taken_s[name], "s", DRY_RUN_S) for name in dry_runs),
        Result(bare, taken_s[bare], "s"),
        at_most(
            "train, to its first step",
            statistics.median(starts),
            "s",
            FIRST_STEP_OF_GPU_S if torch.cuda.is_available() else FIRST_STEP_S,
        ),
    ]
    report(f"Seconds of commands, medians of {options.rounds} and {options.starts} rounds", results, options.json)


if __name__ == "__main__":
    main()
