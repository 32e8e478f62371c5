"""A model's tokenizer, cut down to what tasks use, and checked before anything slow starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import UserError


class HuggingFaceCodec:
    """`common.tasks.TokenCodec` on a Hugging Face tokenizer."""

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size

    @property
    def vocab_size(self) -> int:
        """Size of the model's output distribution, which may exceed the tokenizer's."""
        return self._vocab_size

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Special tokens, and ids beyond the tokenizer's vocabulary."""
        unused = range(len(self._tokenizer), self._vocab_size)
        return frozenset([*self._tokenizer.all_special_ids, *unused])

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int] | NDArray[np.int32]) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode([int(token) for token in ids]))

    def token_text(self, token_id: int) -> str:
        """The text of one token, spaces and all; a fragment of a character decodes to U+FFFD."""
        return self._texts[token_id]

    @cached_property
    def _texts(self) -> list[str]:
        known = len(self._tokenizer)
        texts = self._tokenizer.batch_decode([[token] for token in range(known)])
        return [*texts, *[""] * (self._vocab_size - known)]


def load_codec(model_path: str) -> HuggingFaceCodec:
    """The codec of a local folder or Hugging Face id; raises UserError naming `model.name`."""
    if Path(model_path).is_dir():
        # A hub look-up for a local folder can only fail or be slow.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(model_path)
        tokenizer = AutoTokenizer.from_pretrained(model_path)
    except Exception as error:
        raise UserError(
            "model.name",
            model_path,
            f"no model and tokenizer can be loaded from it ({type(error).__name__})",
            "give a local folder with config.json, weights and tokenizer, or a Hugging Face id that can be reached",
        ) from error
    return HuggingFaceCodec(tokenizer, int(config.vocab_size))
