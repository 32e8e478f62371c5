"""JSON schemas: every text that a mask lets through fits, and what can't be enforced is refused by its name."""

from __future__ import annotations

import itertools
import json
import re
from datetime import date
from decimal import Decimal
from typing import Any

import jsonschema
import numpy as np
import pytest

from common.default_model import default_model_path
from common.errors import UserError
from common.expressions import automaton_of
from common.grammar import Grammar
from common.json_numbers import integers, numbers
from common.json_schema import regex_of_schema
from common.tokens import HuggingFaceCodec, load_codec

SETTING = "task.json_schema"
INTEGER, STRING = {"type": "integer"}, {"type": "string"}


def record(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


ADDRESS = record("city", street=STRING, city=STRING, zip={"type": "string", "pattern": "^[0-9]{5}$"})
PERSON = record(
    "name",
    "age",
    name={"type": "string", "minLength": 1, "maxLength": 30},
    age={"type": "integer", "minimum": 0, "maximum": 120},
    tags={"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 5},
    score={"type": "number", "minimum": 0, "maximum": 1},
    address=ADDRESS,
)
ODD_NAMES = {
    "type": "object",
    "properties": {name: INTEGER for name in ('a"b', "c\\d", "e\nf", "g{", "é", "a.b*", "", "\x7f", "{[")},
    "required": ['a"b'],
}
TREE = {"$defs": {"leaf": record("n", n={"type": "integer", "minimum": 0})}, "$ref": "#/$defs/leaf"}
SCHEMAS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    # The schema, texts that are let through, texts that aren't.
    (INTEGER, ["0", "-7", "120"], ["-0", "01", "1.0", "1e3", "+1", ""]),
    ({"type": "integer", "minimum": 1, "maximum": 5}, ["1", "5"], ["0", "6", "-1", "10", "1.5"]),
    ({"type": "integer", "minimum": -17, "exclusiveMaximum": 1234}, ["-17", "0", "1233"], ["-18", "1234", "9999"]),
    ({"type": "integer", "exclusiveMinimum": 2.5}, ["3", "10"], ["2", "-3"]),
    ({"type": "integer", "minimum": 2**64}, [str(2**64), str(10**30)], [str(2**64 - 1)]),
    ({"type": "number"}, ["0", "-1.5", "2e10", "3.25E-7"], [".5", "1.", "01", "1e999"]),
    ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "0.5", "1", "1.0"], ["1.01", "-0.1", "2", "1e0"]),
    ({"type": "number", "exclusiveMinimum": -2.25, "exclusiveMaximum": 3}, ["-2.2", "2.999"], ["-2.25", "3", "3.0"]),
    (STRING, ['""', '"a b"', r'"\"\\\n"', '"é"'], ["a", '"\n"', '"\\x"', '"a""', '"\\"']),
    ({"type": "string", "minLength": 2, "maxLength": 4}, ['"ab"', r'"a\n\"b"'], ['"a"', '"abcde"']),
    ({"type": "string", "minLength": 30}, [json.dumps("x" * 30)], [json.dumps("x" * 29)]),
    (
        {"type": "string", "pattern": "^foo|bar$", "maxLength": 9},
        ['"foo"', '"foox"', '"a bar"', '"foobar"'],
        ['"bara"', '"xfoo"', '"foo', '""', '"foooooooooo"'],
    ),
    ({"type": "string", "pattern": "b"}, ['"abc"', '"b"'], ['""', '"ac"']),
    ({"type": "string", "pattern": r"^\d{2,3}$"}, ['"12"', '"123"'], ['"1"', '"1234"', '"٣٣"', '"a12"']),
    ({"type": "string", "pattern": r"^(?!.*bad)[a-z ]{2,9}$"}, ['"good"'], ['"so bad"', '"g"', '"Good"']),
    ({"type": "string", "pattern": r"\bcat\b"}, ['"cat"', '"a cat!"'], ['"concat"']),
    ({"type": "string", "pattern": "^[^a-z]*$", "minLength": 3}, ['"A.B"'], ['"AB"', '"a"', '"AB""', '"AB\\n"']),
    ({"type": "string", "pattern": "(?i)^yes|no$"}, ['"YES!"', '"oh No"'], ['"maybe"']),
    ({"type": "string", "pattern": r"^(a|b\.)+?.$"}, ['"ab.x"'], ['"a"', '"bx"']),
    ({"type": "string", "pattern": ""}, ['""', '"x"'], ["x"]),
    ({"type": "boolean"}, ["true", "false"], ["True", "1", '"true"']),
    ({"type": "null"}, ["null"], ["None", ""]),
    (
        {"enum": ['q"uo\\te', 3, 2**70, 1.5, None, True, {"x": [1, {"y": "z"}]}, "(a|b)*", "1\n2"]},
        [r'"q\"uo\\te"', "3", str(2**70), '{"x": [1, {"y": "z"}]}', '{"x":[1,{"y":"z"}]}', '"(a|b)*"', r'"1\n2"'],
        ["1.180591620717411e+21", '"a"', "false", '{"x": []}'],
    ),
    ({"const": 2**65 + 1}, [str(2**65 + 1)], [str(2**65), "36893488147419103000"]),
    ({"type": "string", "enum": ["a", 1, True]}, ['"a"'], ["1", "true"]),
    ({"type": "integer", "enum": [1, True, 2.5, "1"]}, ["1"], ["true", "2.5"]),
    ({"type": "string", "enum": ["a", "b"], "const": "b"}, ['"b"'], ['"a"']),
    ({"type": ["string", "null"], "maxLength": 3}, ['"abc"', "null"], ['"abcd"', "1"]),
    ({"type": "array", "items": INTEGER}, ["[]", "[1]", "[1, 2,3]"], ["[1 ,2]", "[1,]", "[,1]", "[ ]"]),
    ({"type": "array", "items": INTEGER, "minItems": 2, "maxItems": 3}, ["[1,2]", "[1,2,3]"], ["[1]", "[1,2,3,4]"]),
    ({"type": "array", "items": STRING, "maxItems": 0}, ["[]"], ['["a"]']),
    (record("age", age=INTEGER), ['{"age": 31}', '{"age":31}'], ["{}", '{"age": "x"}', '{"age": 1, "age": 2}']),
    (
        record(a=INTEGER, b=STRING, c=INTEGER),
        ["{}", '{"b": "{"}', '{"a": 1,"c": 2}'],
        ['{,"b": ""}', '{"a": 1 "c": 2}'],
    ),
    (record("b", a=INTEGER, b=STRING, c=INTEGER), ['{"b": ""}', '{"a": 1, "b": ""}'], ["{}", '{"a": 1}', '{"b": "",}']),
    (record("x", x=record(y=record("z", z=INTEGER))), ['{"x": {}}', '{"x": {"y": {"z": 1}}}'], ['{"x": {"y": {}}}']),
    (ODD_NAMES, [r'{"a\"b": 1}', r'{"a\"b": 1, "c\\d": 2, "e\nf": 3, "g{": 4, "": 5}'], ['{"a"b": 1}', '{"a.bb": 1}']),
    (record("n", n={**INTEGER, "title": "N", "description": "how many", "default": "x"}), ['{"n": 1}'], ['{"n": "x"}']),
    ({"properties": {"a": INTEGER}, "required": ["a"]}, ['{"a": 1}'], ["{}", "3"]),
    ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a": 1}']),
    ({"anyOf": [INTEGER, {"type": "string", "maxLength": 2}]}, ["12", '"ab"'], ['"abc"', "1.5"]),
    ({"oneOf": [INTEGER, STRING, {"type": "null"}]}, ["12", '"ab"', "null"], ["true"]),
    (
        {"oneOf": [record("k", k={"const": "a"}, n=INTEGER), record("k", k={"enum": ["b", "c"]}, s=STRING)]},
        ['{"k": "a", "n": 1}', '{"k": "c", "s": ""}'],
        ['{"k": "a", "s": ""}', '{"k": "d"}'],
    ),
    ({"allOf": [INTEGER]}, ["1"], ["x"]),
    (TREE, ['{"n": 1}'], ["{}", '{"n": -1}']),
    ({"type": "array", "items": {"$ref": "#/$defs/a~1b%25"}, "$defs": {"a/b%": INTEGER}}, ["[1]"], ['["a"]']),
    (
        PERSON,
        ['{"name": "Jo", "age": 31, "score": 0.5}', '{"name":"J","age":120,"tags":["a", "b"],"address":{"city":"X"}}'],
        ['{"age": 31}', '{"name": "", "age": 31}', '{"name": "J", "age": 121}', '{"name": "J", "age": 1, "score": 2}'],
    ),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), SCHEMAS, ids=lambda value: json.dumps(value)[:60])
