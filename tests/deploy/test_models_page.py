"""The page on models: its table is what tests run, and its way to a model's text part works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from deploy.run.model_check import SERVED, ModelCheck
from learner.policy import load_base_model
from tests.architectures import ARCHITECTURES, make_tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 32}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_the_table_holds_the_architectures_that_are_tested_with_their_modules() -> None:
    rows = re.findall(r"^\| ([^|]+) \| ((?:`\w+` ?)+)\|.*\| ([\de.-]+) \|$", PAGE, re.MULTILINE)
    assert {name: tuple(re.findall(r"\w+", modules)) for name, modules, _ in rows} == {
        name: architecture.target_modules for name, architecture in ARCHITECTURES.items()
    }
    assert all(float(gap) < 1e-5 for _, _, gap in rows)


def test_refusals_recommend_families_of_the_table() -> None:
    families = {re.sub(r"[ -]?\d", "", name) for name in ARCHITECTURES}
    named = {re.sub(r"[ -]?\d| and \d", "", name) for name in SERVED.split(", ")}
    assert named == families


@pytest.mark.parametrize("kind", ["Gemma3", "Mistral3", "Llava"])
def test_the_text_part_of_a_model_that_reads_images_can_be_saved_and_used(tmp_path: Path, kind: str) -> None:
    import transformers

    tokenizer = make_tokenizer("LlamaTokenizer")
    size = len(tokenizer) + 10
    inner = {"Gemma3": {}, "Mistral3": {"model_type": "mistral"}, "Llava": {"model_type": "llama"}}[kind]
    vision = {"Gemma3": {}, "Mistral3": {"model_type": "pixtral"}, "Llava": {"model_type": "clip_vision_model"}}[kind]
    config = getattr(transformers, f"{kind}Config")(
        text_config={**TEXT, **inner, "vocab_size": size, "num_key_value_heads": 1, "initializer_range": 0.15},
        vision_config={**VISION, **vision, "image_size": 28, "patch_size": 14},
        image_token_index=size - 1,
    )
    torch.manual_seed(0)
    whole = getattr(transformers, f"{kind}ForConditionalGeneration")(config).float().eval()
    source, target = tmp_path / "whole", tmp_path / "text"
    whole.save_pretrained(source)
    tokenizer.save_pretrained(source)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    code = code.replace("google/gemma-3-4b-pt", str(source)).replace("gemma-3-4b-text", str(target))
    exec(compile(code, "models.md", "exec"), {})
    ModelCheck.of(str(target)).check_target_modules(["q_proj", "v_proj"])
    ids = torch.tensor([[7, 8, 9, 30, 44]])
    with torch.no_grad():
        expected, found = whole(input_ids=ids).logits, load_base_model(str(target), "float32")(ids).logits
    torch.testing.assert_close(found, expected)
