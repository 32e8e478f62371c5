"""Templates: places, literal braces, and what is neither."""

from __future__ import annotations

import re

import pytest

from common.templates import check_template, fill, places


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{x} and {y}", "{a} and {{b}}"),
        ('{{"x": 1}} {x}', '{"x": 1} {a}'),
        ("{{{x}}}", "{{a}}"),
        ("{{x}}", "{x}"),
        ("}}{{", "}{"),
        ("no place", "no place"),
        ("{a column: with signs!}", "c"),
    ],
)
def test_values_are_filled_in_verbatim_and_doubled_braces_stand_for_one(template: str, text: str) -> None:
    values = {"x": "{a}", "y": "{{b}}", "a column: with signs!": "c"}
    assert fill(template, values.__getitem__) == text


@pytest.mark.parametrize("template", ["{{}} {x} {{{y}}} }}", "{x}{x}", ""])
def test_plain_templates_mean_what_they_mean_to_pythons_format(template: str) -> None:
    values = {"x": "1 {", "y": "}"}
    assert fill(template, values.__getitem__) == template.format(**values)


@pytest.mark.parametrize(
    ("template", "where"),
    [("a { b", "a lone { at character 3"), ("}", "a lone } at character 1"), ("{}", "a lone {"), ("{x}}", "a lone }")],
)
def test_a_lone_brace_is_refused_with_its_place_and_how_to_write_it(template: str, where: str) -> None:
    for look in (check_template, places, lambda text: fill(text, str)):
        with pytest.raises(ValueError, match=re.escape(where) + r".*twice: \{\{ or \}\}"):
            look(template)


def test_a_name_that_stands_for_nothing_is_refused_with_those_that_there_are() -> None:
    assert check_template("{low} to {high}", ("low", "high")) == "{low} to {high}"
    with pytest.raises(ValueError, match=r'\{"x": 1\} stands for nothing here, \{low\} and \{high\} is'):
        check_template('{low} {"x": 1}', ("low", "high"))


def test_places_come_once_each_in_their_order() -> None:
    assert places("{b} {a} {{c}} {b}") == ["b", "a"]


@pytest.mark.parametrize("text", ["", " "])
def test_a_template_whose_names_are_all_known_holds_a_text(text: str) -> None:
    with pytest.raises(ValueError, match="is empty"):
        check_template(text, ("low", "high"))