def test_texts_are_told_apart(schema: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    pattern = re.compile(regex_of_schema(SETTING, schema))
    assert [text for text in right if not pattern.fullmatch(text)] == []
    assert [text for text in wrong if pattern.fullmatch(text)] == []
    for text in right:
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize(
    "pattern",
    [
        *("", "a", "^a|b$", "^a$", "^(?:a|b)*$", "a{2}", "^.{2}$", "[^a]", "^[^a]+$", r"\bab\b", r"^\w\W", "(?i)^A"),
        *("a(?!b)", "^(?!.*ab)", "(?=a)[ab]{2}", "a*?b+?$", "^$", "$", "a^", "$b", r"\Aa\Z", "(?s)a.b", "(a)(?P<x>b)?"),
        *("(?i:A)b$", "[]a]b", "[-b]a", r"\x61", "(?!)", "a|", "(?:^|b)a(?:$|b)", r"\d|\S{3}", "é|-", '"', "[\n-]"),
    ],
)
def test_a_pattern_is_searched_for_in_a_string_as_python_does(pattern: str) -> None:
    found = re.compile(regex_of_schema(SETTING, {"type": "string", "pattern": pattern}))
    # What is a letter or digit beyond ASCII other readers see otherwise.
    characters = "ab- 1" if "\\" in pattern else "ab- é"
    for content in map("".join, itertools.chain(*(itertools.product(characters, repeat=k) for k in range(5)))):
        wanted = re.search(pattern, content) is not None
        assert (found.fullmatch(json.dumps(content, ensure_ascii=False)) is not None) == wanted, content


@pytest.fixture(scope="module")
def codec() -> HuggingFaceCodec:
    return load_codec(str(default_model_path()))


@pytest.fixture(scope="module")
def texts(codec: HuggingFaceCodec) -> dict[int, str]:
    found = {token: codec.token_text(token) for token in range(codec.vocab_size) if token not in codec.special_ids}
    return {token: text for token, text in found.items() if "\ufffd" not in text}


@pytest.mark.parametrize("schema", [schema for schema, _, _ in SCHEMAS], ids=lambda schema: json.dumps(schema)[:60])
def test_whatever_the_mask_lets_through_fits_the_schema(
    schema: dict[str, Any], codec: HuggingFaceCodec, texts: dict[int, str]
) -> None:
    stop, random = codec.encode("\n")[0], np.random.default_rng(0)
    whole = Grammar.of(SETTING, regex_of_schema(SETTING, schema), texts, np.array(sorted(texts)), stop, 1, 60)
    grammar = whole.narrowed()
    allowed = np.array(grammar.allowed_ids)
    for _ in range(20):
        actions = list[int]()
        while (token := one_of(allowed[grammar.mask(actions)], stop, random)) != stop:
            actions.append(token)
        assert whole.accepts(np.array(actions, np.int32))
        jsonschema.Draft202012Validator(schema).validate(json.loads(codec.decode(actions)))


def one_of(tokens: np.ndarray, stop: int, random: np.random.Generator) -> int:
    """At random, but often what is short or ends the text."""
    if stop in tokens and random.random() < 0.3:
        return stop
    return int(random.choice(tokens[:200] if random.random() < 0.5 else tokens))


def at(place: str, keyword: str, value: Any) -> str:
    return re.escape(f"{SETTING} at {place}{keyword} = {value!r}")


@pytest.mark.parametrize(
    ("kind", "keyword", "value"),
    [
        ("integer", "multipleOf", 3),
        ("integer", "minLength", 3),
        ("number", "multipleOf", 0.5),
        ("string", "format", "date"),
        ("string", "contentEncoding", "base64"),
        ("string", "minimum", 1),
        ("string", "nullable", True),
        ("array", "uniqueItems", True),
        ("array", "contains", {"const": 1}),
        ("array", "prefixItems", [{"type": "null"}]),
        ("array", "unevaluatedItems", False),
        ("object", "minProperties", 1),
        ("object", "maxProperties", 1),
        ("object", "patternProperties", {}),
        ("object", "propertyNames", {"maxLength": 3}),
        ("object", "dependentRequired", {}),
        ("object", "dependencies", {}),
        ("object", "unevaluatedProperties", False),
        ("integer", "not", {"const": 1}),
        ("integer", "if", {"const": 1}),
        ("integer", "$dynamicRef", "#x"),
        ("integer", "minimun", 1),
    ],
)
def test_keywords_that_are_not_enforced_are_refused_by_name(kind: str, keyword: str, value: Any) -> None:
    own = {"items": INTEGER} if kind == "array" else {"properties": {"a": INTEGER}} if kind == "object" else {}
    schema = {"type": kind, **own, keyword: value}
    with pytest.raises(UserError, match=f"^{at('#/', keyword, value)}: can't be enforced.*; leave it out"):
        regex_of_schema(SETTING, schema)
    with pytest.raises(UserError, match=at("#/properties/x/items/", keyword, value)):
        regex_of_schema(SETTING, record(x={"type": "array", "items": schema}))
    # Without a type it is refused all the same.
    with pytest.raises(UserError, match=re.escape(keyword)):
        regex_of_schema(SETTING, {keyword: value} if keyword not in ("minimum", "minLength") else schema)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (True, "at # = True: doesn't say what stands there"),
        ({}, "at #: doesn't say what stands there; give a type"),
        ({"description": "any"}, "at #: doesn't say what stands there"),
        (record(a={}), "at #/properties/a: doesn't say"),
        (record(a=False), "at #/properties/a = False: doesn't say"),
        ([INTEGER], "at #.*doesn't say"),
        ({"type": "float"}, "at #/type = 'float': is no type of JSON; choose among string, integer"),
        ({"type": []}, r"at #/type = \[\]: is no type"),
        ({"type": [{}]}, "at #/type.*is no type"),
        ({"type": "object"}, "at #: is an object that doesn't say what it holds; list its properties"),
        ({"type": "array"}, "at #: is an array that doesn't say of what"),
        ({"type": "array", "items": [INTEGER]}, "at #/items"),
        (record("b", a=INTEGER), "at #/required = 'b': isn't listed under properties"),
        ({**record(a=INTEGER), "additionalProperties": INTEGER}, "at #/additionalProperties"),
        ({"type": "object", "properties": {1: INTEGER}}, "at #/properties = 1: is a property's name, but no text"),
        ({"allOf": [INTEGER, {"minimum": 3}]}, "at #/allOf.*can't be enforced for several"),
        ({"oneOf": [INTEGER, {"type": "number"}]}, "at #/oneOf.*schemas 0 and 1 are not seen to exclude"),
        ({"oneOf": [record("a", a=INTEGER), record("b", b=INTEGER)]}, "at #/oneOf"),
        ({"oneOf": [record(k={"const": 1}), record(k={"const": 2})]}, "at #/oneOf"),
        ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "at #/oneOf"),
        ({"oneOf": [{"properties": {"a": INTEGER}}, STRING]}, "at #/oneOf"),
        ({"oneOf": []}, "at #/oneOf.*no list of schemas"),
        ({"anyOf": [INTEGER], "minimum": 3}, "at #/minimum = 3: stands beside anyOf"),
        ({"$ref": "#/$defs/a", "$defs": {"a": INTEGER}, "minimum": 3}, "at #/minimum = 3: stands beside \\$ref"),
        ({"$ref": "#/$defs/b", "$defs": {"a": INTEGER}}, r"at #/\$ref = '#/\$defs/b': leads nowhere"),
        ({"$ref": "other.json"}, r"at #/\$ref = 'other.json': leads nowhere"),
        (record(next={"$ref": "#"}), r"\$ref = '#': leads to itself"),
        (record(a={"$id": "b", **INTEGER}), r"at #/properties/a/\$id"),
        ({"enum": []}, "at #/enum.*no list of values"),
        ({"enum": ["a"], "maxLength": 3}, "at #/maxLength = 3: stands beside enum"),
        ({"type": "string", "enum": [1]}, "at #/enum.*holds nothing that fits"),
        ({"const": float("nan")}, "is no value of JSON"),
        ({"type": "string", "enum": ["2026-01-01", date(2026, 1, 1)]}, "at # = .*date.*is no value of JSON"),
        ({"type": "integer", "minimum": "1"}, "at #/minimum = '1': is no number"),
        ({"type": "number", "exclusiveMinimum": True}, "at #/exclusiveMinimum = True: is no number"),
        ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, "leaves no integer"),
        ({"type": "number", "minimum": 2, "exclusiveMaximum": 2}, "leaves no number"),
        ({"type": "number", "maximum": 1e300}, "at #/maximum.*too many digits"),
        ({"type": "string", "minLength": -1}, "at #/minLength = -1: is no count"),
        ({"type": "string", "minLength": 4, "maxLength": 3}, "at #/maxLength = 3: is below minLength = 4"),
        ({"type": "string", "pattern": "(a"}, "at #/pattern = '\\(a': is no regular expression"),
        ({"type": "string", "pattern": r"(a)\1"}, "at #/pattern.*holds a reference to a group"),
        ({"type": "string", "pattern": 3}, "at #/pattern = 3: is no text"),
        ({"type": "string", "pattern": r"(?<=a)b"}, "at #/pattern.*holds a lookbehind"),
        ({"type": "string", "pattern": r"\p{L}"}, "at #/pattern.*is no regular expression"),
    ],
)
def test_schemas_that_cannot_be_used_are_refused(schema: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        regex_of_schema(SETTING, schema)


def nested(levels: int, inner: Any = INTEGER, **bounds: int) -> Any:
    """Arrays of arrays."""
    for _ in range(levels):
        inner = {"type": "array", "items": inner, **bounds}
    return inner


@pytest.mark.parametrize("bounds", [{}, {"minItems": 1}, {"maxItems": 1}, {"minItems": 1, "maxItems": 1}])
def test_arrays_within_arrays_add_to_the_expression_and_do_not_multiply_it(bounds: dict[str, int]) -> None:
    lengths = [len(regex_of_schema(SETTING, nested(levels, **bounds))) for levels in (20, 40, 60)]
    assert lengths[2] - lengths[1] == lengths[1] - lengths[0]
    mask = automaton_of(regex_of_schema(SETTING, nested(20, **bounds)), "[]1,")
    assert mask.accepts("[" * 20 + "1" + "]" * 20) and not mask.accepts("[" * 19 + "1" + "]" * 19)


def test_schemas_that_are_nested_too_deeply_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=f"^{re.escape(SETTING)}: is nested too deeply; simplify it$"):
        regex_of_schema(SETTING, nested(900))


