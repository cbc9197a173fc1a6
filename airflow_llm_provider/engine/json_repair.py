"""JSON in an answer's text: find it among prose, check it, repair its punctuation, replace single fields."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_MAX_TRIES = 50  # opening braces in prose that are tried as the start of an object
_DECODER = json.JSONDecoder()
# The start of an object, even of a broken one: an object inside it is only a part of the answer.
_OBJECT_START = re.compile(r"""\{\s*(["'“}]|\w+\s*:)""")
# Tokens of almost-JSON. Every character of the text must belong to one, so that nothing is dropped. Quantifiers are
# possessive, which makes matching linear: a model's answer must not be able to block the event loop.
_TOKEN = re.compile(
    r"""\s*+(?:
        (?P<open>[{\[])
        | (?P<close>[}\]])
        | (?P<separator>[,:])
        | (?P<string>"(?:[^"\\]|\\["\\/nrtu])*+" | '(?:[^'\\]|\\['"\\nrtu])*+' | “[^“”\\]*+” | ‘[^‘’\\]*+’ | `[^`\\]*+`)
          (?=[\s,:}\]])  # a quote that is followed by anything else does not end the string
        | (?P<name>\w++)(?=\s*+:)
        | (?P<literal>-?(?:0|[1-9]\d*+)(?:\.\d++)?(?:[eE][+-]?\d++)?|[Tt]rue|[Ff]alse|null|None)(?=[\s,}\]])
    )\s*+""",  # noqa: RUF001  # models write typographic quotes
    re.VERBOSE,
)
_PYTHON_LITERALS = {"True": "true", "False": "false", "None": "null"}


def is_json(text: str) -> bool:
    """Tell whether a text is valid JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


class UnsoundJson(ValueError):
    """JSON that has no one meaning, or that other programs cannot read; the message is a complaint for the model."""


def require_sound(text: str) -> None:
    """Return if a text is JSON that every reader reads alike.

    Raises:
        UnsoundJson: It has NaN, Infinity or a number beyond the range of floats, the same name twice in an object, or
            half of a surrogate pair.
        json.JSONDecodeError: It is not JSON.
    """
    require_characters(text)
    data = json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_unique)
    if "\\" in text and not _is_sendable(json.dumps(data, ensure_ascii=False)):
        raise UnsoundJson(
            "The answer has half of a surrogate pair: an escape from \\ud800 to \\udfff without its other half. Write "
            "the character itself."
        )


def require_characters(text: str) -> None:
    """Raise UnsoundJson for a text with half of a surrogate pair, which no file and no request can hold."""
    if not _is_sendable(text):
        at = next(at for at, character in enumerate(text) if "\ud800" <= character <= "\udfff")
        raise UnsoundJson(
            f"Character {at + 1} of the answer is half of a surrogate pair. Write the character itself."
        )


def writable(value: Any) -> Any:
    """Return JSON data in which each half of a surrogate pair is written as an escape, so that it can be stored."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {writable(name): writable(item) for name, item in value.items()}
    return [writable(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_sendable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(written: str) -> float:
    number = float(written)
    if not math.isfinite(number):
        raise UnsoundJson("A number is NaN or infinite.")
    return number


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

    Repaired are quotes, missing and trailing commas, names without quotes, and Python's True, False and None. Every
    string, number and bracket of the result stands in the text, in the same order, and none of the text is left out.
    An answer that was cut off stays broken.

    The json-repair library is not used: it took 11 seconds for 8 kB of misplaced quotes, and blocked the event loop
    meanwhile.
    """
    at, end = text.find("{"), text.rfind("}") + 1
    pieces: list[str] = []
    last = ""  # kind of the token before
    while 0 <= at < end:
        token = _TOKEN.match(text, at, end)
        if token is None:
            return None
        at, kind = token.end(), token.lastgroup or ""
        written = token[kind]
        follows_value = last in ("string", "literal", "close")
        if written == "," and follows_value and text[at : at + 1] in ("}", "]"):
            continue  # a trailing comma
        # Two numbers without a comma may be one number with a space in it.
        if kind in ("open", "string", "name", "literal") and follows_value and {kind, last} != {"literal"}:
            pieces.append(",")
        try:
            pieces.append(_as_json(kind, written))
        except ValueError:
            return None
        last = kind
    repaired = " ".join(pieces)  # with spaces, so that two numbers never become one
    try:
        json.loads(repaired, object_pairs_hook=_unique)
        repaired.encode()  # fails for half of a surrogate pair
    except (ValueError, RecursionError):
        return None
    return repaired or None


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


def _as_json(kind: str, written: str) -> str:
    """Return a token as JSON has it; raises ValueError if its escapes are wrong."""
    if kind == "name":
        return json.dumps(written, ensure_ascii=False)
    if kind == "literal":
        return _PYTHON_LITERALS.get(written, written)
    if kind != "string":
        return written
    if written.startswith("'"):
        inner = written[1:-1].replace("\\'", "'")
        written = '"' + re.sub(r'\\.|"', lambda found: '\\"' if found[0] == '"' else found[0], inner) + '"'
    elif not written.startswith('"'):
        return json.dumps(written[1:-1], ensure_ascii=False)
    return json.dumps(json.loads(written, strict=False), ensure_ascii=False)


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(members)
    if len(data) < len(members):
        raise UnsoundJson("An object has the same name twice, and which of its values is meant is not known.")
    return data


def _names(data: Any) -> set[str]:
    """Return the names of all members, however deep."""
    if isinstance(data, dict):
        return data.keys() | {name for value in data.values() for name in _names(value)}
    return {name for value in data for name in _names(value)} if isinstance(data, list) else set()
