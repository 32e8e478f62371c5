"""What an M step is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

import deploy.em
from common.config import RunConfig
from deploy.em import _m_step


@pytest.mark.parametrize(("learner", "threads"), [({}, 8), ({"threads": 3}, 3)])
def test_an_m_step_waits_for_all_samples_and_takes_every_core_then(
    learner: dict[str, int], threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy.em, "available_cores", lambda: 8)
    (tmp_path / "samples.jsonl").write_text("{}\n" * 5)
    settings = {"task": {"name": "rng"}, "run": {"name": "em", "folder": tmp_path}, "em": {"iterations": 1}}
    config = RunConfig.model_validate({**settings, "actor": {"count": 3}, "learner": learner})
    step = _m_step(config, 1, None, tmp_path / "samples.jsonl")
    assert (step.learner.objective, step.learner.threads, step.buffer.min_size) == ("sft", threads, 5)
