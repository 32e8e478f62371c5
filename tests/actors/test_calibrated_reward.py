"""A reward with the calibrated p(Y|XZ⊤), from rows to trajectories, held against transformers in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.reference import ReferenceScorer
from actors.sampler import TrajectorySampler
from common.metrics import ActorMetrics, new_registry
from common.tasks import TASKS, SampleRequest, make_task
from common.tokens import load_codec
from common.trajectory import Trajectory
from tests.actors.test_own_reward import QuickEngine

TEXTS = {1: (6, 2), 2: (4, 2)}
"""Behind the row's own prompt: two targets at each scored state."""
ROWS = [{"x": "7", "z": "1 2 3", "y": "4"}, {"x": "6", "z": "3", "y": "5"}]


@pytest.mark.parametrize("reward", [True, False])
@pytest.mark.parametrize("every", [1, 2])
def test_stored_components_are_those_of_the_model_divided_by_the_content_free_ones(
    tmp_path: Path, digit_model: Path, reward: bool, every: int
) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = TASKS["jsonl"].Config.model_validate(
        {
            "name": "jsonl",
            "train_path": str(tmp_path / "rows.jsonl"),
            "prompt": "{x} :",
            "target": " {y}",
            "choices": [" 4", " 5"],
            "rationale": "{z}",
            "min_len": 1,
            "max_len": 4,
            "allowed_characters": "[0-9]",
            "calibrate": "contextual",
            "calibrate_reward": reward,
            "content_free": "0",
            "misleading_penalty": 3.0,
        }
    )
    task = make_task(config, load_codec(str(digit_model)))
    engine: Any = QuickEngine([])
    scorer = ReferenceScorer(str(digit_model), "float32", task.action_space.terminator_id, torch.device("cpu"))
    sampler = TrajectorySampler(task, engine, scorer, ActorMetrics(new_registry()), reward_every=every)
    request = SampleRequest("given", adapter=False, temperature=1.0, n=1, given=True, every_state=True)
    found = sampler.collect(task.queries("train"), request, None, 1)
    # Two texts behind the content-free one, read once for both queries.
    assert sampler.metrics.scored_texts._value.get() == 2 + sum(TEXTS[every])
    model = AutoModelForCausalLM.from_pretrained(digit_model).double()

    stop = task.action_space.terminator_id

    def log_p(ids: list[int], target: list[int]) -> float:
        with torch.no_grad():
            table = model(torch.tensor([[*ids, *target]])).logits[0].log_softmax(-1)
        return sum(float(table[len(ids) - 1 + i, token]) for i, token in enumerate(target))

    for query in task.queries("train"):
        (item,) = found[query.id]
        targets = [query.target_ids.tolist(), *(ids.tolist() for ids in query.alternatives)]
        content_free = [*task.codec.encode_prompt("0 :"), *task.codec.encode(" 0"), stop]
        k = len(item.action_ids)
        scored = {*range(1, k + 1, every), k}
        for t in range(1, k + 1):
            read = [*query.prompt_ids.tolist(), *item.action_ids[:t].tolist(), stop]
            raw = np.array([log_p(read, target) for target in targets])
            free = np.array([log_p(content_free, target) for target in targets])
            expected = raw - free + free.min() if reward else raw
            if t in scored:
                assert item.log_likelihood[t] == pytest.approx(expected[0], abs=1e-4)
                assert item.log_constraint[t] == (-3.0 if expected[1] > expected[0] else 0.0)
            else:
                assert np.isnan([item.log_likelihood[t], item.log_constraint[t]]).all()
        np.testing.assert_allclose(item.log_choices, [*raw, *free], atol=1e-4)
        assert Trajectory.from_bytes(item.to_bytes()).log_choices.tolist() == item.log_choices.tolist()
