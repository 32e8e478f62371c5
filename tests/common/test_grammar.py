"""Hard masks: what they allow, where they let stop, and that every sample can end."""

from __future__ import annotations

import itertools
import pickle
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from common.action_space import ActionSpace
from common.errors import UserError
from common.grammar import Grammar, regex_of_schema
from tests.tiny import VOCABULARY

STOP = VOCABULARY.index(".")
ALLOWED = [VOCABULARY.index(digit) for digit in "1234"]
COLUMNS = np.array(sorted([*ALLOWED, STOP]))


def grammar(pattern: str, min_len: int = 0, max_len: int = 4) -> Grammar:
    tokens = {token: VOCABULARY[token] for token in ALLOWED}
    return Grammar.of("task.regex", pattern, tokens, COLUMNS, STOP, min_len, max_len)


def language(pattern: str, min_len: int, max_len: int) -> set[tuple[int, ...]]:
    """By Python's own regular expressions."""
    return {
        z
        for k in range(min_len, max_len + 1)
        for z in itertools.product(ALLOWED, repeat=k)
        if re.fullmatch(pattern, "".join(VOCABULARY[token] for token in z))
    }


def reachable(mask: Grammar) -> set[tuple[int, ...]]:
    """Every rationale that the mask lets through, walked token by token; fails where a walk gets stuck."""
    found: set[tuple[int, ...]] = set()
    walks: list[tuple[int, ...]] = [()]
    while walks:
        z = walks.pop()
        allowed = COLUMNS[mask.mask(z)].tolist()
        assert allowed, f"{z} can neither go on nor end"
        for token in allowed:
            if token == STOP:
                found.add(z)
            else:
                walks.append((*z, token))
    return found


@pytest.mark.parametrize("pattern", ["1(2|3)*4", "(12|3)+", "[1-3]{2}(44)?", "1*"])
@pytest.mark.parametrize(("min_len", "max_len"), [(0, 4), (2, 3)])
def test_the_mask_lets_through_exactly_the_language_within_the_bounds(pattern: str, min_len: int, max_len: int) -> None:
    assert reachable(grammar(pattern, min_len, max_len)) == language(pattern, min_len, max_len)


def test_all_states_of_a_rationale_are_masked_as_one_by_one() -> None:
    mask, z = grammar("(12|3)+"), np.array([ALLOWED[2], ALLOWED[0], ALLOWED[1]], np.int32)
    each: list[NDArray[np.bool_]] = [mask.mask(z[:t]) for t in range(4)]
    assert (mask.allowed(z) == np.stack(each)).all()
    assert mask.stoppable(z).tolist() == [False, True, False, True]


def test_actions_outside_the_grammar_are_explained() -> None:
    space = ActionSpace(
        vocab_size=16, terminator_id=STOP, allowed_ids=tuple(COLUMNS.tolist()), max_len=4, grammar=grammar("(12|3)+")
    )
    one, two = ALLOWED[:2]
    assert space.why_invalid(np.array([one, two], np.int32)) is None
    assert space.why_invalid(np.array([one], np.int32)) == "the grammar forbids them"
    assert space.why_invalid(np.array([two], np.int32)) == "the grammar forbids them"


def test_a_schema_becomes_an_expression() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    pattern = regex_of_schema("task.json_schema", schema)
    assert re.fullmatch(pattern, '{"n": 12}') and not re.fullmatch(pattern, '{"n": "x"}')


@pytest.mark.parametrize(
    ("pattern", "max_len", "message"),
    [
        ("1234", 3, "task.max_len = 3: no rationale of 0 to 3 tokens fits the grammar"),
        ("(1", 3, "task.regex.*is no regular expression"),
        ("77", 3, "task.(regex|max_len)"),
    ],
)
def test_grammars_that_nothing_fits_are_refused(pattern: str, max_len: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        grammar(pattern, 0, max_len)


def test_an_expression_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.grammar.COMPILE_LIMIT_S", 0.0)
    with pytest.raises(UserError, match="takes longer than 0 s; write it without counted repetitions"):
        grammar("(12|3)+")


def test_a_mask_is_the_same_in_another_process() -> None:
    mask = grammar("(12)*3?", max_len=4)
    sent: Grammar = pickle.loads(pickle.dumps(mask))
    assert reachable(sent) == reachable(mask) != set()
    assert sent.mask([]).tolist() == mask.mask([]).tolist()
