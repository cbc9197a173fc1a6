"""The JSON schemas of pydantic types: what a model is asked for, and what rows hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema

from airflow_llm_provider.engine.json_schema import DECIMAL, LOCAL_TIME, MAX_DIGITS, PLACES

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import core_schema


class Schemas(GenerateJsonSchema):
    """Makes schemas as pydantic does, except for what it leaves out: decimals, local times, unstated serializers."""

    def decimal_schema(self, schema: core_schema.DecimalSchema) -> JsonSchemaValue:
        """Return a number for an answer, and a text with its digits for a row."""
        made = super().decimal_schema(schema)
        if self.mode == "validation":
            # pydantic says "a number or a text", which the API would count as a union.
            number = next(option for option in made["anyOf"] if option.get("type") == "number")
            return {**number, "format": DECIMAL}
        digits = {MAX_DIGITS: schema.get("max_digits"), PLACES: schema.get("decimal_places")}
        return {
            **made,
            "format": DECIMAL,
            **{name: value for name, value in digits.items() if value is not None},
        }

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        """Return a date and time; in a row, one that never has an offset is told from the others."""
        made = super().datetime_schema(schema)
        is_local = self.mode == "serialization" and schema.get("tz_constraint") == "naive"
        return {**made, "format": LOCAL_TIME} if is_local else made

    def ser_schema(
        self, schema: core_schema.SerSchema | core_schema.IncExSeqSerSchema | core_schema.IncExDictSerSchema
    ) -> JsonSchemaValue | None:
        """Return what a serializer gives: anything, if its function does not state what it returns."""
        made = super().ser_schema(schema)
        # pydantic would name the type of the value before it was serialized.
        return {} if made is None and schema["type"] in ("function-plain", "function-wrap") else made


def with_exact_decimals(text: str, schema: Mapping[str, Any]) -> str:
    """Return a JSON text in which numbers are texts where the type has a Decimal and a float would lose digits.

    pydantic reads every number with a point as a float first. It reads a Decimal from a text, too.

    Args:
        text: valid JSON.
        schema: of the whole, as `Schemas` makes it for validation.
    """
    data = json.loads(text, parse_float=_Written)
    return json.dumps(_exact(data, [schema], schema), ensure_ascii=False)


class _Written(float):
    """A number that remembers its text."""

    def __new__(cls, text: str) -> _Written:
        made = super().__new__(cls, text)
        made.text = text
        return made

    text: str


def _exact(data: Any, parts: Sequence[Any], root: Mapping[str, Any]) -> Any:
    found = list(_alternatives(parts, root))
    if isinstance(data, dict):
        return {name: _exact(value, list(_members(found, name)), root) for name, value in data.items()}
    if isinstance(data, list):
        return [_exact(value, list(_items(found, at)), root) for at, value in enumerate(data)]
    if not isinstance(data, _Written):
        return data
    kinds = [part for part in found if part.get("type") in ("number", "string", None)]
    # Another alternative that takes a number or a text would read the text as its own.
    if not kinds or any(part.get("format") != DECIMAL for part in kinds):
        return data
    is_lost = Decimal(data.text).as_tuple() != Decimal(repr(float(data))).as_tuple()
    return data.text if is_lost else data


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
