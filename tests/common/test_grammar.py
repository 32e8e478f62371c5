"""Hard masks: what they allow, where they let stop, and that every sample can end."""

from __future__ import annotations

import itertools
import pickle
import re
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.action_space import ActionSpace
from common.errors import UserError
from common.grammar import Grammar, compile_limit
from common.token_automata import over_tokens
from tests.tiny import VOCABULARY

STOP = VOCABULARY.index(".")
ALLOWED = [VOCABULARY.index(digit) for digit in "1234"]
COLUMNS = np.array(sorted([*ALLOWED, STOP]))


def grammar(pattern: str, min_len: int = 0, max_len: int = 4) -> Grammar:
    tokens = {token: VOCABULARY[token] for token in [*ALLOWED, STOP]}
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
    assert space.why_invalid(np.array([one + 8], np.int32)) == "the grammar forbids them"


@pytest.mark.parametrize(
    ("pattern", "min_len", "max_len", "message"),
    [
        ("1234", 0, 3, "task.max_len = 3: no rationale of 0 to 3 tokens fits the grammar; give 4 at least"),
        ("12?", 3, 4, "task.min_len = 3: no rationale of 3 to 4 tokens fits the grammar; lower it: 1 tokens"),
        ("(1", 0, 3, r"task.regex = '\(1': is no regular expression .*; mend it"),
        (r"(1)\1", 0, 3, "task.regex.*holds a reference to a group.*; write out"),
        ("1++2", 0, 3, "task.regex.*holds a possessive repetition.*; take its second"),
        ("77", 0, 3, "task.regex = '77': matches no text of the allowed tokens; look which characters it needs"),
        (r"1\.2", 0, 3, "task.regex.*needs the token task.terminator within.*; choose another task.terminator"),
        (r"1(?!2)2", 0, 3, "task.regex.*matches no text"),
        ("(?:1{1000}2){1000}", 0, 3, "task.regex.*makes too large an automaton; shorten its counted repetitions"),
    ],
)
def test_grammars_that_nothing_fits_are_refused_with_a_remedy(
    pattern: str, min_len: int, max_len: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        grammar(pattern, min_len, max_len)


def test_errors_show_what_the_user_gave_in_place_of_the_expression() -> None:
    tokens = {token: VOCABULARY[token] for token in ALLOWED}
    with pytest.raises(UserError, match=r"task.json_schema = \{'const': 7\}: matches no text"):
        Grammar.of("task.json_schema", "7", tokens, COLUMNS, STOP, 0, 4, shown={"const": 7})


def test_a_grammar_says_whether_the_terminator_could_stand_within() -> None:
    assert grammar(r"1[.2]?3").misses_terminator and reachable(grammar(r"1[.2]?3")) == language("12?3", 0, 4)
    assert not grammar("12?3").misses_terminator
    # Where it leads to no end nothing is missed.
    assert not grammar(r"1(2|\.(?!2)2)").misses_terminator


def test_states_that_tokens_leave_alike_are_kept_once_and_too_many_others_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("common.token_automata.MAX_EDGES", 5)
    assert reachable(grammar("[1-4]{3}")) == language("[1-4]{3}", 0, 4)
    with pytest.raises(UserError, match="makes too large an automaton over this model's tokens; shorten its counted"):
        grammar("[1-4][1-3]")


def test_a_narrowed_grammar_lets_the_same_through_over_the_tokens_that_occur() -> None:
    # 4 stands only behind more than max_len tokens, or where the text can't end.
    mask = grammar("1*2|3(1{4})4|4(?=3)1", 0, 3)
    narrow = mask.narrowed()
    assert [VOCABULARY[token] for token in narrow.allowed_ids] == sorted(["1", "2", "."], key=VOCABULARY.index)
    walks: list[tuple[int, ...]] = [()]
    for z in walks:
        full, own = COLUMNS[mask.mask(z)].tolist(), np.array(narrow.allowed_ids)[narrow.mask(z)].tolist()
        assert own == full
        walks += [(*z, token) for token in own if token != STOP]
    assert len(walks) == 6


def test_a_token_outside_of_a_narrowed_grammar_is_not_taken_for_another() -> None:
    mask = grammar("[13]+").narrowed()
    ids = {VOCABULARY[token]: token for token in ALLOWED}
    assert mask.accepts(np.array([ids["1"], ids["3"]], np.int32))
    assert not mask.accepts(np.array([ids["2"]], np.int32)) and not mask.accepts(np.array([ids["4"]], np.int32))


@pytest.mark.parametrize("pattern", ["(?:a|bc)*", "(?!.*bad)[a-z ]*", r".*\bcat\b.*", "[^b]{2}|.a$", "(?:ab|a)(?=c).+"])
def test_tokens_of_several_characters_are_walked_whole(pattern: str) -> None:
    texts = dict(enumerate(["", "a", "b", "c", "ab", "bad", "cat", " ", " c", "at", "d "]))
    stop = len(texts)
    mask = Grammar.of("task.regex", pattern, texts, np.arange(stop + 1), stop, 0, 3)
    for k in range(4):
        for z in itertools.product([token for token, text in texts.items() if text], repeat=k):
            text = "".join(texts[token] for token in z)
            assert mask.accepts(np.array(z, np.int32)) == (re.fullmatch(pattern, text) is not None), text


LONG = "[12]*1[12]{12}"
"""Takes a few seconds."""


def test_an_expression_that_takes_too_long_is_refused() -> None:
    with compile_limit(1), pytest.raises(UserError, match=r"takes longer than \d s.*; shorten its counted repetitions"):
        grammar(LONG)


def test_only_the_processor_s_own_time_counts_against_an_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(*arguments: Any) -> Any:
        time.sleep(1.5)
        return over_tokens(*arguments)

    monkeypatch.setattr("common.grammar.over_tokens", slowly)
    with compile_limit(1):
        assert grammar("1").accepts(np.array(ALLOWED[:1], np.int32))


def test_the_processes_of_a_run_have_more_time_than_its_checks() -> None:
    with compile_limit(1), pytest.raises(UserError, match=r"takes longer than \d s"):
        grammar(LONG)
    assert grammar(LONG, max_len=13).accepts(np.full(13, ALLOWED[0], np.int32))


def test_a_mask_is_the_same_in_another_process() -> None:
    mask = grammar("(12)*3?", max_len=4)
    sent: Grammar = pickle.loads(pickle.dumps(mask))
    assert reachable(sent) == reachable(mask) != set()
    assert sent.mask([]).tolist() == mask.mask([]).tolist()
