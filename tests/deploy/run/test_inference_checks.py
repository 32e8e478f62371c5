"""A run that is to draw from its posterior without training is refused in seconds where it can't."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config import RunConfig
from common.config_loading import load_config
from common.errors import UserError
from common.tasks import make_task
from common.tokens import codec_of
from deploy.run.checks import prepare
from deploy.run.inference_checks import check_inference, log_bound


def config(folder: Path, model: Path, **settings: Any) -> RunConfig:
    (folder / "rows.jsonl").write_text("".join(json.dumps({"x": f"number {i}", "y": "3"}) + "\n" for i in range(4)))
    (folder / "mine.py").write_text("def score(prompts, texts, rows):\n    return [0.0 for _ in texts]\n")
    task = {
        "name": "jsonl",
        "train_path": str(folder / "rows.jsonl"),
        "prompt": "{x} :",
        "target": "{y}",
        "max_len": 4,
        "allowed_characters": "[0-9]",
    }
    given: dict[str, Any] = {
        "task": {**task, **settings.pop("task", {})},
        "model": {"name": str(model)},
        "actor": {"max_model_len": 64},
        "learner": {"objective": "rejection", **settings.pop("learner", {})},
        **settings,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(given))
    return load_config(path)


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({}, 0.0),
        ({"learner": {"reward": {"prior_weight": 2.0, "likelihood_weight": 0.5}}}, 0.0),
        ({"inference": {"constraint_bound": 3.0}, "task": {"reward": "mine.py:score"}}, 3.0),
        ({"inference": {"constraint_bound": 3.0}, "learner": {"reward": {"temperature": {"end": 0.5}}}}, 6.0),
        ({"task": {"name": "constrained", "keywords": ["3"]}}, 0.0),
    ],
)
def test_the_bound_of_rejection_follows_from_the_reward(
    tmp_path: Path, digit_model: Path, settings: dict[str, Any], bound: float
) -> None:
    found = config(tmp_path, digit_model, **settings)
    task = make_task(found.task, codec_of(found.model), 64)
    check_inference(found, task)
    assert log_bound(found, task) == bound


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"learner": {"reward": {"prior_weight": 0.5}}},
            r"learner.reward.prior_weight.*0.5.*no known bound.*smc",
        ),
        ({"learner": {"reward": {"temperature": {"end": 2.0}}}}, r"prior_weight.*below the temperature 2"),
        ({"task": {"terminator_in_text": False}}, r"task.terminator_in_text.*leaves the terminator out"),
        ({"task": {"reward": "mine.py:score"}}, r"inference.constraint_bound.*task.reward.*not known.*set it"),
        ({"reference": {"adapter": "."}}, r"reference.adapter.*proposes from the model without it"),
    ],
)
def test_rejection_without_a_known_bound_is_refused(
    tmp_path: Path, digit_model: Path, settings: dict[str, Any], message: str
) -> None:
    found = config(tmp_path, digit_model, **settings)
    task = make_task(found.task, codec_of(found.model), 64)
    with pytest.raises(UserError, match=message):
        check_inference(found, task)
    for objective in ("mcmc", "smc", "subtb"):
        other = found.learner.model_copy(update={"objective": objective})
        check_inference(found.model_copy(update={"learner": other}), task)


def test_the_checks_before_a_run_hold_them_too(tmp_path: Path, digit_model: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "task": {"name": "rng", "evaluation_samples": 0},
                "model": {"name": str(digit_model)},
                "run": {"folder": str(tmp_path / "runs")},
                "learner": {"objective": "smc"},
                "actor": {"max_model_len": 64},
            }
        )
    )
    with pytest.raises(UserError, match=r"learner.objective.*smc.*wants none.*evaluation_samples"):
        prepare(load_config(path))
    with pytest.raises(UserError, match=r"prior_weight.*no known bound"):
        prepare(load_config(path, ["--learner.objective", "rejection", "--task.evaluation_samples", "8"]))
    with pytest.raises(UserError, match=r"inference.proposals.*this run trains none.*leave it out"):
        prepare(load_config(path, ["--inference.proposals", "sampler", "--task.evaluation_samples", "8"]))
    with pytest.raises(UserError, match=r"em.iterations needs a sampler to train"):
        load_config(path, ["--em.iterations", "1"])
