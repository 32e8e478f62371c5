"""A plain script that trains and uses a sampler by `import amortis`, held against the enumerated posterior."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from learner.policy import load_base_model
from tests import chance
from tests.integration.conftest import ROOT, TIMEOUT_S
from tests.integration.test_enumerated import every_sequence, log_rewards, total_variation, write
from tests.tiny import VOCABULARY

pytestmark = pytest.mark.integration

N = 2_000
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
PAGE_BEGINS = "the page's examples begin"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
UNRELIABLE = "allow_unreliable=True, "
SCRIPT = (
    f"N = {N}"
    + """
import dataclasses, json, sys
import amortis

states = []
trained = amortis.train(json.load(open("config.json")), watch=lambda state: states.append(state.phase))
with trained.load() as sampler:
    samples = sampler.sample("number :", n=32)
    found = {
        "folder": str(trained.folder),
        "summary": trained.summary,
        "phases": sorted(set(states)),
        "samples": [dataclasses.asdict(sample) for sample in samples],
        "log_q": sampler.log_prob("number :", [sample.text for sample in samples]).tolist(),
        "several": [[s.text for s in group] for group in sampler.sample(["number :", "8 :", "number :"], n=4)],
        "posterior": dataclasses.asdict(sampler.posterior("number :", n=N, target="4")),
        "of_row": dataclasses.asdict(sampler.posterior(row={"a": "8", "b": "4", "z": "1 3."}, n=4)),
        "targets": dataclasses.asdict(
            sampler.posterior("number :", n=N, targets=["7", "4"], resample=100, allow_unreliable=True)
        ),
        "tempered": [sample.log_q for sample in sampler.sample("number :", n=4, temperature=0.5)],
        "evaluation": sampler.evaluate(),
    }
json.dump(found, open("found.json", "w"))

"""
)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory, digit_model: Path) -> dict[str, Any]:
    """What the script found."""
    home = tmp_path_factory.mktemp("script")
    learner = {"steps": 10}
    path = write(home, digit_model, tool=False, learner=learner, seeds={"data": False})
    (home / "config.json").write_text(json.dumps(yaml.safe_load(path.read_text())))
    # In the same process: a run can be opened again, and another engine started when the first is closed.
    # After so few steps it is chance whether an estimate means anything.
    examples = "".join(EXAMPLES[1:]).replace("runs/mine", "runs/tiny").replace("targets=", UNRELIABLE + "targets=")
    (home / "script.py").write_text(f"{SCRIPT}print({PAGE_BEGINS!r})\n{examples}")
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said, page = done.stdout.split(PAGE_BEGINS)
    return {**json.loads((home / "found.json").read_text()), "said": said, "page": page, "home": home}


def key(sample: dict[str, Any]) -> tuple[int, ...]:
    return tuple(sample["token_ids"])


def test_a_run_from_a_dictionary_leaves_what_the_command_leaves(used: dict[str, Any]) -> None:
    folder = Path(used["folder"])
    assert folder == used["home"] / "runs" / "tiny" and (folder / "adapter" / "adapter_config.json").is_file()
    assert used["summary"] == json.loads((folder / "summary.json").read_text())
    assert used["summary"]["interrupted"] is False and {"starting actors", "done"} <= set(used["phases"])
    assert used["evaluation"]["samplers"].keys() == {"base", "trained"}
    # Its results are its return value: nothing is said on standard output.
    assert "step" not in used["said"]


def test_what_was_drawn_has_the_exact_policy_s_probability(used: dict[str, Any]) -> None:
    drawn = used["samples"]
    assert len(drawn) == 32 and {len(key(item)) for item in drawn} <= {2, 3}
    np.testing.assert_allclose([item["log_q"] for item in drawn], used["log_q"], atol=1e-3)
    assert all(item["text"] == "".join(VOCABULARY[token] for token in item["token_ids"]) for item in drawn)
    assert [len(group) for group in used["several"]] == [4, 4, 4]
    assert len(used["tempered"]) == 4


def test_weighted_draws_are_the_enumerated_posterior(used: dict[str, Any], digit_model: Path) -> None:
    import amortis

    base = load_base_model(str(digit_model), "float32")
    with amortis.load(used["folder"]) as sampler:
        query = sampler.run.query("number :", target="4")
        log_q = sampler.log_prob("number :", every_sequence())
    log_r, found = log_rewards(base, query, tool=False), used["posterior"]
    exact, q = np.exp(log_r - np.logaddexp.reduce(log_r)), np.exp(log_q)
    # It was trained for "7": weights have to make good that the target is another.
    assert total_variation(q, exact) > 0.2
    places = {z: i for i, z in enumerate(every_sequence())}
    at = np.array([places[key(item)] for item in found["samples"]])
    counts = np.bincount(at, minlength=len(places)).astype(np.float64)
    assert chance.follow(counts, q)
    of_draws = (log_r - log_q)[at]
    expected = np.exp(of_draws - np.logaddexp.reduce(of_draws))
    np.testing.assert_allclose([item["weight"] for item in found["samples"]], expected, rtol=0.01)
    np.testing.assert_allclose([item["log_r"] for item in found["samples"]], log_r[at], atol=1e-3)
    assert found["effective_sample_size"] == pytest.approx(1 / np.square(expected).sum(), rel=0.01)
    assert found["candidates"] == N and found["prompt"] == "number:"
    # What all of it is for.
    simulated, weights = chance.draws(q, N), np.exp(log_r - log_q)
    distances = chance.total_variation(chance.weighted(simulated, weights), exact)
    estimated = chance.weighted(counts, weights)
    assert chance.Limits.of(distances).hold(total_variation(estimated, exact))
    assert chance.Limits.of(np.log(simulated @ weights / N)).hold(found["log_z"])


def test_probabilities_of_targets_are_the_enumerated_ones(used: dict[str, Any], digit_model: Path) -> None:
    import amortis

    base = load_base_model(str(digit_model), "float32")
    found = used["targets"]
    assert len(found["samples"]) == 100 and {item["weight"] for item in found["samples"]} == {0.01}
    with amortis.load(used["folder"]) as sampler:
        q = np.exp(sampler.log_prob("number :", every_sequence()))
        log_prior = log_rewards(base, sampler.run.query("number :"), tool=False)
        simulated = chance.weighted(chance.draws(q, N), np.exp(log_prior) / q)
        for text, item in zip(["7", "4"], found["targets"], strict=True):
            log_joint = log_rewards(base, sampler.run.query("number :", target=text), tool=False)
            limits, exact = chance.Limits.of(simulated @ np.exp(log_joint - log_prior)), np.exp(log_joint).sum()
            assert limits.hold(exact / np.exp(log_prior).sum())
            assert item["text"] == text and limits.hold(item["probability"])


def test_the_page_s_examples_run(used: dict[str, Any]) -> None:
    # The training's settings are another test's: here there is a run already.
    _, opening, *others = EXAMPLES
    assert 'amortis.load("runs/mine")' in opening and len(others) == 7
    said = used["page"]
    assert len(re.findall(r"^\S* -\d+\.\d+ -\d+\.\d+$", said, re.MULTILINE)) >= 8, said
    assert re.search(r"^ left 0\.\d+\n right 0\.\d+$|^ left \d\S+\n right \d\S+$", said, re.MULTILINE), said
    for name in ("mine-adapter", "mine-merged"):
        assert (used["home"] / name / "amortis.json").is_file()