def test_definitions_that_use_each_other_twice_are_refused_before_they_fill_the_memory() -> None:
    names = [f"d{i}" for i in range(60)]
    steps = {
        one: record(a={"$ref": f"#/$defs/{other}"}, b={"$ref": f"#/$defs/{other}"})
        for one, other in itertools.pairwise(names)
    }
    schema = {"$ref": "#/$defs/d0", "$defs": {**steps, "d59": INTEGER}}
    with pytest.raises(UserError, match="makes too long an expression; use fewer \\$ref"):
        regex_of_schema(SETTING, schema)


@pytest.mark.parametrize(
    ("wrapper", "place"),
    [
        ({"name": "a", "strict": True, "schema": {}}, "schema"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}, "json_schema.schema"),
        ({"type": "json_schema", "name": "a", "schema": {}}, "schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.schema",
        ),
        ({"type": "function", "function": {"name": "a", "parameters": {}}}, "function.parameters"),
        ({"name": "a", "description": "b", "input_schema": {}}, "input_schema"),
    ],
)
def test_what_only_holds_a_schema_is_told_from_one(wrapper: dict[str, Any], place: str) -> None:
    *_, last = place.split(".")
    held: Any = wrapper
    for step in place.split("."):
        whole, held = held, held[step]
    whole[last] = record("a", a=INTEGER)
    with pytest.raises(UserError, match=f"give what stands under {re.escape(place)} alone"):
        regex_of_schema(SETTING, wrapper)
    assert regex_of_schema(SETTING, whole[last])


