"""Codecs of every kind of tokenizer, on the vocabularies of real models."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common.default_model import default_model_path
from common.tokens import HuggingFaceCodec, load_codec

BYTE_LEVEL = ("byte-level", "byte-level, a space before", "tekken")
SENTENCEPIECE = (
    "sentencepiece",
    "sentencepiece, legacy",
    "sentencepiece, normalizers",
    "sentencepiece, no space before",
    "unigram",
)
"""Their pieces, those of Mistral 7B, write a space as ▁, and fall back on bytes."""
KINDS = (*BYTE_LEVEL, *SENTENCEPIECE, "unigram, no bytes")


def pieces_path(name: str = "tokenizer.model.v1") -> Path:
    """A file of Mistral's tokenizers, which vLLM's own dependencies carry."""
    import mistral_common

    return Path(mistral_common.__file__).parent / "data" / name


@lru_cache(maxsize=2)
def pieces(*, space_before: bool = True) -> Any:
    """Mistral 7B's tokenizer by the library that made it, as it is or without a space before texts."""
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(pieces_path().read_bytes())
    model.normalizer_spec.add_dummy_prefix = space_before
    return SentencePieceProcessor(model_proto=model.SerializeToString())


def save_sentencepiece(folder: Path, **settings: Any) -> Path:
    """The tokenizer's part of a Llama's folder."""
    shutil.copy(pieces_path(), folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **settings}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 32_000}))
    return folder


@lru_cache(maxsize=len(KINDS))
def codec_of_kind(kind: str) -> HuggingFaceCodec:
    """A codec, made once."""
    if kind == "byte-level":
        return load_codec(str(default_model_path()))
    with TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "tekken":
            shutil.copy(pieces_path("tekken_240718.json"), folder / "tekken.json")
            (folder / "config.json").write_text(json.dumps({"model_type": "mistral", "vocab_size": 131_072}))
            return load_codec(name)
        if kind in ("sentencepiece", "sentencepiece, legacy"):
            return load_codec(str(save_sentencepiece(folder, add_bos_token=True, legacy=kind.endswith("legacy"))))
        tokenizer = _made(kind, save_sentencepiece(folder))
        return HuggingFaceCodec(tokenizer, len(tokenizer))


def _made(kind: str, folder: Path) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import AutoTokenizer, GemmaTokenizer, PreTrainedTokenizerFast, XGLMTokenizer

    if kind == "byte-level, a space before":
        backend = AutoTokenizer.from_pretrained(str(default_model_path())).backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        return PreTrainedTokenizerFast(tokenizer_object=backend)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    scored = [(pieces().id_to_piece(i), pieces().get_score(i)) for i in range(pieces().vocab_size())]
    if kind == "unigram, no bytes":
        unknown, begin, end, *others = scored
        return XGLMTokenizer([begin, ("<pad>", 0.0), end, unknown, *others], **{**special, "pad_token": "<pad>"})
    backend = AutoTokenizer.from_pretrained(str(folder)).backend_tokenizer
    if kind == "sentencepiece, no space before":
        model = json.loads(backend.to_str())["model"]
        merges = [tuple(merge) for merge in model["merges"]]
        return GemmaTokenizer(model["vocab"], merges, mask_token="</s>", add_bos_token=True, **special)
    if kind == "unigram":
        backend = Tokenizer(models.Unigram(scored, 0, byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    else:
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # EOS behind a text is what some tokenizers add too, and no prompt's.
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    # And some tidy the spaces before marks of what they decode, which the codec must not.
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=True, **special)
