"""Answers by plain text rules: a value that fits a JSON schema, filled with spans of the document."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from airflow_llm_provider.engine.json_schema import resolve_reference
from airflow_llm_provider.testing.options import choose, holds, supported
from airflow_llm_provider.testing.question import Question
from airflow_llm_provider.testing.spans import Text, words_of
from airflow_llm_provider.testing.values import (
    BOUNDS,
    LONGEST,
    Field,
    NotFoundError,
    cut,
    number_value,
    number_values,
    pattern_of,
    read_description,
    sized,
    string_value,
    strings,
)
from airflow_llm_provider.testing.wire import ApiError, ToolUse

_DEEPEST = 12  # a schema that refers to itself is cut here, or earlier where null or nothing fits
_OPTIONAL_DEPTH = 4
_ITEMS = 3  # of a list whose schema doesn't say how many


def answer(question: Question) -> str:
    """Answer `question` from its own text: JSON when it has a schema, else the most fitting sentences.

    What tools have returned comes before the document, and instead of it where sentences are wanted.
    """
    results = "\n\n".join(question.tool_results)
    document = "\n\n".join(map(_in_lines, question.documents))
    if (schema := question.schema) is None:
        return extract(Text(results or document), question.prompt)
    try:
        text = Text(f"{results}\n\n{document}" if results else document)
        return orjson.dumps(fill(schema, text, prompt=question.prompt)).decode()
    except RecursionError:
        raise ApiError(400, "output_config.format.schema: the schema refers to itself without end") from None


def demanded_call(question: Question) -> ToolUse | None:
    """Return the call that `tool_choice` demands, its input filled like an answer; None where it demands none.

    Where any tool will do, it is the one whose name and description the document supports most.
    """
    tools = {tool["name"]: tool for tool in question.body.get("tools") or ()}
    text = Text(question.document)
    match question.tool_choice.get("type"):
        case "tool":
            name = question.tool_choice["name"]
        case "any":
            told = "; ".join(f"{name}: {tool.get('description', '')}" for name, tool in tools.items())
            name = str(choose(list(tools), text, description=told))
        case _:
            return None
    return ToolUse(name=name, input=fill(tools[name].get("input_schema", {}), text, prompt=question.prompt))


def _in_lines(document: str) -> str:
    """Return JSON data as lines of text, names and values one below the other, and other documents as they are."""
    if not document.startswith(("{", "[")):
        return document
    try:
        return "\n".join(_lines(orjson.loads(document)))
    except orjson.JSONDecodeError:
        return document


def _lines(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        for name, value in data.items():
            yield str(name)
            yield from _lines(value)
    elif isinstance(data, list):
        for item in data:
            yield from _lines(item)
    elif data is not None:
        yield str(data)


def extract(text: Text, prompt: str) -> str:
    """Return the one or two sentences of `text` that share most words with `prompt`."""
    quotes = text.best_sentences(words_of("", prompt[:2_000])[:40], 2) or [text.raw.strip()[:LONGEST]]
    return " ".join(cut(quote, LONGEST) for quote in quotes) or "The document is empty."


def fill(schema: dict[str, Any], text: Text, *, prompt: str = "") -> Any:
    """Return a value that fits `schema`, every field a span of `text` where one is found."""
    return _Filler(root=schema, prompt=prompt).value(schema, Field(name="", text=text))


@dataclass(frozen=True, kw_only=True)
class _Filler:
    root: dict[str, Any]
    prompt: str

    def value(self, schema: Any, at: Field) -> Any:
        """Fill one place of the schema, whatever its type."""
        if not isinstance(schema, dict):  # `true`, or nonsense: anything fits
            return None
        schema = self._resolved(schema)
        description, bounds = read_description(str(schema.get("description", "")))
        bounds = {
            **bounds,
            **{key: schema[key] for key in BOUNDS if isinstance(schema.get(key), int | float)},
        }
        # Parts of an anyOf inherit what was said about the whole.
        at = replace(at, description=description or at.description, bounds={**at.bounds, **bounds})
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self._option(schema["enum"], at)
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list) and schema[key]:
                return self._alternative(schema[key], at)
        return self._typed(schema, at)

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Follow `$ref` and merge `allOf`; what stands beside them wins."""
        for _ in range(_DEEPEST):
            if isinstance(reference := schema.get("$ref"), str):
                target = resolve_reference(reference, self.root)
                beside = {key: value for key, value in schema.items() if key != "$ref"}
                schema = {**(target if isinstance(target, dict) else {}), **beside}
            elif isinstance(parts := schema.get("allOf"), list):
                merged = {key: value for key, value in schema.items() if key != "allOf"}
                for some in map(self._resolved, [some for some in parts if isinstance(some, dict)]):
                    properties = {**merged.get("properties", {}), **some.get("properties", {})}
                    required = [*merged.get("required", []), *some.get("required", [])]
                    merged = {**some, **merged}
                    merged |= {"properties": properties, "required": required} if properties else {}
                schema = merged
            else:
                break
        return schema

    def _option(self, options: list[Any], at: Field) -> Any:
        real = [option for option in options if option is not None]
        if not real:
            return None
        if len(real) < len(options):
            found = supported(real, at.text, description=at.description, prompt=self.prompt)
            return found[0] if found else None
        return choose(real, at.text, description=at.description, prompt=self.prompt)

    def _alternative(self, variants: list[Any], at: Field) -> Any:
        real = [variant for variant in variants if not _is_null(variant)]
        nullable = len(real) < len(variants)
        if nullable and (at.depth > _OPTIONAL_DEPTH or not real):
            return None
        for variant in real[:-1]:
            try:
                return self.value(variant, replace(at, must=False))
            except NotFoundError:
                continue
        try:
            return self.value(real[-1], replace(at, must=not nullable and at.must))
        except NotFoundError:
            if not nullable:
                raise
            return None

    def _typed(self, schema: dict[str, Any], at: Field) -> Any:
        kind = schema.get("type")
        if isinstance(kind, list):
            return self._alternative([{**schema, "type": one} for one in kind], at)
        match kind or _guessed_type(schema):
            case "object":
                return self._object(schema, at)
            case "array":
                return self._array(schema, at)
            case "string":
                return string_value(schema, at)
            case "integer" | "number" as number:
                return number_value(at, whole=number == "integer")
            case "boolean":
                return holds(at.text, name=at.name, description=at.description)
            case _:
                return None

    def _object(self, schema: dict[str, Any], at: Field) -> dict[str, Any]:
        required = set(schema.get("required") or ())
        filled = {}
        for name, part in (schema.get("properties") or {}).items():
            # An item whose number or code is not in its sentence is none; words are always found.
            must = at.must or not pattern_of(part)
            inner = Field(name=name, text=at.text, depth=at.depth + 1, must=must)
            if name not in required:
                if at.depth > _OPTIONAL_DEPTH:
                    continue
                inner = replace(inner, must=False)
            elif at.depth > _DEEPEST:
                continue
            try:
                filled[name] = self.value(part, inner)
            except NotFoundError:
                if name in required:
                    raise
        return filled

    def _array(self, schema: dict[str, Any], at: Field) -> list[Any]:
        least, most = int(at.bounds.get("minItems", 0)), int(at.bounds.get("maxItems", _ITEMS))
        at = replace(at, bounds={}, depth=at.depth + 1)  # an item has bounds of its own
        if isinstance(parts := schema.get("prefixItems"), list):
            return [self.value(part, replace(at, must=True)) for part in parts]
        if at.depth > _DEEPEST or (at.depth > _OPTIONAL_DEPTH and not least):
            return []
        items = schema.get("items", {})
        inner = self._resolved(items) if isinstance(items, dict) else {}
        wanted = max(least, min(most, _ITEMS))
        found: list[Any] = []
        if isinstance(inner.get("enum"), list):
            found = supported(
                inner["enum"],
                at.text,
                description=at.description or inner.get("description", ""),
                prompt=self.prompt,
            )
        elif (kind := inner.get("type")) in ("integer", "number"):
            found = list(number_values(at, wanted, whole=kind == "integer"))
        elif kind == "string" and "const" not in inner:
            found = [sized(value, at) for value in strings(inner, at, wanted)]
        else:
            # One item a sentence that speaks of it; each item is filled from its own sentence.
            asked = replace(at, description=" ".join([at.description, *_asked_for(inner)]))
            for quote in at.text.best_sentences(asked.words, wanted):
                try:
                    item = self.value(items, replace(at, text=Text(quote), must=False))
                except NotFoundError:
                    continue
                if item not in found:
                    found.append(item)
        found = found[:most]
        while len(found) < least:
            found.append(self.value(items, replace(at, must=True)))
        return found


def _asked_for(schema: Mapping[str, Any]) -> list[str]:
    properties = schema.get("properties") or {}
    told = [str(schema.get("description", ""))]
    for name, part in properties.items():
        told += [name.replace("_", " "), str(part.get("description", "")) if isinstance(part, dict) else ""]
    return told


def _guessed_type(schema: Mapping[str, Any]) -> str:
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else "string"


def _is_null(schema: Any) -> bool:
    return isinstance(schema, dict) and (
        schema.get("type") == "null" or ("const" in schema and schema["const"] is None)
    )
