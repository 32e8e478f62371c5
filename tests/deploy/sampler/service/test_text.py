"""Text that comes token by token is the text of all of them, whatever a character's bytes are spread over."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.tokens import HuggingFaceCodec
from deploy.sampler.service.text import TextStream, offsets
from tests.vocabularies import KINDS, codec_of_kind

TEXT = " a 12.5 €  né 中文字 🦜🏽 ok"


def streamed(codec: HuggingFaceCodec, ids: list[int]) -> list[str]:
    stream = TextStream(codec)
    return [*(stream.add([token]) for token in ids), stream.end()]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "unigram, no bytes"])
def test_characters_of_several_tokens_come_whole_with_every_kind_of_tokenizer(kind: str) -> None:
    codec = codec_of_kind(kind)
    ids = codec.encode(TEXT)
    pieces = streamed(codec, ids)
    assert "".join(pieces) == codec.decode(ids) and "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    # Not all at the end, and not before it is whole.
    assert pieces[0] and pieces.count("") > 1 and len(pieces) == len(ids) + 1


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 49_151) | st.integers(17, 260), max_size=30), st.integers(1, 5))
def test_any_tokens_of_bytes_add_up_to_their_text(ids: list[int], at_a_time: int) -> None:
    codec, stream = codec_of_kind("byte-level"), None
    stream = TextStream(codec)
    pieces = [stream.add(ids[i : i + at_a_time]) for i in range(0, len(ids), at_a_time)]
    assert "".join(pieces) + stream.end() == codec.decode(ids)


def test_offsets_say_where_each_token_begins() -> None:
    codec = codec_of_kind("byte-level")
    ids = codec.encode(" one two")
    text = codec.decode(ids)
    ends = [*offsets(codec, ids)[1:], len(text)]
    assert [text[a:b] for a, b in zip(offsets(codec, ids), ends, strict=True)] == [codec.token_text(i) for i in ids]
