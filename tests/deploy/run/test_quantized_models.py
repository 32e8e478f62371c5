"""Quantized models are refused before a run starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from deploy.run.find_model import find_model

BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        ({"config.json": {"quantization_config": BITSANDBYTES}}, "bitsandbytes, 4 bits"),
        ({"config.json": {"quantization_config": {"quant_method": "gptq", "bits": 4}}}, "gptq, 4 bits"),
        ({"config.json": {"quantization_config": {"quant_method": "awq", "bits": 4}}}, "awq, 4 bits"),
        ({"config.json": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
        ({"config.json": {"text_config": {"quantization_config": {"quant_method": "mxfp4"}}}}, "mxfp4"),
        ({"config.json": {"compression_config": {"quant_method": "compressed-tensors"}}}, "compressed-tensors"),
        ({"config.json": {"quantization": {"group_size": 64, "bits": 8}}}, "8 bits"),
        ({"quantize_config.json": {"bits": 4, "group_size": 128}}, "quantize_config.json, 4 bits"),
        ({"quant_config.json": {"w_bit": 4, "q_group_size": 128}}, "quant_config.json, 4 bits"),
        ({"hf_quant_config.json": {"quantization": {"quant_algo": "NVFP4"}}}, "hf_quant_config.json"),
        ({"config.json": {"hf_quant_config": {"quant_method": "modelopt"}}}, "modelopt"),
        (
            {"config.json": {"quantization_config": None}, "quantize_config.json": {"bits": 4}},
            "quantize_config.json, 4 bits",
        ),
    ],
)
def test_a_quantized_model_is_refused_as_its_reward_is_another_models(
    digit_model: Path, tmp_path: Path, files: dict[str, dict[str, Any]], shown: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(digit_model, folder)
    assert find_model(str(folder)) == str(folder)
    for name, content in files.items():
        own = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps({**own, **content}))
    with pytest.raises(UserError) as caught:
        find_model(str(folder))
    assert str(caught.value).startswith("model.name = ") and f"quantized ({shown})" in str(caught.value)
    assert "give the model that is not quantized" in str(caught.value)


def test_a_model_whose_config_names_no_quantization_is_taken(digit_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(digit_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": None}))
    assert find_model(str(folder)) == str(folder)
