"""The stand-in's answers by plain text rules: values that fit a JSON schema, found in the document."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import orjson

from airflow_llm_provider.engine.json_schema import resolve_reference
from airflow_llm_provider.testing.question import Question
from airflow_llm_provider.testing.text import (
    FINDERS,
    STOP_WORDS,
    Span,
    Text,
    Words,
    choose,
    holds,
    supported,
    words_of,
)
from airflow_llm_provider.testing.wire import ApiError, ToolUse

_DEEPEST = 12  # a schema that refers to itself ends here, or earlier if null or nothing fits
_OPTIONAL_DEPTH = 4
_ITEMS = 3  # of a list whose schema does not say how many
BOUNDS = re.findall(
    r"\w+",
    "maxLength minLength maximum minimum exclusiveMaximum exclusiveMinimum maxItems minItems multipleOf",
)

LONGEST = 300  # characters of a quote
_NOTE = re.compile(r"\{[^{}]*\w+: .*\}\s*$", re.DOTALL)  # anthropic.transform_schema moves bounds here
_BOUND = re.compile(rf"\b({'|'.join(BOUNDS)}): (-?\d+(?:\.\d+)?)")
_PATTERN = re.compile(r"\bpattern: (.+?)(?=, [a-zA-Z]+: |\}\s*$)", re.DOTALL)
_FORMAT = re.compile(r"\bformat: ([\w-]+)")
_MONEY_WORDS = frozenset(
    re.findall(
        r"\w+",
        "amount total price cost fee sum salary rent payment due balance subtotal tax vat usd eur gbp money",
    )
)
_NAME_WORDS = frozenset(
    re.findall(
        r"\w+",
        "name author holder owner party person vendor supplier customer client company organization"
        " organisation licensor licensee seller buyer signatory sender recipient who employer employee tenant"
        " landlord city country",
    )
)
_DATE_WORDS = frozenset(["date", "day", "deadline", "expiry", "expires", "when", "dated"])
_KINDS: Mapping[
    str, frozenset[str]
] = {  # the kind of span for a string field whose name has one of these words
    "email": frozenset(["email", "emails", "mail"]),
    "uri": frozenset(["url", "urls", "uri", "link", "links", "website", "homepage"]),
    "date-literal": _DATE_WORDS,
    "money-literal": _MONEY_WORDS,
    "name": _NAME_WORDS,
}
_SURE_WORDS = frozenset(["confidence", "probability", "certainty"])
_STAND_INS: Mapping[str, str] = {  # values of formats that the document has no example of
    "date": "1970-01-01",
    "date-time": "1970-01-01T00:00:00Z",
    "time": "00:00:00",
    "email": "nobody@example.invalid",
    "uri": "https://example.invalid/",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "hostname": "example.invalid",
    "duration": "P0D",
}


def answer(question: Question) -> str:
    """Answer `question` from its own text: JSON if it has or describes a schema, else the sentences that fit best.

    Tool results come before the document. Without a schema they are used instead of it.
    """
    results = "\n\n".join(question.tool_results)
    document = "\n\n".join(map(_in_lines, question.documents))
    if (schema := question.schema or question.described_schema) is None:
        return extract(Text(results or document), question.prompt)
    try:
        text = Text(f"{results}\n\n{document}" if results else document)
        return orjson.dumps(fill(schema, text, prompt=question.prompt)).decode()
    except RecursionError:
        raise ApiError(400, "output_config.format.schema: the schema refers to itself without end") from None


def demanded_call(question: Question) -> ToolUse | None:
    """Return the call that `tool_choice` demands, its input filled like an answer; None if it demands none.

    If any tool may be called, it is the one whose name and description the document supports most.
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
    """Return JSON data as lines of text, one name or value per line; return other documents unchanged."""
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
    """Return the one or two sentences of `text` that share the most words with `prompt`."""
    quotes = text.best_sentences(words_of("", prompt[:2_000])[:40], 2) or [text.raw.strip()[:LONGEST]]
    return " ".join(cut(quote, LONGEST) for quote in quotes) or "The document is empty."


