"""The runs that expectation maximisation is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config_loading import load_config
from deploy.em import m_step


@pytest.mark.parametrize("weighting", ["reward", "uniform"])
def test_an_m_step_fine_tunes_on_all_that_was_drawn_weighted_as_asked(tmp_path: Path, weighting: str) -> None:
    drawn = tmp_path / "samples.jsonl"
    drawn.write_text("{}\n" * 9)
    overrides = [f"--run.folder={tmp_path}", "--run.name=whole", f"--em.weighting={weighting}"]
    overrides += ["--em.m_steps=7", "--em.m_lr=0.002"]
    config = load_config(Path(__file__).parents[2] / "deploy" / "configs" / "demo.yaml", overrides)
    step = m_step(config, 2, None, drawn)
    assert step.run.name == "m2" and step.seeds.file == drawn
    assert (step.learner.objective, step.learner.steps, step.learner.lr) == ("sft", 7, 0.002)
    assert step.buffer.replay_priority == weighting
    assert step.buffer.fresh == 0 and step.buffer.min_size == 9 and step.buffer.replacement
