"""How long an answer will be, judged from its JSON schema alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from airflow_llm_provider.documents.span import Span
from airflow_llm_provider.engine.json_schema import resolve_reference
from airflow_llm_provider.engine.request import Request

_TEXT = Span(low=1, likely=300, high=math.inf)  # tokens of an answer in prose
_CHARACTERS_A_TOKEN = 3.5  # of JSON, which is denser in tokens than prose
_DEEPEST = 8  # a schema that refers to itself has no end
_ITEMS = 3  # of a list that says nothing of its length
_FORMATS = {"date": 12, "time": 16, "date-time": 27, "uuid": 38, "email": 30, "uri": 60}


def answer_tokens(request: Request) -> Span:
    """Return the tokens of an answer to `request`: the least, a usual number, the most.

    The most is below `max_tokens` only where a schema bounds every value and the model is not told to think.
    """
    if request.schema is None:
        return _TEXT.within(1, request.max_tokens)
    told = _characters(request.schema, request.schema, 0)
    thinks = request.effort is not None or "thinking" in request.extra
    tokens = Span(
        low=told.low / 8,
        likely=told.likely / _CHARACTERS_A_TOKEN,
        high=math.inf if thinks else 2 * told.high,  # it may be indented, and a token be one character
    )
    return tokens.within(1, request.max_tokens)


def _characters(schema: Any, root: Mapping[str, Any], depth: int) -> Span:
    """Return the characters of a value that fits `schema`."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return Span(low=0, likely=20, high=math.inf)
    if "$ref" in schema:
        return _characters(resolve_reference(str(schema["$ref"]), root), root, depth + 1)
    if "const" in schema or "enum" in schema:
        lengths = [len(str(option)) + 2 for option in schema.get("enum", [schema.get("const")])] or [0]
        return Span(low=min(lengths), likely=sum(lengths) / len(lengths), high=max(lengths))
    for key in ("anyOf", "oneOf"):
        if schema.get(key):
            return _one_of([_characters(part, root, depth + 1) for part in schema[key]])
    if schema.get("allOf"):
        return sum((_characters(part, root, depth + 1) for part in schema["allOf"]), Span.of(0))
    kind = schema.get("type")
    if isinstance(kind, list):
        return _one_of([_characters({**schema, "type": one}, root, depth) for one in kind])
    match kind:
        case "object":
            return _object(schema, root, depth)
        case "array":
            item = _characters(schema.get("items"), root, depth + 1) + Span.of(2)
            least, most = schema.get("minItems", 0), schema.get("maxItems", math.inf)
            usual = min(max(least, _ITEMS), most)
            return Span(
                low=2 + least * item.low,
                likely=2 + usual * item.likely,
                high=2 if most == 0 else 2 + most * item.high,
            )
        case "string":
            usual = _FORMATS.get(str(schema.get("format")), 60)
            least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
            return Span(low=2 + least, likely=2 + min(max(least, usual), most), high=2 + 2 * most)
        case "integer" | "number":
            return Span(low=1, likely=5, high=24)
        case "boolean" | "null":
            return Span(low=4, likely=5, high=5)
        case _:
            return Span(low=0, likely=20, high=math.inf)


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Span:
    required = set(schema.get("required") or ())
    properties = schema.get("properties") or {}
    whole = Span(low=2, likely=2, high=2 if properties else math.inf)  # the API takes closed objects only
    for name, part in properties.items():
        one = _characters(part, root, depth + 1) + Span.of(len(name) + 6)
        whole += one if name in required else Span(low=0, likely=one.likely, high=one.high)
    return whole


def _one_of(parts: list[Span]) -> Span:
    return Span(
        low=min(part.low for part in parts),
        likely=sum(part.likely for part in parts) / len(parts),
        high=max(part.high for part in parts),
    )
