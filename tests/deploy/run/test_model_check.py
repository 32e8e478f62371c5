"""Models that can't be trained or served are refused from their configuration alone, in one line that says what is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.models import load_causal_lm, load_config, load_tokenizer, vocabulary_size
from common.tokens import load_codec
from deploy.run.checks import prepare
from deploy.run.find_model import find_model
from deploy.run.model_check import ModelCheck
from tests.architectures import ARCHITECTURES, make_tokenizer, save_model
from tests.deploy.run.runs import config_of

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16}
SERVED = "choose a causal language model, such as one of Llama, Mistral, Qwen 2 and 3"


def config_folder(folder: Path, kind: str, *architectures: str, **settings: Any) -> Path:
    """A folder with the configuration of a transformers class."""
    import transformers

    config = getattr(transformers, kind)(architectures=list(architectures), **settings)
    config.save_pretrained(folder)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        ModelCheck.of(str(folder))
    message = str(caught.value)
    assert message.startswith("model.name = ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("kind", "architecture", "reason", "remedy"),
    [
        ("GPT2Config", "GPT2LMHeadModel", "vLLM can't serve with LoRA adapters", SERVED),
        ("GPTJConfig", "GPTJForCausalLM", "vLLM can't serve with LoRA adapters", SERVED),
        ("BloomConfig", "BloomForCausalLM", "vLLM can't serve with LoRA adapters", SERVED),
        ("FalconConfig", "FalconForCausalLM", "vLLM can't serve with LoRA adapters", SERVED),
        ("GPTNeoConfig", "GPTNeoForCausalLM", "vLLM can't serve with LoRA adapters", SERVED),
        ("MambaConfig", "MambaForCausalLM", "vLLM can't serve with LoRA adapters", SERVED),
        ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", "keep a state", SERVED),
        ("FalconH1Config", "FalconH1ForCausalLM", "keep a state", SERVED),
        ("RecurrentGemmaConfig", "RecurrentGemmaForCausalLM", "keep a state", SERVED),
        ("ZayaConfig", "ZayaForCausalLM", "keep a state", SERVED),
        ("InklingTextConfig", "InklingForCausalLM", "keep a state", SERVED),
        ("BertGenerationConfig", "BertGenerationDecoder", "no causal language model", SERVED),
        ("GitConfig", "GitForCausalLM", "reads more than text", SERVED),
        ("Phi4MultimodalConfig", "Phi4MultimodalForCausalLM", "reads more than text", SERVED),
        ("MoshiConfig", "MoshiForCausalLM", "reads more than text", SERVED),
        ("T5Config", "T5ForConditionalGeneration", "an encoder with a decoder", SERVED),
        ("BartConfig", "BartForConditionalGeneration", "an encoder with a decoder", SERVED),
        ("WhisperConfig", "WhisperForConditionalGeneration", "an encoder with a decoder", SERVED),
        ("BertConfig", "BertForMaskedLM", "no causal language model", SERVED),
        ("BertConfig", "BertLMHeadModel", "no causal language model", SERVED),
        ("ViTConfig", "ViTForImageClassification", "no causal language model", SERVED),
        ("LlamaConfig", "LlamaModel", "no causal language model", "with its output layer"),
        ("LlamaConfig", "LlamaForSequenceClassification", "no causal language model", "with its output layer"),
        ("Gemma3Config", "Gemma3ForConditionalGeneration", "reads more than text", "save its text part"),
        ("Mistral3Config", "Mistral3ForConditionalGeneration", "reads more than text", "save its text part"),
        ("Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration", "reads more than text", SERVED),
        ("LlavaConfig", "LlavaForConditionalGeneration", "reads more than text", "save its text part"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_by_its_architecture(
    tmp_path: Path, kind: str, architecture: str, reason: str, remedy: str
) -> None:
    message = refusal(config_folder(tmp_path, kind, architecture))
    assert f"is {architecture}, " in message and reason in message and remedy in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "of_tomorrow", "factor": 2}},
            "made from its config.json (KeyError: 'of_tomorrow",
        ),
        ({"hidden_act": "of_tomorrow"}, "made from its config.json (KeyError: 'of_tomorrow"),
        ({"hidden_size": "x"}, "Field 'hidden_size' expected int, got str"),
        ({"num_hidden_layers": -1}, "its config.json doesn't tell"),
        ({"text_config": "x"}, "reads more than text"),
        ({"vision_config": {"hidden_size": 8}}, "reads more than text"),
        (
            {"architectures": "LlamaForCausalLM"},
            "has architectures = 'LlamaForCausalLM', no list of names; write it as",
        ),
        ({"architectures": [1]}, "has architectures = [1], no list of names; write it as"),
        ({"model_type": "of_tomorrow"}, "has model_type = 'of_tomorrow', which transformers"),
        ({"model_type": None}, "has model_type = None, which transformers"),
    ],
)
def test_settings_that_no_model_can_be_made_from_are_told(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = config_folder(tmp_path, "LlamaConfig", "LlamaForCausalLM", **SMALL) / "config.json"
    (tmp_path / "model.safetensors").touch()
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError) as caught:
        ModelCheck.of(find_model(str(tmp_path))).check_target_modules(["q_proj"])
    shown = str(caught.value)
    assert shown.startswith("model.name = ") and "\n" not in shown and message in shown
    assert "give a local folder" not in shown, "it is one"


def test_a_model_that_is_called_no_decoder_and_looks_only_back_is_taken(tmp_path: Path) -> None:
    ModelCheck.of(str(config_folder(tmp_path, "LlamaConfig", "LlamaForCausalLM", is_decoder=False, **SMALL)))


def test_a_model_with_an_adapter_beside_it_is_refused_as_only_the_learner_would_load_it(tmp_path: Path) -> None:
    folder = save_model(ARCHITECTURES["Llama"], tmp_path)
    assert find_model(str(folder)) == str(folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}')
    with pytest.raises(UserError, match=r"model\.name = .*holds an adapter.*the adapter by model\.lora\.start_from"):
        find_model(str(folder))


@pytest.mark.parametrize(
    ("file", "message"),
    [(None, None), ("adapter_config.json", "holds an adapter"), ("hf_quant_config.json", "weights are quantized")],
)
def test_the_files_beside_a_model_of_the_hub_are_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str | None, message: str | None
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    stored, commit = tmp_path / "models--owner--name", "0" * 40
    config_folder(stored / "snapshots" / commit, "LlamaConfig", "LlamaForCausalLM", **SMALL)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(commit)
    if file is None or message is None:
        assert find_model("owner/name") == "owner/name"
        return
    (stored / "snapshots" / commit / file).write_text('{"bits": 4}')
    with pytest.raises(UserError, match=rf"model\.name = 'owner/name': .*{message}"):
        find_model("owner/name")


@pytest.mark.parametrize("name", ["  ", "a\nb", "a\0b", "x" * 300, "owner/" + "x" * 300])
def test_a_name_that_neither_a_folder_nor_the_hub_can_have_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"model\.name = .*is no folder, and can't be an id on the hub") as caught:
        find_model(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "asked"), [("all-mpnet-bse-v2", "sentence-transformers/all-mpnet-bse-v2"), ("owner/none", "owner/none")]
)
def test_a_model_that_the_evaluation_needs_is_looked_for_before_the_run(
    tmp_path: Path, digit_model: Path, monkeypatch: pytest.MonkeyPatch, name: str, asked: str
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "rows.jsonl").write_text('{"x": "7"}')
    task = f"task: {{name: continuation, train_path: {tmp_path / 'rows.jsonl'}, embedding_model: {name}}}"
    with pytest.raises(UserError, match=rf"task\.embedding_model = '{asked}': .*the hub gave no such model"):
        prepare(config_of(tmp_path, digit_model, task=task))


@pytest.mark.parametrize("name", ["/" + "x" * 300, "~" + "x" * 300])
def test_a_path_that_no_folder_can_have_is_no_folder(name: str) -> None:
    with pytest.raises(UserError, match=r"model\.name = .*no such folder"):
        find_model(name)


def test_a_configuration_nested_too_deep_to_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"model\.name.*its config\.json can't be read"):
        find_model(str(tmp_path))


def test_a_configuration_without_architecture_is_told_which_to_name(tmp_path: Path) -> None:
    assert 'add "architectures": ["LlamaForCausalLM"]' in refusal(config_folder(tmp_path, "LlamaConfig"))


def test_of_a_nested_configuration_the_text_part_counts(tmp_path: Path) -> None:
    for kind in ("Gemma3Config", "Mistral3Config", "Qwen2_5_VLConfig", "LlavaConfig"):
        folder = config_folder(tmp_path / kind, kind)
        config = load_config(str(folder))
        assert vocabulary_size(str(folder), config) == config.text_config.vocab_size > 1_000
        make_tokenizer("LlamaTokenizer").save_pretrained(folder)
        assert load_codec(str(folder)).vocab_size == config.text_config.vocab_size


def test_a_model_without_a_vocabulary_makes_no_codec(tmp_path: Path) -> None:
    folder = config_folder(tmp_path, "ViTConfig")
    make_tokenizer("LlamaTokenizer").save_pretrained(folder)
    with pytest.raises(UserError, match=r"model\.name.*has no vocabulary"):
        load_codec(str(folder))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_architectures_of_the_table_pass_and_wrong_modules_are_told_the_right_ones(
    tmp_path: Path, name: str
) -> None:
    architecture = ARCHITECTURES[name]
    check = ModelCheck.of(str(save_model(architecture, tmp_path)))
    assert check.context_length == 128
    check.check_target_modules(architecture.target_modules)
    with pytest.raises(UserError) as caught:
        check.check_target_modules(["no_such"])
    choices = str(caught.value).partition("choose among ")[2].split(", ")
    assert choices == sorted(architecture.target_modules), "all but the output layer"


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "layers.0.self_attn.q_proj", "all-linear", "q_pro"])
def test_neither_output_layer_nor_embeddings_nor_paths_are_taken_as_modules(tmp_path: Path, target: str) -> None:
    check = ModelCheck.of(str(config_folder(tmp_path, "LlamaConfig", "LlamaForCausalLM", **SMALL)))
    with pytest.raises(
        UserError, match=rf"model\.lora\.target_modules = '{target}'.*choose among down_proj, gate_proj"
    ):
        check.check_target_modules(["v_proj", target])


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that a model's own code writes when it runs."""
    return tmp_path / "ran"