def test_what_says_nothing_of_the_value_is_taken() -> None:
    told = {"x-order": 3, "enumNames": ["a"], "readOnly": True, "writeOnly": False, "deprecated": True, "$anchor": "a"}
    assert regex_of_schema(SETTING, record(a={**INTEGER, **told})) == regex_of_schema(SETTING, record(a=INTEGER))
    with pytest.raises(UserError, match="#/x-nullable = True: can't be enforced"):
        regex_of_schema(SETTING, {**INTEGER, "x-nullable": True})


def test_the_first_of_several_keywords_that_are_not_enforced_is_named() -> None:
    names = [f"k{i}" for i in range(20)]
    for order in (names, names[::-1]):
        with pytest.raises(UserError, match=f"at #/{order[0]} = 1: can't be enforced"):
            regex_of_schema(SETTING, {"type": "integer", **dict.fromkeys(order, 1)})


def test_integers_between_bounds_are_exactly_those() -> None:
    bounds = [None, -1204, -100, -17, -9, -1, 0, 1, 5, 9, 10, 42, 99, 100, 345, 1000]
    for least, most in itertools.product(bounds, bounds):
        if least is None or most is None or least <= most:
            pattern = re.compile(integers(least, most))
            found = [n for n in range(-1300, 1300) if pattern.fullmatch(str(n))]
            assert found == list(range(-1300 if least is None else least, 1300 if most is None else most + 1))
            assert not pattern.fullmatch("-0") and not pattern.fullmatch("05")


