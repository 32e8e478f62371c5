"""Text of tokens as they come: a character whose bytes are spread over tokens is told once it is whole."""

from __future__ import annotations

from collections.abc import Sequence

from common.tasks.base import TokenCodec

_PART = "\N{REPLACEMENT CHARACTER}"
"""What bytes decode to that are no whole character, or not yet."""


class TextStream:
    """All that it gives, one after the other, is the text of all its tokens."""

    def __init__(self, codec: TokenCodec) -> None:
        self._codec = codec
        self._ids: list[int] = []
        self._start = self._whole = 0
        """Tokens from `_start` on are decoded again: those up to `_whole`, all told, are what the others are behind."""
        self._told = 0
        """Characters of these tokens' text that were given."""

    def add(self, ids: Sequence[int]) -> str:
        """The text that is settled by these tokens."""
        self._ids += ids
        text = self._codec.decode(self._ids[self._start :])
        settled = text.rstrip(_PART)
        new = settled[self._told :]
        self._told += len(new)
        if settled == text:
            self._start, self._whole = self._whole, len(self._ids)
            self._told = len(self._codec.decode(self._ids[self._start :]))
        return new

    def end(self) -> str:
        """What is left: pieces of characters, if anything."""
        return self._codec.decode(self._ids[self._start :])[self._told :]


def offsets(codec: TokenCodec, ids: Sequence[int]) -> list[int]:
    """Where in the text each token's begins, in characters."""
    stream, found, length = TextStream(codec), list[int](), 0
    for token in ids:
        found.append(length)
        length += len(stream.add([token]))
    return found
