"""An answer's data, changed along its schema: decimals to the digit, listed values in their spelling."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

from airflow_llm_provider.engine.json_schema import DECIMAL


def with_exact_decimals(text: str, schema: Mapping[str, Any]) -> str:
    """Return a JSON text in which numbers are texts where the type has a Decimal and a float would lose digits.

    pydantic reads every number with a point as a float first. It reads a Decimal from a text, too.

    Args:
        text: valid JSON.
        schema: of the whole, as `Schemas` makes it for validation.
    """
    data = json.loads(text, parse_float=_Written)
    return json.dumps(_changed(data, [schema], schema, _exact), ensure_ascii=False)


def with_listed_spelling(text: str, schema: Mapping[str, Any]) -> str:
    """Return a JSON text in which texts that differ from a listed value by their capitals alone are that value.

    The API holds answers to the values of an enum, but not to their capitals:
    https://platform.claude.com/docs/en/build-with-claude/structured-outputs, "Enum value casing".

    Args:
        text: valid JSON.
        schema: of the whole.
    """
    data = json.loads(text, parse_float=_Written)
    listed = _changed(data, [schema], schema, _listed)
    return json.dumps(_changed(listed, [schema], schema, _exact), ensure_ascii=False)


class _Written(float):
    """A number that remembers its text."""

    def __new__(cls, text: str) -> _Written:
        made = super().__new__(cls, text)
        made.text = text
        return made

    text: str


_Change: TypeAlias = Callable[[Any, Sequence[Mapping[str, Any]]], Any]


def _changed(data: Any, parts: Sequence[Any], root: Mapping[str, Any], change: _Change) -> Any:
    """Return data with each of its values changed, which gets the value and the schemas that it may fit."""
    found = list(_alternatives(parts, root))
    if isinstance(data, dict):
        return {
            name: _changed(value, list(_members(found, name)), root, change) for name, value in data.items()
        }
    if isinstance(data, list):
        return [_changed(value, list(_items(found, at)), root, change) for at, value in enumerate(data)]
    return change(data, found)


def _exact(value: Any, parts: Sequence[Mapping[str, Any]]) -> Any:
    if not isinstance(value, _Written):
        return value
    kinds = [part for part in parts if part.get("type") in ("number", "string", None)]
    # Another alternative that takes a number or a text would read the text as its own.
    if not kinds or any(part.get("format") != DECIMAL for part in kinds):
        return value
    is_lost = Decimal(value.text).as_tuple() != Decimal(repr(float(value))).as_tuple()
    return value.text if is_lost else value


def _listed(value: Any, parts: Sequence[Mapping[str, Any]]) -> Any:
    if not isinstance(value, str):
        return value
    lists = [
        part["enum"] if "enum" in part else [part["const"]]
        for part in parts
        if part.keys() & {"enum", "const"}
    ]
    listed = {each for values in lists for each in values if isinstance(each, str)}
    near = [each for each in listed if each.casefold() == value.casefold()]
    takes_any_text = len(lists) < len([part for part in parts if part.get("type") in ("string", None)])
    return near[0] if len(near) == 1 and not takes_any_text else value


def _alternatives(
    parts: Sequence[Any], root: Mapping[str, Any], seen: int = 0
) -> Iterator[Mapping[str, Any]]:
    """Yield the schemas that a value may fit, without references and unions."""
    for part in parts:
        if not isinstance(part, Mapping) or seen > 32:  # a definition that refers to itself alone
            continue
        if "$ref" in part:
            inner = [root.get("$defs", {}).get(part["$ref"].removeprefix("#/$defs/"))]
        else:
            inner = [each for keyword in ("anyOf", "oneOf", "allOf") for each in part.get(keyword, ())]
        if inner:
            yield from _alternatives(inner, root, seen + 1)
        else:
            yield part


def _members(parts: Sequence[Mapping[str, Any]], name: str) -> Iterator[Any]:
    for part in parts:
        properties = part.get("properties", {})
        yield properties[name] if name in properties else part.get("additionalProperties")


def _items(parts: Sequence[Mapping[str, Any]], at: int) -> Iterator[Any]:
    for part in parts:
        prefix = part.get("prefixItems", ())
        yield prefix[at] if at < len(prefix) else part.get("items")
