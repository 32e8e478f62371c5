"""What a run without training evaluates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.config import RunConfig
from common.devices import resolve_devices
from deploy.run.prompting import run_prompting


def test_without_samples_the_exact_figures_need_no_engine(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"a": "1", "b": "2"}\n{"a": "2", "b": "3"}\n')
    config = RunConfig.model_validate(
        {
            "task": {
                "name": "jsonl",
                "train_path": str(rows),
                "test_path": [str(rows)],
                "prompt": "number {a} :",
                "rationale": "{b}.",
                "choices": ["2.", "3."],
                "max_len": 1,
            },
            "model": {"name": str(digit_model)},
            "run": {"name": "base", "folder": str(tmp_path), "evaluate_samples": False},
            "learner": {"objective": "prompting"},
            "actor": {"max_model_len": 64},
        }
    )
    config = resolve_devices(config)
    config.run_folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr("deploy.run.prompting.make_sampler", lambda *_: pytest.fail("an engine was started"))
    summary = run_prompting(config)
    exact = json.loads((config.run_folder / "evaluation_after.json").read_text())["metrics"]
    assert summary["accuracy"] == exact["accuracy"] in (0.0, 0.5, 1.0)
    assert not (config.run_folder / "evaluation_samples.json").exists()