def test_decimals_between_bounds_are_exactly_those() -> None:
    fractions = ["." + "".join(digits) for k in (1, 2, 3) for digits in itertools.product("0259", repeat=k)]
    texts = [sign + whole + rest for sign in ("", "-") for whole in ("0", "1", "9", "10") for rest in ["", *fractions]]
    values = {text: Decimal(text) for text in texts if Decimal(text) or text[0] != "-"}
    bounds = [None, *map(Decimal, ("-10", "-2.05", "-0.5", "0", "0.25", "0.05", "1", "9.99", "10"))]
    for least, most, over, under in itertools.product(bounds, bounds, (False, True), (False, True)):
        if (least is None and most is None) or (least is not None and most is not None and least >= most):
            continue
        pattern = re.compile(numbers(least, most, over and least is not None, under and most is not None))
        found = {text for text in values if pattern.fullmatch(text)}
        high = {t for t, x in values.items() if least is None or x > least or (x == least and not over)}
        low = {t for t, x in values.items() if most is None or x < most or (x == most and not under)}
        assert found == high & low, (least, most, over, under)


def test_a_decimal_that_a_float_rounds_to_the_bound_left_out_is_not_let_through() -> None:
    pattern = re.compile(regex_of_schema(SETTING, {"type": "number", "exclusiveMaximum": 1}))
    assert pattern.fullmatch("0.99999999999999") and not pattern.fullmatch("0." + "9" * 20)
