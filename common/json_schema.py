"""A JSON schema as a regular expression for texts that fit it. What can't be enforced is refused by its keyword.

Values are written in one way: properties in the schema's order, numbers without leading zeros, escapes only where a
character needs one, and no white space but for one space, or none, behind a colon or comma.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NoReturn
from urllib.parse import unquote

from common.automata import Unusable
from common.errors import UserError
from common.json_numbers import MOST_EXACT, NUMBER, either, integers, numbers
from common.json_strings import quoted, string
from common.json_values import kind, same, spanned

_TOLD = (
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "externalDocs",
)
_ANNOTATIONS = frozenset([*_TOLD, "example", "enumNames", "$comment", "$schema", "$anchor", "$defs", "definitions"])
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_ENFORCED: Mapping[str, Sequence[str]] = {
    "string": ("minLength", "maxLength", "pattern"),
    "integer": _BOUNDS,
    "number": _BOUNDS,
    "boolean": (),
    "null": (),
    "array": ("items", "minItems", "maxItems"),
    "object": ("properties", "required", "additionalProperties"),
}
"""The keywords of each type."""
_COMBINING = ("$ref", "anyOf", "oneOf", "allOf")
_COMMA, _COLON = ",[ ]?", ":[ ]?"
_WRAPPERS = ("response_format", "format", "json_schema", "schema", "function", "parameters", "input_schema")
"""Where requests to language models' services and definitions of tools hold a schema."""
_LONGEST = 1_000_000
"""Characters of an expression."""


def regex_of_schema(setting: str, schema: Any) -> str:
    """A regular expression for JSON texts that fit a schema; raises UserError naming `setting` and the keyword."""
    wrapped = _wrapped(schema)
    if wrapped:
        problem = "is a request or a tool's definition that holds a schema, and not the schema itself"
        raise UserError(setting, schema, problem, f"give what stands under {wrapped} alone")
    try:
        return _Schema(setting, schema).text(schema, "#")
    except RecursionError as error:
        raise UserError(setting, None, "is nested too deeply", "simplify it") from error


