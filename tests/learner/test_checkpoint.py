"""Checkpoints: complete or absent, nothing pickled, and a resumed curve that is the same curve."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from common.errors import UserError
from learner.checkpoint import (
    checkpoints,
    find_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from learner.trainer import Trainer, learning_rate_factor


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


def test_the_newest_are_those_of_the_last_steps_however_many_digits_these_have(tmp_path: Path) -> None:
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        save_checkpoint(tmp_path, step, {"x": torch.ones(1)}, {}, keep=2)
        assert find_checkpoint(tmp_path).state["step"] == step
    assert [path.name for path in checkpoints(tmp_path)] == ["step-1000000", "step-1000001"]
    (tmp_path / "step-1000001").rename(tmp_path / ".step-1000001.replaced")
    (tmp_path / "step-1000000").rename(tmp_path / "step-copy")
    assert [path.name for path in checkpoints(tmp_path)] == [".step-1000001.replaced"]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: truncate(path / "tensors.safetensors", -9),
    "empty": lambda path: truncate(path / "tensors.safetensors", 0),
    "zeros at its end": lambda path: overwrite(path / "tensors.safetensors", b"\0" * 40),
    "one bit flipped": lambda path: overwrite(path / "tensors.safetensors", b"\x01"),
    "gone": lambda path: (path / "tensors.safetensors").unlink(),
    "state truncated": lambda path: truncate(path / "state.json", -5),
    "state empty": lambda path: truncate(path / "state.json", 0),
    "state of another kind": lambda path: (path / "state.json").write_text("[]"),
}


def truncate(path: Path, size: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:size])


def overwrite(path: Path, end: bytes) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: -len(end)] + end)


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_with_a_warning(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, {"x": torch.full((64,), float(step))}, {"version": step}, keep=3)
    for name in ("step-000010", "step-000015"):
        DAMAGES[how](tmp_path / name)
    found = find_checkpoint(tmp_path)
    assert found.path.name == "step-000005" and [path.name[-2:] for path in found.unreadable] == ["15", "10"]
    assert len(checkpoints(tmp_path)) == 3, "looking changes nothing"
    with caplog.at_level("WARNING", "amortis.learner"):
        logging.getLogger("amortis").propagate = True
        tensors, state = load_checkpoint(tmp_path)
    assert state == {"version": 5, "step": 5} and bool((tensors["x"] == 5).all())
    assert "step-000015 can't be read" in caplog.text and "going on from step-000005" in caplog.text
    # They don't count as the newest, or the next one saved would take the place of the good one.
    save_checkpoint(tmp_path, 7, {"x": torch.ones(1)}, {}, keep=1)
    assert load_checkpoint(tmp_path)[1]["step"] == 7
    assert {path.name for path in tmp_path.iterdir()} == {
        "step-000007",
        "unreadable-step-000010",
        "unreadable-step-000015",
    }


def test_where_no_checkpoint_can_be_read_all_are_named_and_kept(tmp_path: Path) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, step, {"x": torch.ones(3)}, {}, keep=2)
        truncate(tmp_path / f"step-{step:06d}" / "tensors.safetensors", -1)
    with pytest.raises(UserError, match=r"run\.resume.* can be read \(step-000010: .*; step-000005: "):
        load_checkpoint(tmp_path)
    assert len(checkpoints(tmp_path)) == 2


def test_a_checkpoint_of_an_older_amortis_without_a_checksum_is_read(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, {"x": torch.ones(3)}, {}, keep=2)
    (path / "state.json").write_text('{"step": 5}')
    assert load_checkpoint(tmp_path)[1] == {"step": 5}


def test_saving_a_step_again_replaces_it_and_leaves_nothing_else(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, 5, {"x": torch.full((3,), value)}, {}, keep=2)
    assert float(load_checkpoint(tmp_path)[0]["x"][0]) == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


def test_a_crash_while_a_step_is_saved_again_leaves_the_one_that_was_to_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 5, {"x": torch.ones(3)}, {}, keep=1)
    rename = Path.rename

    def crash(self: Path, target: Path) -> Path:
        if self.suffix == ".draft":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", crash)
        save_checkpoint(tmp_path, 5, {"x": torch.zeros(3)}, {}, keep=1)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert before == [".step-000005.draft", ".step-000005.replaced"]
    assert find_checkpoint(tmp_path).state["step"] == 5 and len(checkpoints(tmp_path)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "looking changes nothing"
    assert float(load_checkpoint(tmp_path)[0]["x"].sum()) == 3.0
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000005"]
    save_checkpoint(tmp_path, 5, {"x": torch.zeros(3)}, {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


def test_lines_of_steps_that_are_done_again_and_what_a_crash_left_of_one_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo\0\0\0')
    Trainer._forget_rows_after(SimpleNamespace(folder=tmp_path), 2)  # type: ignore[arg-type]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_resuming_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.resume.*no checkpoint"):
        load_checkpoint(tmp_path)


def test_the_learning_rate_warms_up_and_then_stays_or_falls() -> None:
    warm = [learning_rate_factor(step, 4, 10, linear=False) for step in range(10)]
    assert warm == [0.25, 0.5, 0.75, 1.0, 1, 1, 1, 1, 1, 1]
    linear = [learning_rate_factor(step, 0, 4, linear=True) for step in range(4)]
    assert linear == [1.0, 0.75, 0.5, 0.25]
