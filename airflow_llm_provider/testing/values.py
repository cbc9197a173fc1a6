"""One value of a schema: a string or a number, found in the text or made to fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from itertools import chain, islice
from typing import Any

from airflow_llm_provider.testing.spans import FINDERS, STOP_WORDS, Span, Text, Words, words_of

BOUNDS = re.findall(
    r"\w+",
    "maxLength minLength maximum minimum exclusiveMaximum exclusiveMinimum maxItems minItems multipleOf",
)

LONGEST = 300  # characters of a quote
_NOTE = re.compile(r"\{[^{}]*\w+: .*\}\s*$", re.DOTALL)  # where anthropic.transform_schema puts bounds
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
_KINDS: Mapping[str, frozenset[str]] = {  # what a string field is called after -> what it is a span of
    "email": frozenset(["email", "emails", "mail"]),
    "uri": frozenset(["url", "urls", "uri", "link", "links", "website", "homepage"]),
    "date-literal": _DATE_WORDS,
    "money-literal": _MONEY_WORDS,
    "name": _NAME_WORDS,
}
_SURE_WORDS = frozenset(["confidence", "probability", "certainty"])
_STAND_INS: Mapping[str, str] = {  # where a format has to be kept and the document holds nothing of it
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


class NotFoundError(Exception):
    """The text holds nothing for this field: null, where the schema allows it."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """What is asked for at one place of the schema."""

    name: str
    text: Text
    description: str = ""
    depth: int = 0
    bounds: Mapping[str, float] = field(default_factory=dict)
    must: bool = True  # False where null would do: then nothing is made up

    @property
    def words(self) -> Words:
        """Return what to look for."""
        return words_of(self.name, self.description)

    def names_one_of(self, words: frozenset[str]) -> bool:
        """Say whether the field is called after one of `words`."""
        return not words.isdisjoint(word for word, weight in self.words if weight > 1) or any(
            part in words for part in re.split(r"[\W_]+", self.name.lower())
        )


def strings(schema: dict[str, Any], at: Field, count: int) -> list[str]:
    """Return up to `count` literal spans of the text: by pattern, format or name, else sentences."""
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
    """Return the pattern that a string has to match, empty where there is none."""
    if not isinstance(schema, dict):
        return ""
    return str(schema.get("pattern") or _first_group(_PATTERN, _note_of(schema)) or "")


def string_value(schema: dict[str, Any], at: Field) -> str:
    """Return the best of `strings`, as long as it may be; something that fits where there is none."""
    found = strings(schema, at, 1)
    if not found and not at.must:
        raise NotFoundError
    form = schema.get("format")
    return sized(found[0] if found else _STAND_INS.get(str(form)) or _first_sentence(at.text), at)


def number_values(at: Field, count: int, *, whole: bool) -> list[float | int]:
    """Return up to `count` numbers of the text within bounds, the nearest to the field's words first."""
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
    """Return the best of `number_values`, or the least that fits where there is none."""
    if found := number_values(at, 1, whole=whole):
        return found[0]
    if not at.must:
        raise NotFoundError
    return _least(at.bounds, whole=whole)


def _note_of(schema: Mapping[str, Any]) -> str:
    """Return what the SDK has moved into a description, since the API does not enforce it."""
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
    candidates = [
        float(start),
        (start // step + 1) * step,
        (start // step) * step,
        (start // step - 1) * step,
    ]
    if lows and highs:
        candidates.append((max(lows) + min(highs)) / 2)
    for candidate in candidates:
        if _within(candidate, bounds) and (not whole or float(candidate).is_integer()):
            return int(candidate) if whole else candidate
    return int(start) if whole else start


def _matching(pattern: str, raw: str, count: int) -> list[str]:
    """Find what an anchored pattern describes anywhere in the text."""
    try:
        whole = re.compile(pattern)
        loose = re.compile(pattern.removeprefix("^").removesuffix("$"))
    except re.error:
        return []
    found = (match.group() for match in loose.finditer(raw[:4_000]))
    return list(dict.fromkeys(value for value in found if value and whole.search(value)))[:count]


def _real_names(spans: Iterator[Span], words: Words) -> Iterator[Span]:
    """Drop what is no name: a lone `The`, and the field's own word, as in `Vendor: ACME`."""
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
    """Cut a quote at a word, so that it stays literal."""
    if len(value) <= most:
        return value
    return value[: max(value.rfind(" ", 0, most + 1), 0) or most].rstrip()


def _first_sentence(text: Text) -> str:
    return text.raw[slice(*text.sentences[0])] if text.sentences else ""


@lru_cache(maxsize=4096)
def read_description(description: str) -> tuple[str, dict[str, float]]:
    """Take the bounds that `anthropic.transform_schema` wrote into a description out of it."""
    note = _NOTE.search(description)
    if not note:
        return description, {}
    return description[: note.start()].strip(), {key: float(value) for key, value in _BOUND.findall(note[0])}
