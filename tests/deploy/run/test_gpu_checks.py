"""What a run needs of GPUs, found out before it starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig
from common.devices import resolve_devices
from common.errors import UserError
from deploy.run.checks import _check_gpus
from deploy.run.model_check import ModelCheck


def config_of(**actor: Any) -> RunConfig:
    return RunConfig.model_validate({"task": {"name": "rng"}, "actor": actor})


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


@pytest.mark.parametrize(("n", "refused"), [(1, False), (2, False), (3, True)])
def test_more_learner_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, n: int, refused: bool) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    config = RunConfig.model_validate(
        {"task": {"name": "rng"}, "learner": {"device": "cuda", "num_processes": n}, "actor": {"num_gpus": 0}}
    )
    if not refused:
        _check_gpus(config)
        return
    with pytest.raises(UserError, match=r"learner\.num_processes = 3: .* this machine has 2; lower it to 2"):
        _check_gpus(config)


@pytest.mark.parametrize(
    ("section", "setting", "refused"),
    [
        ("learner", {"device": "cuda"}, r"learner\.device = 'cuda': torch sees no GPU on this machine"),
        (
            "actor",
            {"num_gpus": 1.0},
            r"actor\.num_gpus = 1\.0: an actor needs 1 GPUs .*; leave it out, or",
        ),
        ("actor", {"num_gpus": 0.0}, None),
    ],
)
def test_a_gpu_that_the_machine_has_not_is_refused(section: str, setting: dict[str, Any], refused: str | None) -> None:
    config = RunConfig.model_validate({"task": {"name": "rng"}, section: setting})
    if refused is None:
        _check_gpus(config)
        return
    with pytest.raises(UserError, match=refused):
        _check_gpus(config)


@pytest.mark.parametrize(
    ("heads", "key_heads", "inner", "n", "problem"),
    [
        (9, 3, 1536, 3, None),
        (9, 3, 1536, 9, "does not divide the 1536 entries in the feed-forward layers of this model; give 3"),
        (9, 3, 1536, 2, "does not divide the 9 attention heads of this model; leave it at 1"),
        (12, 6, 48, 4, "does not divide the 6 key-value heads of this model; give 3 or 2"),
        (32, 8, 4096, 8, None),
        # Two parts then share a key-value head.
        (32, 8, 4096, 16, None),
        (12, 2, 48, 3, "is no multiple of the 2 key-value heads of this model, nor their divisor; give 2"),
        (12, 1, 48, 4, None),
    ],
)
def test_a_model_that_can_not_be_cut_into_so_many_parts_is_refused(
    digit_model: Path, tmp_path: Path, heads: int, key_heads: int, inner: int, n: int, problem: str | None
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(digit_model, folder)
    own = json.loads((folder / "config.json").read_text())
    sizes = {"num_attention_heads": heads, "num_key_value_heads": key_heads, "intermediate_size": inner}
    sizes["hidden_size"] = 32 * heads
    (folder / "config.json").write_text(json.dumps({**own, **sizes}))
    model = ModelCheck.of(str(folder))
    if problem is None:
        model.check_tensor_parallel(n)
        return
    with pytest.raises(UserError) as caught:
        model.check_tensor_parallel(n)
    assert str(caught.value) == f"actor.tensor_parallel_size = {n}: {problem}"


@pytest.mark.parametrize(
    ("num_gpus", "fits"), [(2, True), (4, True), (1, False), (2.5, False), (0, True), (None, True)]
)
def test_an_actor_has_whole_gpus_for_all_parts_of_its_model(num_gpus: float | None, fits: bool) -> None:
    if fits:
        config_of(num_gpus=num_gpus, tensor_parallel_size=2)
        return
    with pytest.raises(ValueError, match="can't hold tensor_parallel_size = 2: leave it out, or give 2"):
        config_of(num_gpus=num_gpus, tensor_parallel_size=2)


def test_an_actor_asks_for_as_many_gpus_as_its_model_has_parts_and_more_than_the_machine_has_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("common.devices.has_gpu", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert resolve_devices(config_of()).actor.num_gpus == 1
    two = resolve_devices(config_of(tensor_parallel_size=2))
    assert two.actor.num_gpus == 2
    _check_gpus(two)
    four = resolve_devices(config_of(tensor_parallel_size=4))
    with pytest.raises(UserError, match=r"actor\.tensor_parallel_size = 4: an actor needs 4 GPUs on one node.* has 2"):
        _check_gpus(four)
    with pytest.raises(UserError, match=r"actor\.num_gpus = 3\.0: an actor needs 3 GPUs"):
        _check_gpus(resolve_devices(config_of(num_gpus=3)))
    ray = four.ray.model_copy(update={"address": "auto"})
    # A cluster's nodes may have more, or get more.
    _check_gpus(four.model_copy(update={"ray": ray}))
