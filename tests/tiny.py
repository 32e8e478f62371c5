"""Tiny real models made on the spot: Llamas of at most a million parameters with a vocabulary of 16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCABULARY = ["<s>", "</s>", "<unk>", *"0123456789", ".", "number", ":"]
"""16 words; the tokenizer splits at white space and at every character that is no letter."""


def tiny_llama(seed: int = 0, hidden: int = 64) -> Any:
    """A randomly initialised Llama with sharp enough output to have a posterior worth learning."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        # At its initial scale the model is nearly uniform, and a sampler that learned nothing would pass.
        model.lm_head.weight.mul_(6.0)
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.mul_(6.0)
            layer.self_attn.q_proj.weight.mul_(6.0)
    return model.requires_grad_(False)


def save_digit_model(folder: Path) -> Path:
    """Save the model with a matching tokenizer, as `model.name` takes it."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[^a-z]"), "isolated")]
    )
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    tiny_llama().save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
