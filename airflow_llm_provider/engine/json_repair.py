"""JSON in an answer's text: find it among prose, repair its punctuation, replace single fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

# The json-repair library can take seconds for a few kilobytes of misplaced quotes or brackets, and would block the
# event loop. It is given only text that splits into whole tokens, within these limits.
_MAX_CHARACTERS = 100_000
_MAX_DEPTH = 64
_MAX_TRIES = 50  # opening braces in prose that are tried as the start of an object
_DECODER = json.JSONDecoder()
# The start of an object, even of a broken one: an object inside it is only a part of the answer.
_OBJECT_START = re.compile(r"""\{\s*(["'“}]|\w+\s*:)""")
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<bracket>[{}\[\]])
        | (?P<separator>[,:])
        | (?P<string>
            "(?:[^"\\]|\\["\\/bfnrtu])*+" | '(?:[^'\\]|\\['"\\/bfnrtux])*+'
            | “[^“”\\]*+” | ‘[^‘’\\]*+’ | `[^`\\]*+`)
          (?=\s | [,:}\]])  # a string that ends elsewhere holds a quote of its own
        | (?P<word>[\w.+-]++)
    )\s*""",  # noqa: RUF001  # models write typographic quotes
    re.VERBOSE | re.DOTALL,
)
_CLOSING = {"{": "}", "[": "]"}
_LITERALS = {"true": True, "false": False, "null": None, "none": None}


def is_json(text: str) -> bool:
    """Tell whether a text is valid JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def objects_in(text: str, names: frozenset[str]) -> list[tuple[str, str]]:
    """Return the JSON objects in a text that is not JSON itself, each with what was done to read it.

    Args:
        text: A model's answer.
        names: The field names that the output type knows; empty when unknown. A repaired object with any other
            name is rejected, because its strings were split at a wrong quote.
    """
    if is_json(text):
        return []
    if found := find_objects(text):
        return [(one, "found among other text") for one in dict.fromkeys(found)]
    repaired = repair_punctuation(text)
    if repaired is None or (names and not _names(json.loads(repaired)) <= names):
        return []
    return [(repaired, "repaired in its punctuation")]


def find_objects(text: str) -> list[str]:
    """Return the outermost JSON objects in a text; none if one of them is broken."""
    found: list[str] = []
    at, tries = text.find("{"), 0
    while at >= 0 and tries < _MAX_TRIES:
        try:
            end = _DECODER.raw_decode(text, at)[1]
        except (ValueError, RecursionError):
            if _OBJECT_START.match(text, at):
                return []
            tries, end = tries + 1, at + 1
        else:
            found.append(text[at:end])
        at = text.find("{", end)
    return found


def repair_punctuation(text: str) -> str | None:
    """Return the JSON object in a text with its punctuation repaired; None if that is not enough.

    The result of the json-repair library is accepted only if it has the brackets, names and values of the text,
    all of them, in order and letter for letter. An answer that was cut off stays broken.
    """
    first, last = text.find("{"), text.rfind("}")
    if not 0 <= first < last <= first + _MAX_CHARACTERS:
        return None
    broken = text[first : last + 1]
    tokens = _tokens(broken)
    if tokens is None:
        return None
    try:
        import json_repair

        data = json_repair.loads(broken, skip_json_loads=True)
        parts = list(_parts(data))
        if not isinstance(data, dict) or len(parts) != len(tokens) or not all(map(_means, tokens, parts)):
            return None
        # Encoding fails for half of a surrogate pair, which could not be sent or stored.
        return json.dumps(data, ensure_ascii=False, allow_nan=False).encode().decode()
    except Exception:  # noqa: BLE001  # whatever the library does with a model's text, the text stays unrepaired
        return None


def is_cut_off(text: str) -> bool:
    """Tell whether a text begins a JSON object and does not end it."""
    return "{" in text and text.count("{") > text.count("}")


def member_spans(text: str) -> dict[str, tuple[int, int]]:
    """Return the start and end of each member's value in the text of a JSON object."""
    spans: dict[str, tuple[int, int]] = {}
    at = _skip_space(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = _skip_space(text, _skip_space(text, at) + 1)  # after the colon
        at = _DECODER.raw_decode(text, start)[1]
        spans[name] = start, at
        at = _skip_space(text, at)
        if text[at] == ",":
            at = _skip_space(text, at + 1)
    return spans


def replace_members(text: str, values: Mapping[str, str]) -> str:
    """Return the text of a JSON object with some values replaced and every other byte kept.

    Args:
        text: The text of a JSON object.
        values: JSON texts by member name; a name that the object does not have is added at its end.
    """
    spans = member_spans(text)
    for name in sorted(values.keys() & spans.keys(), key=spans.__getitem__, reverse=True):
        start, end = spans[name]
        text = text[:start] + values[name] + text[end:]
    added = [f"{json.dumps(name)}: {value}" for name, value in values.items() if name not in spans]
    if not added:
        return text
    end = text.rindex("}")
    return text[:end].rstrip() + (", " if spans else "") + ", ".join(added) + text[end:]


def _skip_space(text: str, at: int) -> int:
    while text[at] in " \t\n\r":
        at += 1
    return at


def _tokens(text: str) -> list[str] | None:
    """Split a text into brackets, strings and words, without commas and colons; None if it does not split."""
    tokens: list[str] = []
    closing: list[str] = []
    at = colons = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            return None
        at, kind = token.end(), token.lastgroup
        written = token[kind or 0]
        if kind == "bracket":
            if written in _CLOSING:
                closing.append(_CLOSING[written])
            elif not closing or closing.pop() != written:
                return None
        colons = colons + 1 if written == ":" else 0 if kind in ("bracket", "separator") else colons
        if len(closing) > _MAX_DEPTH or colons > 1:
            return None
        if kind != "separator":
            tokens.append(written)
    return None if closing else tokens


def _means(token: str, part: Any) -> bool:
    """Tell whether a token of the text and a part of the data say the same."""
    if isinstance(part, _Bracket):
        return token == part
    if isinstance(part, str):
        if token[0] not in "\"'“‘`":  # noqa: RUF001
            return token == part  # a name without quotes
        inner = token[1:-1]
        if "\\" not in inner:
            return inner == part
        escaped = inner.replace("\\'", "'").replace('"', '\\"') if token[0] == "'" else inner
        return bool(json.loads(f'"{escaped}"', strict=False) == part)
    if isinstance(part, bool | None):
        return token.lower() in _LITERALS and _LITERALS[token.lower()] is part
    return Decimal(token) == Decimal(str(part))


def _names(data: Any) -> set[str]:
    """Return the names of all members, however deep."""
    if isinstance(data, dict):
        return data.keys() | {name for value in data.values() for name in _names(value)}
    return {name for value in data for name in _names(value)} if isinstance(data, list) else set()


class _Bracket(str):
    __slots__ = ()


def _parts(data: Any) -> Iterator[Any]:
    """Yield brackets, names and values in the order of their writing."""
    if isinstance(data, dict):
        yield _Bracket("{")
        for name, value in data.items():
            yield name
            yield from _parts(value)
        yield _Bracket("}")
    elif isinstance(data, list):
        yield _Bracket("[")
        for value in data:
            yield from _parts(value)
        yield _Bracket("]")
    else:
        yield data