def own_code(folder: Path, ran: Path, file: str, entry: dict[str, Any]) -> Path:
    """Make a model's folder ask for code of its own in one of its files."""
    for module in ("own_config", "own_model", "own_tokenizer"):
        (folder / f"{module}.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))
    return folder


def test_code_that_comes_with_a_model_is_neither_run_nor_asked_about(
    tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = config_folder(tmp_path / "own", "LlamaConfig", "OwnForCausalLM", **SMALL)
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own_config.Own", "AutoModelForCausalLM": "own_model.Own"}}
    own_code(folder, ran, "config.json", own)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(sys, "stdin", None)
    assert "comes with code of its own" in refusal(folder)
    with pytest.raises(UserError, match=r"model\.name.*comes with code of its own"):
        load_codec(str(folder))
    assert not ran.exists()


def test_code_that_comes_with_a_known_architecture_is_left_alone(tmp_path: Path, ran: Path) -> None:
    folder = save_model(ARCHITECTURES["Phi-3"], tmp_path / "phi")
    own_code(folder, ran, "config.json", {"auto_map": {"AutoModelForCausalLM": "own_model.Own"}})
    ModelCheck.of(str(folder))
    load_causal_lm(str(folder), None)
    assert not ran.exists()


def test_a_tokenizer_of_code_alone_is_refused(tmp_path: Path, ran: Path) -> None:
    folder = save_model(ARCHITECTURES["Llama"], tmp_path / "llama")
    (folder / "tokenizer.json").unlink()
    entry = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own_tokenizer.Own", None]}}
    own_code(folder, ran, "tokenizer_config.json", entry)
    with pytest.raises(UserError, match=r"model\.name.*tokenizer"):
        load_tokenizer(str(folder))
    assert not ran.exists()


def test_weights_that_lack_a_tensor_are_refused_and_not_filled_with_random_numbers(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_model(ARCHITECTURES["Llama"], tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.name.*lack 1 of.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load_causal_lm(str(folder), None)
