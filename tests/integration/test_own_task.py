"""The task of a user's own that the documentation shows, from its file to its figures, held against its posterior."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from deploy.sampler.finished_run import FinishedRun
from learner.policy import LoraPolicy, load_base_model
from tests.integration.conftest import ROOT, Join, amortis
from tests.tiny import VOCABULARY

pytestmark = pytest.mark.integration

EXAMPLE = ROOT / "docs" / "examples" / "even_task.py"
DIGITS, STOP, MAX_LEN = [VOCABULARY.index(digit) for digit in "0123456789"], VOCABULARY.index("."), 2
EVERY = [z for k in range(1, MAX_LEN + 1) for z in itertools.product(DIGITS, repeat=k)]
CONFIG = {
    # As a user writes it: beside the file, without a name.
    "task": {"module": "mine.py", "prompt": "number :", "max_len": MAX_LEN},
    "run": {"name": "own"},
    "model": {"lora": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]}},
    "learner": {
        "steps": 300,
        "queries_per_step": 1,
        "trajectories_per_query": 24,
        "lr": 0.005,
        "lr_schedule": "linear",
        "warmup_steps": 0,
        "sync_every": 10,
    },
    "buffer": {"min_size": 32, "samples_per_insert": 2.0},
    "actor": {"enforce_eager": True, "max_model_len": 64, "max_in_flight": 16, "push_every_s": 0.1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digit_model: Path, join: Join) -> Path:
    """A user's folder with the file, a configuration, and the run that was trained with them."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(EXAMPLE, folder / "mine.py")
    (folder / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    options = ["--model.name", str(digit_model), "--task.penalty", "5", *join()]
    amortis("train", "mine.yaml", *options, cwd=folder)
    return folder


def test_a_task_outside_of_the_repository_reaches_its_enumerated_posterior(folder: Path, digit_model: Path) -> None:
    run = FinishedRun(folder / "runs" / "own")
    assert run.config.task.model_dump()["penalty"] == 5
    (query,) = run.task.queries("test")
    prompt, model = query.prompt_ids.tolist(), load_base_model(str(digit_model), "float32")
    log_r = []
    for z in EVERY:
        ids = [*prompt, *z, STOP]
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        odd = int(VOCABULARY[z[-1]]) % 2
        log_r.append(sum(float(log_p[i - 1, ids[i]]) for i in range(len(prompt), len(ids))) - 5 * odd)
    target = np.exp(np.array(log_r) - np.logaddexp.reduce(log_r))
    section = run.config.model.lora
    untrained = LoraPolicy.load(
        str(digit_model), section, run.task.action_space, dtype="float32", device=torch.device("cpu")
    )
    before, after = (np.exp(policy.log_prob(query, EVERY)) for policy in (untrained, run.policy()))
    assert after.sum() == pytest.approx(1)
    assert 0.5 * np.abs(target - before).sum() > 0.15, "solved from the start"
    assert 0.5 * np.abs(target - after).sum() < 0.05
