"""All benchmarks, one after the other, each in a process of its own: `python -m benchmarks [--json]`."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.measure import arguments

NAMES = (
    "buffer",
    "scaling",
    "learner_step",
    "learner_memory",
    "whole_system",
    "scoring",
    "cpu_lora",
    "masking",
    "evaluation_threads",
    "serving",
    "diagnosis",
    "command_line",
)


def main() -> int:
    """Run them; the exit status is 1 where one could not be run. Targets that are missed are no failure."""
    options = arguments(__doc__ or "").parse_args()
    found, failed = [], []
    for name in NAMES:
        print(f"benchmarks.{name}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *(["--json"] if options.json else [])]
        result = subprocess.run(command, stdout=subprocess.PIPE if options.json else None, text=True, check=False)
        if result.returncode:
            failed.append(name)
        elif options.json:
            found += [{**row, "name": f"{name}: {row['name']}"} for row in json.loads(result.stdout)]
    if options.json:
        json.dump(found, sys.stdout, indent=1)
        print()
    for name in failed:
        print(f"benchmarks.{name} could not be run", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
