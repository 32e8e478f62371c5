"""Whole runs with a reward function of the user's own: exact where it behaves, and to the end where it doesn't."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.tasks import SampleRequest
from deploy.sampler.finished_run import FinishedRun
from learner.policy import LoraPolicy, load_base_model
from tests.integration.conftest import Join, amortis, result_of
from tests.integration.test_enumerated import every_sequence, posterior, q_of, total_variation, write
from tests.tiny import VOCABULARY

pytestmark = pytest.mark.integration

REWARD = '''
"""Digits that a row wants are worth more, the fewer the better."""


def score(prompts, texts, rows):
    print("what is printed goes nowhere" * 100)
    assert all(prompt.replace(" ", "") == row["a"] + ":" for prompt, row in zip(prompts, rows))
    return [1.2 * text.count(str(row["wanted"])) - 0.5 * len(text) for text, row in zip(texts, rows)]
'''

# The model begins 7 of 100 texts with 13 and 8 with 32: among the hundreds that a run asks for both are sure to come.
HOSTILE = """
import os
import time


def score(prompts, texts, rows):
    if any(text.startswith("13") for text in texts):
        raise ValueError("I know no thirteens")
    if "222" in texts:
        time.sleep(600)
    if "333" in texts:
        os._exit(1)
    return [float("nan") if text.startswith("32") else 0.1 * len(text) for text in texts]
"""
WANTED = (2, 4)


def texts() -> list[str]:
    return ["".join(VOCABULARY[token] for token in z) for z in every_sequence()]


def own_values(folder: Path, row: dict[str, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The user's function, asked without amortis."""
    spec = importlib.util.spec_from_file_location("mine", folder / "mine.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    n = len(texts())
    return np.array(module.score([f"{row['a']} :"] * n, texts(), [row] * n))


def prepare(folder: Path, model: Path, source: str, **sections: Any) -> Path:
    """A run's configuration whose rows say which digit they want."""
    (folder / "mine.py").write_text(source)
    task = {"reward": {"function": str(folder / "mine.py:score"), "timeout_s": 1.0}, **sections.pop("task", {})}
    path = write(folder, model, tool=False, task=task, **sections)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "wanted": wanted}) for row, wanted in zip(rows, WANTED, strict=True)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return path


def test_the_sampler_reaches_the_posterior_with_the_user_s_own_reward(
    tmp_path: Path, digit_model: Path, join: Join
) -> None:
    path = prepare(tmp_path, digit_model, REWARD)
    amortis("train", str(path), *join())
    run = FinishedRun(tmp_path / "runs" / "tiny")
    base, policy = load_base_model(str(digit_model), "float32"), run.policy()
    untrained = LoraPolicy.load(
        str(digit_model), run.config.model.lora, run.task.action_space, dtype="float32", device=torch.device("cpu")
    )
    queries = run.task.queries("train")
    sampler, adapter = run.sampler()
    request = SampleRequest("drawn", adapter=True, temperature=1.0, n=16)
    drawn = sampler.collect(queries, request, adapter, 16)
    sampler.close()
    for query, wanted in zip(queries, WANTED, strict=True):
        assert query.row["wanted"] == wanted
        own = own_values(tmp_path, query.row)
        plain = posterior(base, query, tool=False)
        target = plain * np.exp(own)
        target /= target.sum()
        assert total_variation(target, plain) > 0.15, "the reward makes no difference"
        assert total_variation(target, q_of(untrained, query, tool=False)) > 0.15, "solved from the start"
        assert total_variation(target, q_of(policy, query, tool=False)) < 0.05
        # A finished run's samples carry it too.
        value = dict(zip(texts(), own.tolist(), strict=True))
        assert len(drawn[query.id]) == 16
        for item in drawn[query.id]:
            assert item.log_constraint[-1] == pytest.approx(value[run.codec.decode(item.action_ids)], abs=1e-5)


def test_a_run_goes_on_beside_texts_on_which_the_reward_raises_hangs_dies_or_is_nan(
    tmp_path: Path, digit_model: Path
) -> None:
    learner = {"objective": "vargrad", "steps": 40}
    path = prepare(tmp_path, digit_model, HOSTILE, learner=learner, task={"rationale": None}, seeds={"data": False})
    summary = json.loads(amortis("train", str(path), "--json"))
    assert summary["steps"] == 40 and summary["fault"] is None and summary["interrupted"] is False
    folder = tmp_path / "runs" / "tiny"
    set_aside = json.loads(amortis("buffer", "quarantine", str(folder), "-n", "1000", "--json"))
    assert summary["trajectories_set_aside"] >= 1
    reasons = {entry["reason"] for entry in set_aside}
    assert {reason.split(":")[0] for reason in reasons} >= {"task.reward raised", "task.reward unusable"}
    assert any("ValueError: I know no thirteens (mine.py, line 8)" in reason for reason in reasons), reasons
    logged = (folder / "logs" / "actor-0.log").read_text()
    assert "I know no thirteens" in logged and "returned NaN for a text" in logged
    # What could be valued was, and nothing else was trained on.
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["trajectories"] == 24 for line in lines)


def test_a_reward_that_never_works_ends_the_run_at_once_or_is_refused_before_it(
    tmp_path: Path, digit_model: Path
) -> None:
    path = prepare(tmp_path, digit_model, "def score(prompts, texts, rows): raise ValueError('not yet written')\n")
    found = result_of("train", str(path))
    assert found.returncode == 2 and "ValueError: not yet written (mine.py, line 1)" in found.stderr
    assert not (tmp_path / "runs").exists()


def test_a_run_whose_reward_stops_working_before_its_first_value_ends_with_its_message(
    tmp_path: Path, digit_model: Path, join: Join
) -> None:
    source = """
import pathlib


def score(prompts, texts, rows):
    # It works before the run, when it is tried.
    if pathlib.Path(__file__).with_name("runs").exists():
        raise ConnectionError("the judge is away")
    return [0.0] * len(texts)
"""
    path = prepare(tmp_path, digit_model, source)
    found = result_of("train", str(path), *join())
    assert found.returncode == 1, found.stderr[-2000:]
    assert "task.reward" in found.stderr and "gave no value for any of its first 20 texts" in found.stderr
    assert "ConnectionError: the judge is away (mine.py, line 8)" in found.stderr and "Traceback" not in found.stderr
    assert json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())["trajectories_pushed"] == 0
