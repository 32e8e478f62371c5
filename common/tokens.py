"""A model's tokenizer, cut down to what tasks use, and checked before anything slow starts.

Many tokenizers do something at the start of a text: SentencePiece's put a space before it, and take one off when they
decode. A rationale, a target, a tool's result or a single token never stands there: it follows other text. So every
text here is a text *in context*, and the start of a text, with the BOS token where the model knows one, belongs to the
prompt alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.chat import Chat
from common.errors import UserError
from common.models import load_config, load_tokenizer, vocabulary_size

if TYPE_CHECKING:
    from common.config import ModelSection

_AT_START: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "normalizer": {"Prepend": {"prepend": ""}, "Strip": {"strip_left": False}},
    "pre_tokenizer": {"Metaspace": {"prepend_scheme": "never"}, "ByteLevel": {"add_prefix_space": False}},
    "decoder": {"Metaspace": {"prepend_scheme": "never"}, "Strip": {"start": 0}},
}
"""What the tokenizers library's components do at the start of a text, and the settings with which they don't."""


class HuggingFaceCodec:
    """`common.tasks.TokenCodec` on a Hugging Face tokenizer."""

    def __init__(self, tokenizer: Any, vocab_size: int, add_bos_token: bool | None = None) -> None:
        """Raises UserError if BOS is wanted and there is none, or if the tokenizer knows no text in context."""
        self._tokenizer, self._vocab_size, self._add_bos_token = tokenizer, vocab_size, add_bos_token
        self._encode, self._decode = _in_context(tokenizer)
        self._opening, self._opens_with_space = self._at_start(add_bos_token)

    @property
    def vocab_size(self) -> int:
        """Size of the model's output distribution, which may exceed the tokenizer's."""
        return self._vocab_size

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Special tokens, and ids that stand for nothing, such as those beyond the tokenizer's vocabulary."""
        backend = _backend(self._tokenizer)
        added = {} if backend is None else backend.get_added_tokens_decoder()
        special = [token for token, what in added.items() if what.special]
        silent = [token for token, text in enumerate(self._texts) if not text]
        return frozenset([*self._tokenizer.all_special_ids, *special, *silent])

    @property
    def opening_ids(self) -> list[int]:
        """The tokens that open every prompt, BOS where there is one."""
        return list(self._opening)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that stands behind other text, nothing added. Raises UserError for half characters."""
        _check_whole(text)
        return self._encode(text)

    def decode(self, ids: Sequence[int] | NDArray[np.int32]) -> str:
        """What token ids add to the text before them."""
        return self._decode([int(token) for token in ids])

    def token_text(self, token_id: int) -> str:
        """What one token adds to the text before it, spaces and all; a piece of a character decodes to U+FFFD."""
        return self._texts[token_id]

    def encode_prompt(self, text: str, last: int | None = None) -> list[int]:
        """Token ids of a text with nothing before it, opened as the tokenizer does, BOS and all; of a longer one the
        last so many, behind the same opening. None for no text. Raises UserError for half characters."""
        _check_whole(text)
        ids, opening = self._from_start(text), self._opening
        if not ids:
            return []
        if ids[: len(opening)] == opening:
            # The text says so itself: once is enough.
            ids = ids[len(opening) :]
        return [*opening, *(ids if last is None else ids[-last:])]

    def decode_prompt(self, ids: Sequence[int] | NDArray[np.int32]) -> str:
        """The text of ids that begin with a prompt's: `encode_prompt` undone."""
        found, opening = [int(token) for token in ids], self._opening
        text = self._decode(found[len(opening) :] if found[: len(opening)] == opening else found)
        return text.removeprefix(" ") if self._opens_with_space else text

    def chat(self, system: str | None, variables: Mapping[str, Any]) -> Chat:
        """How conversations are rendered; raises UserError naming `task.chat`."""
        return Chat(self._tokenizer, system, variables, self._add_bos_token)

    def _from_start(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _at_start(self, add_bos_token: bool | None) -> tuple[list[int], bool]:
        """The tokens that open a text, and whether the tokenizer puts a space before it."""
        ordinary = (text for token, text in enumerate(self._texts) if token not in self.special_ids)
        word = next((text for text in ordinary if text.isascii() and text.isalnum()), "a")
        plain, whole = self._from_start(word), list(self._tokenizer(word)["input_ids"])
        # Behind the text some tokenizers put EOS, which would end it.
        opening = whole[: next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)]
        if add_bos_token is False:
            opening = []
        elif add_bos_token:
            bos = self._tokenizer.bos_token_id
            if bos is None:
                raise UserError(
                    "model.add_bos_token", True, "the model's tokenizer has no BOS token", "leave it out, or set false"
                )
            opening = opening if bos in opening else [int(bos)]
        return opening, self._decode(plain) == f" {word}"

    @cached_property
    def _texts(self) -> list[str]:
        known = self._vocab_size
        if _backend(self._tokenizer) is None:
            # It raises beyond its vocabulary, where the others give no text.
            known = min(len(self._tokenizer), known)
        return [*(self._decode([token]) for token in range(known)), *[""] * (self._vocab_size - known)]