def fill(schema: dict[str, Any], text: Text, *, prompt: str = "") -> Any:
    """Return a value that fits `schema`; each field is a span of `text` if one is found."""
    return _Filler(root=schema, prompt=prompt).value(schema, Field(name="", text=text))


@dataclass(frozen=True, kw_only=True)
class _Filler:
    root: dict[str, Any]
    prompt: str

    def value(self, schema: Any, at: Field) -> Any:
        """Fill one place of the schema."""
        if not isinstance(schema, dict):  # `true`, or not a schema: anything fits
            return None
        schema = self._resolved(schema)
        description, bounds = read_description(str(schema.get("description", "")))
        bounds = {
            **bounds,
            **{key: schema[key] for key in BOUNDS if isinstance(schema.get(key), int | float)},
        }
        # Parts of an anyOf inherit the description and bounds of the whole.
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
        """Follow `$ref` and merge `allOf`; keywords beside them override them."""
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
            # A sentence without the item's number or code has no such item; words are always found.
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
        at = replace(at, bounds={}, depth=at.depth + 1)  # items have bounds of their own
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
            # One item per sentence that has its words; each item is filled from its own sentence.
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


class NotFoundError(Exception):
    """The text has no value for this field; null is used if the schema allows it."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """One place of the schema, and the text to fill it from."""

    name: str
    text: Text
    description: str = ""
    depth: int = 0
    bounds: Mapping[str, float] = field(default_factory=dict)
    must: bool = True  # False if null is allowed: then no value is invented

    @property
    def words(self) -> Words:
        """Return the words to search for."""
        return words_of(self.name, self.description)

    def names_one_of(self, words: frozenset[str]) -> bool:
        """Tell whether the field's name has one of `words`."""
        return not words.isdisjoint(word for word, weight in self.words if weight > 1) or any(
            part in words for part in re.split(r"[\W_]+", self.name.lower())
        )


def strings(schema: dict[str, Any], at: Field, count: int) -> list[str]:
    """Return up to `count` literal spans of the text: by pattern, format or field name, else sentences."""
    if (pattern := pattern_of(schema)) and ((found := _matching(pattern, at.text.raw, count)) or not at.must):
        return found
    form = schema.get("format") or _first_group(_FORMAT, _note_of(schema))
    kind = str(form) if form in FINDERS or form in _STAND_INS else _kind_by_name(at)
    if kind in FINDERS:
        spans = at.text.spans(kind, at.words)
        values = (span.value for span in (_real_names(spans, at.words) if kind == "name" else spans))
        written = (value.isoformat() if isinstance(value, date) else str(value) for value in values)
        if distinct := list(islice(dict.fromkeys(islice(written, 4 * count)), count)):
            return distinct
    if form == kind:
        return []
    return at.text.best_sentences(at.words, count)


def pattern_of(schema: Any) -> str:
    """Return the pattern that a string has to match; empty if there is none."""
    if not isinstance(schema, dict):
        return ""
    return str(schema.get("pattern") or _first_group(_PATTERN, _note_of(schema)) or "")


def string_value(schema: dict[str, Any], at: Field) -> str:
    """Return the best of `strings` within its bounds; without any, a value that fits."""
    found = strings(schema, at, 1)
    if not found and not at.must:
        raise NotFoundError
    form = schema.get("format")
    return sized(found[0] if found else _STAND_INS.get(str(form)) or _first_sentence(at.text), at)


def number_values(at: Field, count: int, *, whole: bool) -> list[float | int]:
    """Return up to `count` numbers of the text within bounds, first those near the field's words."""
    if at.names_one_of(_SURE_WORDS):
        return [1 if whole else 0.9]
    found: list[float | int] = []
    money = at.text.spans("money", at.words) if at.names_one_of(_MONEY_WORDS) else iter(())
    for span in chain(money, at.text.spans("number", at.words)):
        assert isinstance(span.value, float)
        value = int(span.value) if whole and span.value.is_integer() else span.value
        if _within(span.value, at.bounds) and (not whole or isinstance(value, int)) and value not in found:
            found.append(value)
            if len(found) == count:
                break
    return found


