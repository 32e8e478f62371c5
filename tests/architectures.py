"""A tiny random model of every architecture that the documentation lists, with the kind of tokenizer it comes with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = ["the", "of", "and", "to", "in", "is", "that", "was", "for", "on", "are", "they", "one", "have", "hot", "word"]
"""Each is a token, with the space before it and without, as is each of its beginnings."""
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABC0123456789.,:;!?'\"()[]{}|-_"
WINDOW = 16
"""Tokens that a layer with a sliding window looks back: fewer than the longest prompt of a test has."""


@dataclass(frozen=True)
class Architecture:
    """How a tiny model of it is made."""

    config: str
    """transformers' class for its configuration."""
    tokenizer: str
    """And for its tokenizer."""
    target_modules: tuple[str, ...]
    """Layers of its attention and feed-forward part, the fused ones among them."""
    settings: Mapping[str, Any]
    """Of the configuration, besides the sizes."""


_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 24, "sliding_window": WINDOW, "num_key_value_heads": 1}
_LLAMA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}

ARCHITECTURES = {
    "Llama": Architecture("LlamaConfig", "LlamaTokenizer", _LLAMA_MODULES, {"num_key_value_heads": 1}),
    "Mistral": Architecture(
        "MistralConfig", "LlamaTokenizer", _LLAMA_MODULES, {"num_key_value_heads": 1, "sliding_window": WINDOW}
    ),
    "Qwen2": Architecture(
        "Qwen2Config", "Qwen2Tokenizer", _LLAMA_MODULES, {"num_key_value_heads": 1, "tie_word_embeddings": True}
    ),
    "Qwen3": Architecture("Qwen3Config", "Qwen2Tokenizer", _LLAMA_MODULES, {"num_key_value_heads": 1, "head_dim": 32}),
    "Gemma 2": Architecture(
        "Gemma2Config",
        "GemmaTokenizer",
        _LLAMA_MODULES,
        {**_GEMMA, **_SLIDING, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "Gemma 3": Architecture("Gemma3TextConfig", "GemmaTokenizer", _LLAMA_MODULES, {**_GEMMA, **_SLIDING}),
    "Phi": Architecture(
        "PhiConfig",
        "GPT2Tokenizer",
        ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
        {"partial_rotary_factor": 0.5, "num_key_value_heads": 2},
    ),
    "Phi-3": Architecture(
        "Phi3Config",
        "LlamaTokenizer",
        ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
        {"sliding_window": WINDOW, "num_key_value_heads": 1},
    ),
    "OPT": Architecture(
        "OPTConfig",
        "GPT2Tokenizer",
        ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        {"ffn_dim": 128, "word_embed_proj_dim": 64},
    ),
    "GPT-NeoX": Architecture(
        "GPTNeoXConfig",
        "GPTNeoXTokenizer",
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        {"rotary_pct": 0.25},
    ),
}


def save_model(architecture: Architecture, folder: Path, seed: int = 0) -> Path:
    """Save a random model of two layers with its tokenizer, as `model.name` takes it."""
    import torch
    import transformers

    tokenizer = make_tokenizer(architecture.tokenizer)
    torch.manual_seed(seed)
    config = getattr(transformers, architecture.config)(
        **{
            # More rows than the tokenizer has tokens, as many models have.
            "vocab_size": len(tokenizer) + 5,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
            # At the usual scale a model is nearly uniform and hardly looks at what it reads.
            "initializer_range": 0.15,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **architecture.settings,
        }
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases begin at 0 and norms at 1, or at 0 where 1 is added: one that is left out would go unseen.
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tokenizer(name: str) -> Any:
    """A tokenizer of one of transformers' classes: SentencePiece-like with bytes to fall back on, or BPE over bytes."""
    import transformers
    from tokenizers.pre_tokenizers import ByteLevel

    if name in ("LlamaTokenizer", "GemmaTokenizer"):
        special = {
            "LlamaTokenizer": ["<unk>", "<s>", "</s>"],
            "GemmaTokenizer": ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"],
        }[name]
        pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *CHARACTERS]
        space = "▁"
    else:
        pieces, space = ["<|endoftext|>", *sorted(ByteLevel.alphabet())], "Ġ"
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        for first, rest in ((space, word), (word[0], word[1:])):
            for i, letter in enumerate(rest):
                merges[first + rest[:i], letter] = None
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *map("".join, merges)]))}
    return getattr(transformers, name)(vocab=vocabulary, merges=list(merges))
