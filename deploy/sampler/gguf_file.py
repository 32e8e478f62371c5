"""A GGUF file, as llama.cpp reads it, of a Llama model with a byte-level tokenizer: `common.default_model` undone.

Other architectures and tokenizers are refused by name: a file that is read wrongly is worse than none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.errors import UserError

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
_PRE_TOKENIZERS = {
    "gpt-2": [_BYTE_LEVEL],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
}
"""What llama.cpp calls the ways of splitting a text that it and this file agree on."""
_SPECIAL = ("bos", "eos", "pad", "unk")


def check_exportable(config: Any, tokenizer: Any) -> None:
    """Raises UserError naming --gguf, with what the model or its tokenizer is."""
    problem = _why_not_model(config) or _why_not_tokenizer(tokenizer)
    if problem is not None:
        remedy = "use --merged, and llama.cpp's own convert_hf_to_gguf.py on that folder"
        raise UserError("--gguf", None, problem, remedy)


def write_gguf(file: Path, model: Any, tokenizer: Any, dtype: str, name: str, *, opens_with_bos: bool) -> None:
    """Write a merged model and its tokenizer; matrices in `dtype`, vectors in float32, as llama.cpp wants them."""
    import gguf

    check_exportable(model.config, tokenizer)
    config = model.config
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    kinds = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
    writer.add_file_type(gguf.LlamaFileType[kinds[dtype]])
    _add_tokenizer(writer, tokenizer, config.vocab_size, opens_with_bos=opens_with_bos)
    _add_tensors(writer, model, dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _why_not_model(config: Any) -> str | None:
    names = config.architectures or [config.model_type]
    if names != ["LlamaForCausalLM"]:
        return f"is written for LlamaForCausalLM alone, and this model is {', '.join(names)}"
    expected = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    found = {key: getattr(config, key) for key in expected}
    rope = config.rope_parameters["rope_type"]
    for key, value in {**found, "rope_type": rope}.items():
        if value != {**expected, "rope_type": "default"}[key]:
            return f"is written for plain Llamas alone, and this model has {key} = {value!r}"
    return None


def _why_not_tokenizer(tokenizer: Any) -> str | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return f"needs a tokenizer.json, and this model has a {type(tokenizer).__name__}"
    whole = json.loads(backend.to_str())
    kind, normalizer = whole["model"]["type"], whole["normalizer"]
    if kind != "BPE" or normalizer is not None or whole["model"].get("ignore_merges"):
        shown = f"{kind} one" if kind != "BPE" else "BPE one that normalises texts or ignores its merges"
        return f"is written for byte-level BPE tokenizers alone, and this model's is a {shown}"
    if _pre_tokenizer(whole["pre_tokenizer"]) is None:
        return f"knows the ways {', '.join(_PRE_TOKENIZERS)} of splitting a text alone, and this model's is another"
    return None


def _pre_tokenizer(found: Any) -> str | None:
    """llama.cpp's name for it; None where it has none that is known here."""
    parts = [] if found is None else found.get("pretokenizers", [found])
    kept = [
        {key: part.get(key) for key in ("type", "individual_digits", "add_prefix_space", "use_regex")} for part in parts
    ]
    plain = [{key: value for key, value in part.items() if value is not None} for part in kept]
    return next((name for name, parts in _PRE_TOKENIZERS.items() if parts == plain), None)


def _add_tokenizer(writer: Any, tokenizer: Any, vocab_size: int, *, opens_with_bos: bool) -> None:
    import gguf

    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    texts = {token: text for text, token in whole["model"]["vocab"].items()}
    kinds = dict.fromkeys(texts, gguf.TokenType.NORMAL)
    for added in whole["added_tokens"]:
        texts[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    ids = range(vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(whole["pre_tokenizer"]))
    # A model may have rows that its tokenizer knows no token for.
    writer.add_token_list([texts.get(token, f"[PAD{token}]") for token in ids])
    writer.add_token_types([kinds.get(token, gguf.TokenType.UNUSED) for token in ids])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in whole["model"]["merges"]]
    writer.add_token_merges(merges)
    for name in _SPECIAL:
        token = getattr(tokenizer, f"{name}_token_id", None)
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(opens_with_bos)
    writer.add_add_space_prefix(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _add_tensors(writer: Any, model: Any, dtype: str) -> None:
    import gguf
    import torch

    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    kind = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.detach().to("cpu", torch.float32).numpy()
        part = name.split(".")[-2]
        if part in heads:
            # llama.cpp rotates neighbouring rows, transformers the two halves of a head.
            rows = values.shape[0] // heads[part]
            shape = (heads[part], 2, rows // 2, values.shape[1])
            values = values.reshape(shape).swapaxes(1, 2).reshape(values.shape)
        stored = gguf.GGMLQuantizationType["F32" if values.ndim == 1 else kind]
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight",)), gguf.quants.quantize(values, stored), raw_dtype=stored
        )