def number_value(at: Field, *, whole: bool) -> float | int:
    """Return the best of `number_values`; without any, the lowest number that fits."""
    if found := number_values(at, 1, whole=whole):
        return found[0]
    if not at.must:
        raise NotFoundError
    return _least(at.bounds, whole=whole)


def _note_of(schema: Mapping[str, Any]) -> str:
    """Return the part of a description to which the SDK moved what the API does not enforce."""
    note = _NOTE.search(str(schema.get("description", "")))
    return note[0] if note else ""


def _kind_by_name(at: Field) -> str:
    return next((kind for kind, words in _KINDS.items() if at.names_one_of(words)), "")


def _first_group(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return match[1] if match else None


def _within(value: float, bounds: Mapping[str, float]) -> bool:
    step = bounds.get("multipleOf")
    return (
        bounds.get("minimum", value) <= value <= bounds.get("maximum", value)
        and bounds.get("exclusiveMinimum", value - 1) < value < bounds.get("exclusiveMaximum", value + 1)
        and (not step or abs(value / step - round(value / step)) < 1e-9)
    )


def _least(bounds: Mapping[str, float], *, whole: bool) -> float | int:
    step = bounds.get("multipleOf", 1 if whole else 0.5)
    lows = [bounds[key] for key in ("minimum", "exclusiveMinimum") if key in bounds]
    highs = [bounds[key] for key in ("maximum", "exclusiveMaximum") if key in bounds]
    start = max(lows) if lows else min([0.0, *highs])
    candidates = [start, *(step * (start // step + steps) for steps in (1, 0, -1))]
    if lows and highs:
        candidates.append((max(lows) + min(highs)) / 2)
    fitting = (one for one in candidates if _within(one, bounds) and (not whole or float(one).is_integer()))
    least = next(fitting, start)
    return int(least) if whole else float(least)


def _matching(pattern: str, raw: str, count: int) -> list[str]:
    """Return the parts of the text that match a pattern, also if the pattern is anchored."""
    try:
        whole = re.compile(pattern)
        loose = re.compile(pattern.removeprefix("^").removesuffix("$"))
    except re.error:
        return []
    found = (match.group() for match in loose.finditer(raw[:4_000]))
    return list(dict.fromkeys(value for value in found if value and whole.search(value)))[:count]


def _real_names(spans: Iterator[Span], words: Words) -> Iterator[Span]:
    """Leave out what is not a name: a single `The`, and the field's own word, as in `Vendor: ACME`."""
    stems = [word for word, _ in words]
    for span in spans:
        parts = str(span.value).lower().split()
        if not all(part in STOP_WORDS or any(part.startswith(stem) for stem in stems) for part in parts):
            yield span


def sized(value: str, at: Field) -> str:
    """Return `value` within the field's bounds of length."""
    value = cut(value, int(min(at.bounds.get("maxLength", LONGEST), LONGEST)))
    least = int(at.bounds.get("minLength", 0))
    if len(value) < least:
        value = at.text.raw[:least].ljust(least, ".")
    return value


def cut(value: str, most: int) -> str:
    """Cut a quote between two words, so that it stays literal."""
    if len(value) <= most:
        return value
    return value[: max(value.rfind(" ", 0, most + 1), 0) or most].rstrip()


def _first_sentence(text: Text) -> str:
    return text.raw[slice(*text.sentences[0])] if text.sentences else ""


@lru_cache(maxsize=4096)
def read_description(description: str) -> tuple[str, dict[str, float]]:
    """Split a description into its text and the bounds that `anthropic.transform_schema` wrote into it."""
    note = _NOTE.search(description)
    if not note:
        return description, {}
    return description[: note.start()].strip(), {key: float(value) for key, value in _BOUND.findall(note[0])}
