"""`amortis compare` on real runs: what is done is kept, what was interrupted goes on."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.integration.conftest import ROOT, TIMEOUT_S, amortis, command, write_config

pytestmark = pytest.mark.integration


def steps(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def test_a_comparison_goes_on_where_it_was_interrupted(tmp_path: Path, digit_model: Path, joined: list[str]) -> None:
    base = yaml.safe_load(
        write_config(tmp_path, digit_model, steps=60, checkpoint_every=5, evaluate_every=0).read_text()
    )
    comparison = {
        "base": base,
        "methods": {
            "prompting": {"learner": {"objective": "prompting"}},
            "subtb": {},
            "tb": {"learner": {"objective": "tb"}, "run": {"evaluate_base": False}},
            "smc": {"learner": {"objective": "smc"}, "inference": {"particles": 16}},
        },
        "seeds": [0],
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(comparison, sort_keys=False))
    folder = tmp_path / "result"
    arguments = ["compare", str(path), "--folder", str(folder), *joined]
    process = subprocess.Popen(command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + TIMEOUT_S
    while not any(10 <= len(steps(run)) < 60 for run in folder.glob("cells/subtb-*-seed0")):
        assert process.poll() is None and time.monotonic() < deadline, "the first training never began"
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130 and "goes on from here" in errors.decode()
    table = json.loads((folder / "table.json").read_text())
    assert {entry["method"] for entry in table["entries"]} == {"prompting"}
    (untrained,) = folder.glob("cells/prompting-*-seed0/summary.json")
    # Its evaluation takes no samples of the base model, and for a diagnosis alone no engine is started.
    assert "verdict" not in json.loads(untrained.read_text())

    printed = amortis(*arguments, "--parallel", "2")
    assert "prompting" not in [line.split("-")[0] for line in printed.splitlines() if line.startswith("cell")]
    (run,) = folder.glob("cells/subtb-*-seed0/")
    done = steps(run)
    # Gone on from the last checkpoint: no step before it was made again.
    assert done[-1] == 60 and done.count(1) == 1 and done.count(10) == 1
    assert len(list((run / "checkpoints").iterdir())) == 1, "it is done: nothing else is gone on from"
    summaries = [json.loads(path.read_text()) for path in sorted(folder.glob("cells/*tb-*-seed0/summary.json"))]
    assert [("total_variation_before" in each) for each in summaries] == [True, False], "subtb, tb"
    table = json.loads((folder / "table.json").read_text())
    distance = {e["method"]: e["mean"] for e in table["entries"] if e["figure"] == "total_variation"}
    assert set(distance) == {"prompting", "subtb", "tb"} and distance["subtb"] < distance["prompting"]
    # What training cost, over what a sample saves against drawing from the posterior without it.
    found = {(e["method"], e["figure"]): e["mean"] for e in table["entries"]}
    assert found["smc", "valid_fraction_sampled"] > 0.9
    for pay_off in table["pay_offs"]:
        method = pay_off["trained"]
        assert pay_off["untrained"] == "smc"
        trained, actors = found[method, "tokens_trained"], found[method, "tokens_of_actors"]
        # A step reads the prompt and up to 16 rationales; actors drew what they pushed, and scored what was new.
        assert trained >= 60 * 10 and actors > found[method, "trajectories_pushed"]
        assert found[method, "training_tokens"] == 3 * trained + actors
        saved = found["smc", "tokens_per_sample"] - found[method, "tokens_per_sample"] / found[method, "ess"]
        expected = pytest.approx(found[method, "training_tokens"] / saved) if saved > 0 else None
        assert pay_off["samples"] == expected and pay_off["ess"] == found[method, "ess"]
    assert [pay_off["trained"] for pay_off in table["pay_offs"]] == ["subtb", "tb"]
    assert re.search(r"subtb (pays off against smc from|never pays off against smc)", printed)
    # All is done: the same command only shows the table.
    assert "cell" not in amortis(*arguments)

    # Of what is left of a finished cell it is evaluated anew, and not trained.
    base["task"]["evaluation_samples"] = 32
    path.write_text(yaml.safe_dump(comparison, sort_keys=False))
    amortis(*arguments, "--methods", "subtb")
    table = json.loads((folder / "table.json").read_text())
    drawn = {entry["method"]: entry["mean"] for entry in table["entries"] if entry["figure"] == "samples"}
    assert drawn == {"subtb": 32} and steps(run) == done
