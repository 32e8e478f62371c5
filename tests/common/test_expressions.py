"""Regular expressions mean what they mean to Python's `re.fullmatch`, or are refused."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.automata import Unusable
from common.expressions import automaton_of

READ = [
    # What other readers of regular expressions get wrong.
    "a(?!b)",
    "a(?!b).?",
    "(?!.*ba)[ab ]*",
    r"\[[^]]*\]",
    "^ab*$",
    "^a|b$",
    "a$",
    "a$\n?",
    "a\n?$",
    "(?:^a)?b",
    # Sets.
    "[]a]+",
    "[^]a]+",
    "[a-]+",
    "[-a]+",
    "[^-a]+",
    "[a^]+",
    "[a\\]-]+",
    "[+--]+",
    r"[\w-]+",
    r"[^\W]+",
    r"[\Wa]+",
    r"[\s\S]a",
    r"[\b]a",
    r"\x61\u0062\U0000005d",
    r"\N{LATIN SMALL LETTER A}+",
    r"\141\0?",
    r"a\.b?",
    # Repetition.
    "a{2}",
    "a{,2}b",
    "a{2,}",
    "a{1,3}?b",
    "a{,b",
    "a{ 1}",
    "(?:a{2}){2}",
    "a*?b+?a??",
    "(?:a|)*b",
    "(?:a*)*b",
    "(?:a?b??){2,3}",
    "(?:){3}a",
    "(a|ab)(b|)",
    "a||b",
    "|a",
    "()a",
    "",
    # Groups and flags.
    "(?P<name>a)b",
    "(?:a)(b)",
    "a(?#what)b",
    "(?i)aB",
    "(?i:a)b",
    "(?i)[a-b]+(?-i:b)",
    "(?x) a  b # c",
    "(?s).*",
    ".*",
    "(?s:.)(?-s:.)",
    "(?m)^a$\n^b$",
    "(?m)(?:^a*$\n?)*",
    "(?m:a$).b",
    # Assertions.
    r"\Aab\Z",
    r"a\Z|\Ab",
    r"(?:a|\A)b",
    r"\bab\b",
    r".*\bab\b.*",
    r"\b",
    r"\B",
    r"a\Bb|\B-",
    r"(?:\b|a)*b",
    r"(?s).*\b",
    "(?=.*a)(?=.*b)[ab]+",
    "(?=a(?=b))..",
    "(?!a(?!b)).*",
    "(?:(?!ab).)*",
    "(?:a(?=b)|b)+",
    r"(?=\Z|a)a?",
    "(?<=a)b|ab",
    "a(?<=a)b",
    ".*(?<!a)b",
    "(?<!a)b*a",
    "..(?<=ab)(?<!bb)b?",
    "(?!)|a",
    "(?!)",
    "(?<!)a?",
]


@pytest.mark.parametrize("pattern", READ)
def test_a_pattern_takes_the_texts_that_fullmatch_takes(pattern: str) -> None:
    characters = "ab" + ("]^" if "]" in pattern else "\n-" if "-" in pattern or "\\" in pattern else "\n ")
    assert differing(pattern, characters + "B" * ("i" in pattern), 5) == []


@pytest.mark.parametrize(
    "pattern",
    [
        *(r"\d", r"\D", r"\w", r"\W", r"\s", r"\S", r"(?a)\d", r"(?a)\w", r"(?a)\W", r"(?a:\s)\S", r"(?a)\w\b."),
        *("(?i)k", "(?i)s+", "(?i)[a-z]", "(?i)[^k]", "(?i)ß", "(?i)i", "(?i)İ", "(?i)[à-ö]", "(?ia)k", "(?i)µ"),
    ],
)
def test_characters_beyond_ascii_are_read_as_python_does(pattern: str) -> None:
    assert differing(pattern, "kKKsSſßẞiIİıéÉµμ٣3²_\u00a0\u2028\x1c \n", 2) == []


def differing(pattern: str, characters: str, longest: int) -> list[str]:
    """Texts that are taken by one and refused by the other."""
    automaton, python = automaton_of(pattern, characters), re.compile(pattern)
    texts = ("".join(text) for k in range(longest + 1) for text in itertools.product(characters, repeat=k))
    return [text for text in texts if automaton.accepts(text) != (python.fullmatch(text) is not None)]


_ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\n", r"\w", r"\W", "^", "$", r"\b", r"\B", r"\A", r"\Z", ""])
_BEHIND = st.sampled_from(["(?<=a)", "(?<!a)", "(?<=ab)", "(?<!b.)", r"(?<=a|\n)"])
_PATTERNS = st.recursive(
    _ATOMS | _BEHIND,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda both: f"(?:{both[0]}|{both[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{,2}", "*?", "{1,2}?"])).map(
            lambda both: f"(?:{both[0]}){both[1]}"
        ),
        st.tuples(st.sampled_from(["(?=", "(?!", "(?m:", "(?s:", "(?i:"]), inner).map(
            lambda both: f"{both[0]}{both[1]})"
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(_PATTERNS)
def test_patterns_made_at_random_take_what_fullmatch_takes(pattern: str) -> None:
    # Repetitions within repetitions take Python itself too long.
    assume(len(re.findall(r"\)[*+{]", pattern)) < 4)
    assert differing(pattern, "ab\n-", 4) == []


@pytest.mark.parametrize(
    ("pattern", "problem", "remedy"),
    [
        ("(a", "is no regular expression .*unterminated", "mend it"),
        ("a**", "is no regular expression .*multiple repeat", "mend it"),
        ("(?<=a|bc)d", "is no regular expression .*fixed-width", "mend it"),
        ("a{99999999999}", "is no regular expression .*too large", "mend it"),
        (r"(a|b)\1", "holds a reference to a group", "alternatives"),
        ("(?P<x>a)(?P=x)", "holds a reference to a group", "alternatives"),
        ("(a)?(?(1)b|c)", "holds a condition on a group", "both cases"),
        ("[[:alpha:]]+", "holds a bracket within a set", "as in [A-Za-z]"),
        ("[^[:alpha:]]|[_[:digit:]]", "holds a bracket within a set", "as in [A-Za-z]"),
        ("a++b", "holds a possessive repetition", "lookahead"),
        ("(?>a|ab)c", "holds an atomic group", "lookahead"),
        (r"(?<=\ba)b", "holds an assertion within a lookbehind", "outside of the lookbehind"),
        ("(?:a{1000}){1000}", "makes too large an automaton", "counted repetitions"),
        (".*a.{15}", "makes too large an automaton", "counted repetitions"),
        ("(" * 3000 + ")" * 3000, "is nested too deeply", "simplify"),
    ],
)
def test_what_is_refused_is_told_with_a_remedy_that_fits(pattern: str, problem: str, remedy: str) -> None:
    with pytest.raises(Unusable) as found:
        automaton_of(pattern, "ab")
    assert re.search(problem, found.value.problem) and remedy in found.value.remedy


def test_states_that_lead_to_the_same_ends_are_one() -> None:
    # Three of the chain, one behind it, and the dead one.
    assert len(automaton_of("(?:abc|bbc|a(?=b)bc)d*", "abcd").final) == 5
