"""Weights & Biases: which run there is which run here, and who may write to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import wandb

from common.config import RunConfig, TrackingSection
from common.errors import UserError
from learner.tracking import WeightsAndBiases, check_tracking


def run_id(folder: Path, name: str) -> str:
    """What a run in the folder is known by there."""
    settings = {"task": {"name": "rng"}, "run": {"name": name}, "tracking": {"wandb": "offline"}}
    folder.mkdir(exist_ok=True)
    sink = WeightsAndBiases(RunConfig.model_validate(settings), folder)
    try:
        return str(sink._run.id)
    finally:
        sink.close()


def test_a_run_is_the_same_there_when_it_is_resumed_and_another_one_of_its_name_is_not(tmp_path: Path) -> None:
    first = run_id(tmp_path / "a", "e1")
    assert first.startswith("e1-")
    assert run_id(tmp_path / "a", "e1") == first != run_id(tmp_path / "b", "e1")


def test_writing_online_without_a_key_is_refused_before_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    wandb.teardown()
    with pytest.raises(UserError, match=r"tracking\.wandb = 'online': no key of yours is known here; run"):
        check_tracking(TrackingSection(wandb="online"))
    check_tracking(TrackingSection(wandb="offline"))
