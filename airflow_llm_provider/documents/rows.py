"""What a row is: its columns, what its data may hold, and the schema that says so."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import orjson

ColumnType: TypeAlias = Literal["text", "integer", "number", "boolean", "decimal"]

BEFORE_DATA: dict[str, ColumnType] = {"document_id": "text", "item": "integer", "outcome": "text"}
AFTER_DATA: dict[str, ColumnType] = {
    "model": "text",
    "stop_reason": "text",
    "input_tokens": "integer",
    "output_tokens": "integer",
    "cache_read_tokens": "integer",
    "cache_write_tokens": "integer",
    "cost_usd": "decimal",
    "reused": "boolean",
    "attempts": "integer",
    "repairs": "integer",
    "latency_s": "number",
    "trace_id": "text",
}


class RowDoesNotFit(ValueError):
    """A row's value can't be held by its column; the row was not taken."""


_LONG_NUMBER = re.compile(rb"\d{19}")
_JSON_TYPES = {"text": "string", "decimal": "string"}


def columns(list_type: bool) -> list[str]:
    """Return the row's columns in order; `item` (from 0) only where a list lands one row an item."""
    before = [name for name in BEFORE_DATA if list_type or name != "item"]
    return [*before, "data", *AFTER_DATA]


def refuse_unknown(row: Mapping[str, Any], known: frozenset[str]) -> None:
    """Raise RowDoesNotFit for a row with columns that rows don't have."""
    if not known.issuperset(row):
        raise RowDoesNotFit(
            f"document {row.get('document_id')!r}: unknown columns {sorted(row.keys() - known)}"
        )


def row_schema(schema: Mapping[str, Any] | None, list_type: bool) -> dict[str, Any]:
    """Return the JSON schema of one row, `schema` being that of its data (None: plain text)."""
    data = dict(schema) if schema is not None else {"type": ["string", "null"]}
    definitions = data.pop("$defs", None)
    properties: dict[str, Any] = {}
    for name in columns(list_type):
        kind = {**BEFORE_DATA, **AFTER_DATA}.get(name)
        if kind is None:
            properties[name] = data
        elif name == "document_id":
            properties[name] = {"type": "string"}
        else:
            properties[name] = {"type": [_JSON_TYPES.get(kind, kind), "null"]}
    whole: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "required": ["document_id"],
    }
    if definitions:
        whole["$defs"] = definitions  # references start at the document's top
    return whole


def data_fields(schema: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]] | None:
    """Return the fields of the data and their schemas; None when the data is no object with named fields."""
    if schema is None:
        return None
    found = resolve(schema, schema).get("properties")
    return dict(found) if found else None


def resolve(part: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow `$ref` and drop "or null": return what a value of `part` is when it is there."""
    for _ in range(32):  # a reference to itself leads nowhere
        if "$ref" in part:
            target: Any = whole
            for step in str(part["$ref"]).removeprefix("#").strip("/").split("/"):
                target = target.get(step.replace("~1", "/").replace("~0", "~"), {}) if step else target
            part = target
            continue
        options = part.get("anyOf") or part.get("oneOf") or part.get("allOf")
        if options and "type" not in part:
            real = [option for option in options if option.get("type") != "null"]
            if len(real) != 1:
                return {}
            part = real[0]
            continue
        return part
    return {}


def scalar_type(part: Mapping[str, Any]) -> ColumnType | None:
    """Return the column type of a resolved schema; None for objects, arrays and mixtures."""
    kinds = part.get("type")
    if kinds is None and ("enum" in part or "const" in part):
        values = part["enum"] if "enum" in part else [part["const"]]
        return "text" if all(isinstance(value, str) for value in values) else None
    real = [kind for kind in ([kinds] if isinstance(kinds, str) else kinds or []) if kind != "null"]
    if len(real) != 1:
        return None
    names: dict[str, ColumnType] = {
        "string": "text",
        "integer": "integer",
        "number": "number",
        "boolean": "boolean",
    }
    return names.get(real[0])


def as_json(value: object) -> str:
    """Return a value that has no column type of its own as JSON text; a text stays itself."""
    return value if isinstance(value, str) else to_json(value).decode()


def to_json(value: object) -> bytes:
    """Return a value as one line of JSON."""
    try:
        return orjson.dumps(value)
    except TypeError:
        # An answer may hold integers past 64 bits, which orjson refuses.
        return json.dumps(value, separators=(",", ":")).encode()


def from_json(raw: bytes) -> Any:
    """Return the value that `raw` is, its integers exact; raises ValueError or RecursionError for what is no JSON."""
    # orjson makes floats of integers past 64 bits; the slower standard library keeps them.
    if _LONG_NUMBER.search(raw):
        return json.loads(raw, parse_constant=_refuse)
    return orjson.loads(raw)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