class _Schema:
    """Reads one schema, whose root `$ref` speaks of."""

    def __init__(self, setting: str, root: Any) -> None:
        self._setting, self._root = setting, root
        self._followed: list[str] = []
        """The references on the way to where it is read."""

    def _refuse(self, path: str, value: object, problem: str, remedy: str) -> NoReturn:
        raise UserError(f"{self._setting} at {path}", value, problem, remedy)

    def text(self, schema: Any, path: str) -> str:
        """Matches the texts that fit the schema at `path`."""
        found = self._text(schema, path)
        # Definitions that use each other twice double it with each.
        if len(found) > _LONGEST:
            self._refuse(path, None, "makes too long an expression", "use fewer $ref, or definitions that hold less")
        return found

    def _text(self, schema: Any, path: str) -> str:
        if not isinstance(schema, Mapping):
            self._refuse(path, schema, "doesn't say what stands there", "give a schema with a type")
        keywords = _demands(schema, path)
        for keyword in _COMBINING:
            if keyword in keywords:
                return self._combined(keyword, keywords, path)
        if "enum" in keywords or "const" in keywords:
            return either([self._literal(value, path) for value in self._values(keywords, path)])
        kinds = self._kinds(keywords, path)
        return either([getattr(self, f"_{name}")(keywords, path) for name in kinds])

    def _alone(self, keywords: Mapping[str, Any], path: str, *allowed: str) -> None:
        """Refuses what stands beside keywords that say it all."""
        for other in [keyword for keyword in keywords if keyword not in allowed]:
            self._refuse(
                f"{path}/{other}",
                keywords[other],
                f"stands beside {allowed[0]}, and both at once can't be enforced",
                f"say it within {allowed[0]}, or leave it out",
            )

    def _combined(self, keyword: str, keywords: Mapping[str, Any], path: str) -> str:
        given, here = keywords[keyword], f"{path}/{keyword}"
        self._alone(keywords, path, keyword, *(["discriminator"] if keyword in ("anyOf", "oneOf") else []))
        if keyword == "$ref":
            target = self._target(given, here)
            if given in self._followed:
                self._refuse(here, given, "leads to itself", "write it out as deep as it is wanted")
            self._followed.append(given)
            found = self.text(target, given)
            self._followed.pop()
            return found
        if not isinstance(given, list) or not given:
            self._refuse(here, given, "is no list of schemas", "give at least one")
        if keyword == "allOf" and len(given) > 1:
            self._refuse(here, given, "can't be enforced for several schemas", "write them as one")
        options = [self.text(option, f"{here}/{i}") for i, option in enumerate(given)]
        if keyword == "oneOf":
            for i, one in enumerate(given):
                for j, other in enumerate(given[:i]):
                    if not self._apart(one, other):
                        self._refuse(
                            here,
                            given,
                            f"its schemas {j} and {i} are not seen to exclude each other",
                            "use anyOf, or give them other types, or a required property with another const in each",
                        )
        return either(options)

    def _target(self, reference: Any, path: str) -> Any:
        """What a reference leads to."""
        found = self._root
        try:
            first, *steps = unquote(reference).split("/")
            for step in steps:
                step = step.replace("~1", "/").replace("~0", "~")
                found = found[int(step) if isinstance(found, list) else step]
            if first == "#":
                return found
        except (KeyError, IndexError, ValueError, TypeError):
            pass
        self._refuse(path, reference, "leads nowhere within the schema", "refer to a part of it, as #/$defs/name")

    def _kinds(self, keywords: Mapping[str, Any], path: str) -> list[str]:
        """The types that are wanted; refuses keywords that are none of theirs."""
        given = keywords.get("type")
        speaking = [name for name, own in _ENFORCED.items() if name != "integer" and keywords.keys() & set(own)]
        kinds = speaking if given is None else _types(keywords)
        if given == [] or not isinstance(kinds, list) or any(not _among(name, _ENFORCED) for name in kinds):
            self._refuse(f"{path}/type", given, "is no type of JSON", f"choose among {', '.join(_ENFORCED)}")
        enforced = ["type", "enum", "const", *_COMBINING, *(own for name in kinds for own in _ENFORCED[name])]
        for keyword in [keyword for keyword in keywords if keyword not in enforced]:
            self._refuse(
                f"{path}/{keyword}",
                keywords[keyword],
                f"can't be enforced{f' for type {given}' if given else ''}",
                f"leave it out, or say it by {', '.join(enforced)}",
            )
        if not kinds:
            self._refuse(path, None, "doesn't say what stands there", "give a type, an enum or a const")
        return list(dict.fromkeys(kinds))

    def _values(self, keywords: Mapping[str, Any], path: str) -> list[Any]:
        """Those of an enum or const that are of the type given besides."""
        keyword = "enum" if "enum" in keywords else "const"
        self._alone(keywords, path, keyword, "const", "type")
        given = keywords[keyword] if keyword == "enum" else [keywords["const"]]
        if not isinstance(given, list) or not given:
            self._refuse(f"{path}/enum", given, "is no list of values", "give at least one")
        if "type" in keywords:
            kinds = spanned(self._kinds(keywords, path))
            # What is no JSON at all is left to be refused.
            given = [value for value in given if kind(value) in {*kinds, None}]
        if keyword == "enum" and "const" in keywords:
            given = [value for value in given if same(value, keywords["const"])]
        if not given:
            self._refuse(f"{path}/{keyword}", keywords[keyword], "holds nothing that fits type or const", "mend it")
        return given

    def _literal(self, value: Any, path: str) -> str:
        """Matches this one value."""
        if isinstance(value, list):
            return rf"\[{_COMMA.join(self._literal(item, path) for item in value)}\]"
        if isinstance(value, Mapping):
            members = (quoted(self._name(k, path)) + _COLON + self._literal(v, path) for k, v in value.items())
            return rf"\{{{_COMMA.join(members)}\}}"
        if isinstance(value, str):
            return quoted(value)
        try:
            return re.escape(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            self._refuse(path, value, "is no value of JSON", "write it as a text in quotes, or leave it out")

    def _name(self, name: Any, path: str) -> str:
        if not isinstance(name, str):
            self._refuse(path, name, "is a property's name, but no text", "put it in quotes")
        return name

    def _string(self, keywords: Mapping[str, Any], path: str) -> str:
        least, most = self._counts(keywords, path, "minLength", "maxLength")
        pattern = keywords.get("pattern")
        try:
            if pattern is not None and not isinstance(pattern, str):
                raise Unusable("is no text", "give a regular expression")
            return string(least, most, pattern)
        except Unusable as error:
            self._refuse(f"{path}/pattern", pattern, error.problem, error.remedy)

    def _counts(self, keywords: Mapping[str, Any], path: str, least: str, most: str) -> tuple[int, int | None]:
        for keyword in (least, most):
            count = keywords.get(keyword, 0)
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                self._refuse(f"{path}/{keyword}", count, "is no count", "give a whole number, 0 or more")
        found = keywords.get(least, 0), keywords.get(most)
        if found[1] is not None and found[0] > found[1]:
            self._refuse(f"{path}/{most}", found[1], f"is below {least} = {found[0]}", "raise it")
        return found

    def _boolean(self, keywords: Mapping[str, Any], path: str) -> str:
        return "true|false"

    def _null(self, keywords: Mapping[str, Any], path: str) -> str:
        return "null"

    def _limits(self, keywords: Mapping[str, Any], path: str) -> dict[str, Any]:
        found = {keyword: keywords[keyword] for keyword in _BOUNDS if keyword in keywords}
        for keyword, bound in found.items():
            if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
                self._refuse(f"{path}/{keyword}", bound, "is no number", "give a number")
        return found

    def _integer(self, keywords: Mapping[str, Any], path: str) -> str:
        found = self._limits(keywords, path)
        least = [math.ceil(found["minimum"])] if "minimum" in found else []
        least += [math.floor(found["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in found else []
        most = [math.floor(found["maximum"])] if "maximum" in found else []
        most += [math.ceil(found["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in found else []
        if least and most and max(least) > min(most):
            self._refuse(path, found, "leaves no integer", "widen its bounds")
        return integers(max(least, default=None), min(most, default=None))

    def _number(self, keywords: Mapping[str, Any], path: str) -> str:
        found = self._limits(keywords, path)
        if not found:
            return NUMBER
        for keyword, bound in found.items():
            if abs(bound) > MOST_EXACT:
                self._refuse(f"{path}/{keyword}", bound, "has too many digits for a float", "give a rounder bound")
        exact = {keyword: Decimal(str(bound)) for keyword, bound in found.items()}
        least = [(exact[k], k == "exclusiveMinimum") for k in ("minimum", "exclusiveMinimum") if k in exact]
        most = [(exact[k], k == "maximum") for k in ("maximum", "exclusiveMaximum") if k in exact]
        low, over = max(least, default=(None, False))
        high, closed = min(most, default=(None, True))
        if low is not None and high is not None and (low > high or (low == high and (over or not closed))):
            self._refuse(path, found, "leaves no number", "widen its bounds")
        return numbers(low, high, over, not closed)

    def _array(self, keywords: Mapping[str, Any], path: str) -> str:
        least, most = self._counts(keywords, path, "minItems", "maxItems")
        if "items" not in keywords:
            self._refuse(path, None, "is an array that doesn't say of what", "give the schema of its items")
        item = self.text(keywords["items"], f"{path}/items")
        if most == 0:
            return r"\[\]"
        # Written once, or each array within another would double the expression: no item begins with a bracket that
        # closes, so that behind a comma another has to come, and where none stands the array ends.
        return rf"\[(?:{item}(?:{_COMMA}(?!\])|(?=\]))){{{least},{'' if most is None else most}}}\]"

    def _object(self, keywords: Mapping[str, Any], path: str) -> str:
        others = keywords.get("additionalProperties", True)
        if not isinstance(others, bool):
            self._refuse(
                f"{path}/additionalProperties", others, "can't be enforced", "list what may occur under properties"
            )
        properties, required = keywords.get("properties", {}), keywords.get("required", [])
        if not isinstance(properties, Mapping) or ("properties" not in keywords and others):
            self._refuse(path, None, "is an object that doesn't say what it holds", "list its properties")
        if not isinstance(required, list):
            self._refuse(f"{path}/required", required, "is no list of names", "give a list")
        for name in required:
            if not _among(name, properties):
                self._refuse(f"{path}/required", name, "isn't listed under properties", "list it there")
        found, behind_one = "", False
        for name, schema in properties.items():
            value = self.text(schema, f"{path}/properties/{name}")
            member = quoted(self._name(name, f"{path}/properties")) + _COLON + value
            if not found:
                separator = ""
            elif behind_one:
                separator = _COMMA
            else:
                # No property need have come before: only then does the brace stand right before this one.
                separator = rf"(?:(?<=\{{)|(?<!\{{){_COMMA})"
            found += f"{separator}{member}" if name in required else f"(?:{separator}{member})?"
            behind_one = behind_one or name in required
        return rf"\{{{found}\}}"

    def _apart(self, one: Any, other: Any) -> bool:
        """Whether it is plain that nothing fits both schemas."""
        for this, that in ((one, other), (other, one)):
            if "$ref" in this:
                return self._apart(self._target(this["$ref"], "#"), that)
            for keyword in ("anyOf", "oneOf", "allOf"):
                if keyword in this:
                    return all(self._apart(option, that) for option in this[keyword])
        listed = [self._values(_demands(s, ""), "") if s.keys() & {"enum", "const"} else None for s in (one, other)]
        kinds = [
            {kind(value) for value in values} if values is not None else spanned(_types(schema))
            for values, schema in zip(listed, (one, other), strict=True)
        ]
        if not kinds[0] & kinds[1]:
            return True
        if listed[0] is not None and listed[1] is not None:
            return not any(same(a, b) for a in listed[0] for b in listed[1])
        shared = set(one.get("required", [])) & set(other.get("required", []))
        return kinds[0] & kinds[1] == {"object"} and any(
            self._apart(one["properties"][name], other["properties"][name]) for name in shared
        )


def _demands(schema: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Its keywords without those that only tell of it."""
    # Below the root an $id would change what $ref means.
    silent = _ANNOTATIONS | {"$id"} if path == "#" else _ANNOTATIONS
    return {keyword: value for keyword, value in schema.items() if keyword not in silent and not _is_extension(keyword)}


def _is_extension(keyword: Any) -> bool:
    """Whether it is a tool's own note, as OpenAPI has them, but for the one that lets null through."""
    return isinstance(keyword, str) and keyword.startswith("x-") and keyword != "x-nullable"


def _wrapped(given: Any) -> str:
    """Where the schema stands in what only holds one, such as `json_schema.schema`; empty for a schema."""
    demanding = {*_COMBINING, "enum", "const", *(own for keywords in _ENFORCED.values() for own in keywords)}
    if not isinstance(given, Mapping) or demanding & given.keys() or _among(given.get("type"), _ENFORCED):
        return ""
    inner = [name for name, value in given.items() if isinstance(value, Mapping)]
    if len(inner) != 1 or inner[0] not in _WRAPPERS:
        return ""
    return ".".join(filter(None, [inner[0], _wrapped(given[inner[0]])]))


def _types(schema: Mapping[str, Any]) -> Any:
    """Those that it allows."""
    given = schema.get("type", list(_ENFORCED))
    return [given] if isinstance(given, str) else given


def _among(name: Any, known: Mapping[str, Any]) -> bool:
    return isinstance(name, str) and name in known
