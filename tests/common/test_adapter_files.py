"""What an adapter's files say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from common.adapter_files import changes_something, check_adapter
from common.config import LoraSection
from common.errors import UserError

LORA = LoraSection(rank=4, target_modules=["q_proj", "v_proj"])
LAYERS = {f"model.layers.{i}.{name}_proj": (8, 6) for i in range(2) for name in "qvo"}
MODEL = "/models/tiny"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}


def write_adapter(folder: Path, config: dict[str, Any], **tensors: np.ndarray | None) -> Path:
    """The folder of an adapter for LAYERS, with other tensors in the place of some; None leaves one out."""
    (folder / "adapter_config.json").write_text(json.dumps(config))
    rank, modules = config.get("r", 4), set(config.get("target_modules", []))
    found: dict[str, np.ndarray | None] = {}
    for name, (outputs, inputs) in LAYERS.items():
        if name.rpartition(".")[2] in modules:
            found[f"base_model.model.{name}.lora_A.weight"] = np.ones((rank, inputs), np.float32)
            found[f"base_model.model.{name}.lora_B.weight"] = np.ones((outputs, rank), np.float32)
    kept = {name: values for name, values in {**found, **tensors}.items() if values is not None}
    save_file(kept, folder / "adapter_model.safetensors")
    return folder


def check(folder: Path, *, same_rank: bool = True, lora: LoraSection = LORA) -> None:
    check_adapter("model.lora.start_from", folder, lora, MODEL, LAYERS, same_rank=same_rank)


def test_an_untrained_adapter_changes_nothing() -> None:
    def files(second: float) -> dict[str, bytes]:
        tensors = {"x.lora_A.weight": np.ones(2, np.float32), "x.lora_B.weight": np.full(2, second, np.float32)}
        return {"adapter_config.json": b"{}", "adapter_model.safetensors": save(tensors)}

    assert not changes_something(files(0.0)) and changes_something(files(1e-6))


@pytest.mark.parametrize(
    ("changes", "same_rank", "message"),
    [
        ({}, True, None),
        ({"base_model_name_or_path": "elsewhere/tiny"}, True, None),
        ({"r": 2, "target_modules": ["q_proj"]}, False, None),
        ({"r": 2}, True, "has rank 2, model.lora.rank is 4; set that rank"),
        ({"r": 99}, False, "has rank 99"),
        ({"lora_alpha": 32}, True, "has alpha 32, model.lora.alpha is 16; set model.lora.alpha to it"),
        ({"target_modules": ["q_proj"]}, True, "adapts q_proj; set model.lora.target_modules"),
        ({"target_modules": ["o_proj"]}, False, "adapts o_proj"),
        ({"r": "many"}, True, "holds no PEFT adapter"),
        ({"r": 600}, True, "has rank 600; give an adapter of rank 1 to 512"),
        ({"lora_alpha": -1}, True, "has alpha -1; give an adapter with an alpha above 0"),
        ({"target_modules": None}, True, "has target_modules = null, no list of names; give an adapter of o_proj, q_"),
        ({"target_modules": []}, False, "has target_modules = [], no list of names; give"),
        ({"target_modules": [1]}, True, "has target_modules = [1], no list of names; give"),
        ({"target_modules": [["q_proj"]]}, True, 'has target_modules = [["q_proj"]], no list of names; give'),
        ({"target_modules": ["q_proj", "lm_head"]}, True, "adapts lm_head, which is no linear layer of this model"),
        ({"target_modules": ["layers.0.q_proj", "v_proj"]}, True, "and not model.layers.1.q_proj; give an adapter of"),
        ({"target_modules": sorted(LAYERS)}, True, "adapts o_proj, q_proj, v_proj; set model.lora.target_modules"),
        ({"base_model_name_or_path": 5}, True, "was trained on 5, model.name is /models/tiny"),
        ({"base_model_name_or_path": "org/other"}, True, "was trained on org/other, model.name is /models/tiny"),
        (
            {"target_modules": r".*\.(q|v)_proj"},
            True,
            r"its target_modules are the pattern '.*\\.(q|v)_proj'; name the modules one by one in its "
            "adapter_config.json, of o_proj, q_proj, v_proj",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_with_the_setting(
    tmp_path: Path, changes: dict[str, object], same_rank: bool, message: str | None
) -> None:
    write_adapter(tmp_path, CONFIG)
    folder = write_adapter(tmp_path, {**CONFIG, **changes}) if message is None else tmp_path
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    if message is None:
        check(folder, same_rank=same_rank)
        return
    with pytest.raises(UserError) as caught:
        check(folder, same_rank=same_rank)
    assert str(caught.value).startswith(f"model.lora.start_from = {str(folder)!r}: ") and message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("modules_to_save", ["lm_head"]),
        ("use_dora", True),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("lora_bias", True),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 8}),
        ("use_rslora", True),
        ("layers_to_transform", [0]),
        ("layers_to_transform", 0),
        ("layer_replication", [[0, 1]]),
        ("exclude_modules", ["v_proj"]),
        ("target_parameters", ["experts"]),
        ("trainable_token_indices", [1]),
        ("fan_in_fan_out", True),
        ("use_qalora", True),
        ("alora_invocation_tokens", [1]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("a_setting_of_a_later_version", 3),
    ],
)
@pytest.mark.parametrize("same_rank", [True, False])
def test_more_than_plain_lora_is_refused_by_its_name_and_value(
    tmp_path: Path, name: str, value: object, same_rank: bool
) -> None:
    folder = write_adapter(tmp_path, {**CONFIG, name: value})
    with pytest.raises(UserError) as caught:
        check(folder, same_rank=same_rank)
    assert f"has {name} = {json.dumps(value)}, which is no part of a plain LoRA adapter" in str(caught.value)


@pytest.mark.parametrize("kind", ["IA3", "LOHA", "PROMPT_TUNING"])
def test_another_kind_of_adapter_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind}))
    with pytest.raises(UserError, match=f"holds a {kind} adapter; give a LoRA adapter"):
        check(tmp_path)


def test_an_adapter_that_names_its_layers_whole_is_one_of_their_last_parts(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, CONFIG)
    whole = [name for name in LAYERS if not name.endswith("o_proj")]
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "target_modules": whole}))
    check(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("same_rank", [True, False])
def test_weights_that_are_not_finite_are_refused_by_the_tensor(tmp_path: Path, value: float, same_rank: bool) -> None:
    name = "base_model.model.model.layers.1.v_proj.lora_A.weight"
    values = np.ones((4, 6), np.float32)
    values[3, 5] = value
    with pytest.raises(UserError, match=r"its model\.layers\.1\.v_proj\.lora_A\.weight holds numbers that are not fin"):
        check(write_adapter(tmp_path, CONFIG, **{name: values}), same_rank=same_rank)


@pytest.mark.parametrize(("kind", "shown"), [(np.int8, "I8"), (np.int64, "I64"), (np.bool_, "BOOL")])
def test_weights_that_are_no_real_numbers_are_refused_by_their_type(tmp_path: Path, kind: type, shown: str) -> None:
    name = "base_model.model.model.layers.0.q_proj.lora_B.weight"
    with pytest.raises(UserError, match=rf"its model\.layers\.0\.q_proj\.lora_B\.weight is of type {shown}; give"):
        check(write_adapter(tmp_path, CONFIG, **{name: np.ones((8, 4), kind)}))


def test_weights_of_two_bytes_are_taken(tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.q_proj.lora_B.weight"
    check(write_adapter(tmp_path, CONFIG, **{name: np.ones((8, 4), np.float16)}))


def test_a_description_nested_too_deep_to_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"holds no PEFT adapter \(RecursionError\)"):
        check(tmp_path)


def test_a_folder_without_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.lora.start_from.*holds no PEFT adapter"):
        check(tmp_path / "none")


@pytest.mark.parametrize("content", [None, b"", b"half of a safetensors file"])
def test_weights_that_are_missing_or_broken_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = write_adapter(tmp_path, CONFIG) / "adapter_model.safetensors"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"its adapter_model\.safetensors can't be read"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("base_model.model.model.layers.1.v_proj.lora_A.weight", None, "is missing, expected is 4 x 6"),
        ("base_model.model.model.layers.1.v_proj.lora_B.weight", np.ones((9, 4)), "is 9 x 4, expected is 8 x 4"),
        ("base_model.model.model.embed_tokens.weight", np.ones((16, 6)), "is 16 x 6, expected is none"),
        ("base_model.model.model.layers.1.q_proj.lora_magnitude_vector", np.ones(8), "is 8, expected is none"),
        ("base_model.model.model.layers.2.q_proj.lora_A.weight", np.ones((4, 6)), "is 4 x 6, expected is none"),
    ],
)
def test_weights_of_another_model_are_refused_by_the_first_tensor_that_differs(
    tmp_path: Path, name: str, values: np.ndarray | None, message: str
) -> None:
    folder = write_adapter(tmp_path, CONFIG, **{name: values})
    with pytest.raises(UserError) as caught:
        check(folder)
    assert f"does not fit this model: {name.removeprefix('base_model.model.')} {message}" in str(caught.value)


def test_what_peft_saves_of_a_plain_adapter_is_accepted(tmp_path: Path, digit_model: Path) -> None:
    import torch

    from common.action_space import ActionSpace
    from deploy.run.model_check import ModelCheck
    from learner.policy import LoraPolicy

    space = ActionSpace(vocab_size=16, terminator_id=13, max_len=3)
    LoraPolicy.load(str(digit_model), LORA, space, dtype="float32", device=torch.device("cpu")).save_adapter(tmp_path)
    layers = ModelCheck.of(str(digit_model)).linear_layers
    check_adapter("reference.adapter", tmp_path, LORA, str(digit_model), layers, same_rank=True)
    with pytest.raises(UserError, match="does not fit this model: model"):
        check_adapter("reference.adapter", tmp_path, LORA, str(digit_model), LAYERS, same_rank=True)


def test_what_peft_saves_of_whole_names_can_be_started_from(tmp_path: Path, digit_model: Path) -> None:
    import torch

    from common.action_space import ActionSpace
    from deploy.run.model_check import ModelCheck
    from learner.policy import LoraPolicy

    def policy(lora: LoraSection) -> LoraPolicy:
        space = ActionSpace(vocab_size=16, terminator_id=13, max_len=3)
        return LoraPolicy.load(str(digit_model), lora, space, dtype="float32", device=torch.device("cpu"))

    layers = ModelCheck.of(str(digit_model)).linear_layers
    policy(LORA).save_adapter(tmp_path)
    description = tmp_path / "adapter_config.json"
    whole = [name for name in layers if name.endswith(("q_proj", "v_proj"))]
    description.write_text(json.dumps({**json.loads(description.read_text()), "target_modules": whole}))
    check_adapter("model.lora.start_from", tmp_path, LORA, str(digit_model), layers, same_rank=True)
    policy(LORA.model_copy(update={"start_from": tmp_path})).save_adapter(tmp_path / "again")
    check_adapter("model.lora.start_from", tmp_path / "again", LORA, str(digit_model), layers, same_rank=True)
