"""What an adapter's files say of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from common.adapter_files import changes_something, check_adapter
from common.config import LoraSection
from common.errors import UserError

LORA = LoraSection(rank=4, target_modules=["q_proj", "v_proj"])


def test_an_untrained_adapter_changes_nothing() -> None:
    def files(second: float) -> dict[str, bytes]:
        tensors = {"x.lora_A.weight": np.ones(2, np.float32), "x.lora_B.weight": np.full(2, second, np.float32)}
        return {"adapter_config.json": b"{}", "adapter_model.safetensors": save(tensors)}

    assert not changes_something(files(0.0)) and changes_something(files(1e-6))


@pytest.mark.parametrize(
    ("content", "same_rank", "message"),
    [
        ({"r": 4, "target_modules": ["q_proj", "v_proj"]}, True, None),
        ({"r": 2, "target_modules": ["q_proj"]}, False, None),
        ({"r": 2, "target_modules": ["q_proj", "v_proj"]}, True, "has rank 2, model.lora.rank is 4"),
        ({"r": 99, "target_modules": ["q_proj", "v_proj"]}, False, "has rank 99"),
        ({"r": 4, "target_modules": ["q_proj"]}, True, "adapts q_proj; set model.lora.target_modules"),
        ({"r": 4, "target_modules": ["o_proj"]}, False, "adapts o_proj"),
        ({"r": 4}, False, "holds no PEFT adapter"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_the_setting(
    tmp_path: Path, content: dict[str, object], same_rank: bool, message: str | None
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(content))
    if message is None:
        check_adapter("reference.adapter", tmp_path, LORA, same_rank=same_rank)
        return
    with pytest.raises(UserError, match=f"reference.adapter.*{message}"):
        check_adapter("reference.adapter", tmp_path, LORA, same_rank=same_rank)


def test_a_folder_without_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.lora.start_from.*holds no PEFT adapter"):
        check_adapter("model.lora.start_from", tmp_path / "none", LORA, same_rank=True)