def _backend(tokenizer: Any) -> Any:
    """The tokenizers library's part of a tokenizer; None if it has none."""
    return getattr(tokenizer, "backend_tokenizer", None)


def _in_context(tokenizer: Any) -> tuple[Callable[[str], list[int]], Callable[[list[int]], str]]:
    """How a text behind other text is encoded, and how ids behind other ids are decoded."""
    if _backend(tokenizer) is not None:
        inner = _without_start(_backend(tokenizer))
        return (
            lambda text: list(inner.encode(text, add_special_tokens=False).ids),
            lambda ids: str(inner.decode(ids, skip_special_tokens=False)),
        )

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    # Written in Python, such as that for Mistral's tekken.json: nothing can be turned off in it.
    if any(decode(encode(text)) != text for text in ("a", " a", ".", " .")):
        raise UserError(
            "model.name",
            type(tokenizer).__name__,
            "this kind of tokenizer can't say how a text goes on",
            "give a model with a tokenizer.json",
        )
    return encode, decode


def _without_start(backend: Any) -> Any:
    """The same tokenizer of the tokenizers library, that does nothing at the start of a text."""
    backend.no_truncation()
    backend.no_padding()
    parts = {name: _state(getattr(backend, name)) for name in _AT_START}
    edited = {name: _edited(part, _AT_START[name]) for name, part in parts.items()}
    if edited == parts:
        return backend
    found = type(backend).from_str(json.dumps({**json.loads(backend.to_str()), **edited}))
    found.encode_special_tokens = backend.encode_special_tokens
    return found


def _state(component: Any) -> Any:
    return None if component is None else json.loads(component.__getstate__())


def _edited(part: Any, settings: Mapping[str, dict[str, Any]]) -> Any:
    """A component, or a sequence of them, with the settings of its kind in place."""
    if part is None:
        return None
    own = {**part, **settings.get(part["type"], {})}
    for key in {"normalizers", "pretokenizers", "decoders"} & own.keys():
        inner = [_edited(item, settings) for item in own[key]]
        if any(item["type"] == "Metaspace" for item in inner):
            # A split at white space takes the spaces away, and Metaspace puts them back as if each word were a start.
            inner = [item for item in inner if item["type"] != "WhitespaceSplit"]
        own[key] = inner
    return own


def load_codec(model_path: str, add_bos_token: bool | None = None) -> HuggingFaceCodec:
    """The codec of a local folder or Hugging Face id, which opens prompts as `model.add_bos_token` says.

    Raises UserError naming the setting.
    """
    if Path(model_path).is_dir():
        # A hub look-up for a local folder can only fail or be slow.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    vocab_size = vocabulary_size(model_path, load_config(model_path))
    return HuggingFaceCodec(load_tokenizer(model_path), vocab_size, add_bos_token)


def codec_of(section: ModelSection) -> HuggingFaceCodec:
    """The codec of a run's model; raises UserError naming the setting."""
    assert section.name is not None
    return load_codec(section.name, section.add_bos_token)


def _check_whole(text: str) -> None:
    """A terminal that isn't set to UTF-8, or a cut string, gives halves of characters, which nothing encodes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = text.encode(errors="backslashreplace").decode()
        problem = f"holds half a character (a lone surrogate) at place {error.start}"
        raise UserError("text", shown, problem, "write it in UTF-8") from error
