"""Checkpoints: complete or absent, nothing pickled, and a resumed curve that is the same curve."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.errors import UserError
from learner.checkpoint import checkpoints, load_checkpoint, optimizer_tensors, restore_optimizer, save_checkpoint
from learner.trainer import learning_rate_factor


def make_model() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def train(model: torch.nn.Linear, optimizer: torch.optim.AdamW, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        x = torch.randn(8, 4)
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_a_resumed_optimiser_continues_the_same_curve(tmp_path: Path) -> None:
    model, optimizer = make_model()
    train(model, optimizer, 5)
    tensors = {**{f"m.{k}": v for k, v in model.state_dict().items()}, "rng": torch.get_rng_state()}
    tensors |= {f"o.{k}": v for k, v in optimizer_tensors(optimizer).items()}
    save_checkpoint(tmp_path, 5, tensors, {"version": 2}, keep=2)
    expected = train(model, optimizer, 5)

    model, optimizer = make_model()
    loaded, state = load_checkpoint(tmp_path)
    assert state == {"version": 2, "step": 5}
    model.load_state_dict({k[2:]: v for k, v in loaded.items() if k.startswith("m.")})
    restore_optimizer(optimizer, {k[2:]: v for k, v in loaded.items() if k.startswith("o.")})
    torch.set_rng_state(loaded["rng"])
    assert train(model, optimizer, 5) == expected


def test_only_the_newest_are_kept_and_half_written_ones_are_never_seen(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, {"x": torch.ones(1)}, {}, keep=2)
    (tmp_path / ".step-000020.draft").mkdir()
    (tmp_path / "step-000025").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000010", "step-000015"]
    assert load_checkpoint(tmp_path)[1]["step"] == 15
    assert {path.suffix for path in (tmp_path / "step-000015").iterdir()} == {".json", ".safetensors"}


def test_resuming_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.resume.*no checkpoint"):
        load_checkpoint(tmp_path)


def test_the_learning_rate_warms_up_and_then_stays_or_falls() -> None:
    warm = [learning_rate_factor(step, 4, 10, linear=False) for step in range(10)]
    assert warm == [0.25, 0.5, 0.75, 1.0, 1, 1, 1, 1, 1, 1]
    linear = [learning_rate_factor(step, 0, 4, linear=True) for step in range(4)]
    assert linear == [1.0, 0.75, 0.5, 0.25]
