"""JSON strings as regular expressions: their characters, their lengths, and the schema keyword `pattern`."""

from __future__ import annotations

import json
import re

# As in `common.expressions`: Python's own parser says what a pattern means.
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from common.automata import Unusable
from common.expressions import parsed, unusable

PLAIN = r'[^"\\\x00-\x1f]'
"""A character that stands for itself."""
_ESCAPED = r'\\["\\bfnrt]'
_ANCHORS = {
    _constants.AT_BEGINNING: '(?<=")',
    _constants.AT_BEGINNING_STRING: '(?<=")',
    _constants.AT_END: '(?=")',
    _constants.AT_END_STRING: '(?=")',
    _constants.AT_BOUNDARY: r"\b",
}
"""Within the quotes, where no plain character is one."""
_CATEGORIES = {
    _constants.CATEGORY_DIGIT: r"\d",
    _constants.CATEGORY_NOT_DIGIT: r"\D",
    _constants.CATEGORY_SPACE: r"\s",
    _constants.CATEGORY_NOT_SPACE: r"\S",
    _constants.CATEGORY_WORD: r"\w",
    _constants.CATEGORY_NOT_WORD: r"\W",
}


def quoted(text: str) -> str:
    """Matches a string of exactly this text."""
    return re.escape(json.dumps(text, ensure_ascii=False))


def string(least: int, most: int | None, pattern: str | None) -> str:
    """Matches strings of so many characters in which `pattern` is found; raises Unusable.

    With a pattern they hold only characters that need no escape.
    """
    count = "*" if (least, most) == (0, None) else f"{{{least},{'' if most is None else most}}}"
    if pattern is None:
        return f'"(?:{PLAIN}|{_ESCAPED}){count}"'
    return f'"{_found(pattern)}{PLAIN}{count}"'


def _found(pattern: str) -> str:
    """A lookahead behind the opening quote for a string in which the pattern is found."""
    try:
        tree = parsed(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise Unusable(f"is no regular expression ({error})", "mend it: it is read as Python's re does") from error
    flags, within = _letters(tree.state.flags & ~re.UNICODE), _written(tree)
    found = f"(?={PLAIN}*(?{flags}:{within}))"
    # To Python \d is a digit of any script, to ECMAScript one of 0 to 9: what both find is right to either.
    return found if "a" in flags or not re.search(r"\\[bdDsSwW]", within) else f"{found}(?a:{found})"


_FLAGS = re.IGNORECASE | re.DOTALL | re.ASCII | re.UNICODE
"""VERBOSE is done with when it is parsed, and without line feeds MULTILINE means nothing."""


def _written(items: Any) -> str:
    """Parsed items written as an expression for what stands between quotes."""
    return "".join(_one(kind, value) for kind, value in items)


def _one(kind: Any, value: Any) -> str:
    if kind is _constants.LITERAL:
        return _character(value) if re.match(PLAIN, chr(value)) else "(?!)"
    if kind in (_constants.NOT_LITERAL, _constants.ANY, _constants.IN):
        return f"(?:(?={PLAIN}){_set(kind, value)})"
    if kind is _constants.BRANCH:
        return f"(?:{'|'.join(map(_written, value[1]))})"
    if kind is _constants.SUBPATTERN:
        _, added, removed, inner = value
        without = _letters(removed)
        return f"(?{_letters(added)}{'-' if without else ''}{without}:{_written(inner)})"
    if kind in (_constants.MAX_REPEAT, _constants.MIN_REPEAT):
        least, most, inner = value
        return f"(?:{_written(inner)}){{{least},{'' if most is _constants.MAXREPEAT else most}}}"
    if kind in (_constants.ASSERT, _constants.ASSERT_NOT) and value[0] > 0:
        return f"(?{'=' if kind is _constants.ASSERT else '!'}{_written(value[1])})"
    if kind is _constants.FAILURE:
        return "(?!)"
    if kind is _constants.AT and value in _ANCHORS:
        return _ANCHORS[value]
    if kind in (_constants.ASSERT, _constants.ASSERT_NOT, _constants.AT):
        raise Unusable(
            "holds a lookbehind or \\B, which can't be followed within a JSON string",
            "say it by lookaheads from the start, ^(?=…) and ^(?!…)",
        )
    raise unusable(kind)


def _letters(flags: int) -> str:
    return "".join(letter for letter, flag in _parser.FLAGS.items() if flag & flags & _FLAGS)


def _set(kind: Any, value: Any) -> str:
    if kind is _constants.ANY:
        return "."
    if kind is _constants.NOT_LITERAL:
        return f"[^{_character(value)}]"
    return "[" + "".join(_member(*member) for member in value) + "]"


def _member(kind: Any, value: Any) -> str:
    if kind is _constants.NEGATE:
        return "^"
    if kind is _constants.CATEGORY:
        return _CATEGORIES[value]
    if kind is _constants.RANGE:
        return f"{_character(value[0])}-{_character(value[1])}"
    return _character(value)


def _character(code: int) -> str:
    """By its number, as no character means itself everywhere."""
    return f"\\U{code:08x}"
