"""JSON in an answer's text: found among prose, its punctuation mended, one field put in another's place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import accumulate
from typing import Any

_MOST_CHARACTERS = 100_000  # beyond it mending takes the loop's time, and a paid repair is the better bargain
_MOST_DEPTH = 64  # of nesting, for the same reason
_MOST_INNER_QUOTES = 300  # within strings, and not escaped: json-repair looks for the end of each from each
_MOST_TRIES = 50  # braces in prose that begin no object
_DECODER = json.JSONDecoder()
# What begins an object, if a broken one: what stands within it is a part and no answer.
_OBJECT = re.compile(r"""\{\s*(["'“}]|\w+\s*:)""")
_GAP = re.compile(r"[\s,:]*")
_ENDS = re.compile(r"""\s*[,:}\]]|\s+["'`“”‘’\w{\[-]""")  # noqa: RUF001 - what may come after a name or a value
_SINGLE, _DOUBLE = "'`‘’", '"“”'  # noqa: RUF001
_QUOTES = _SINGLE + _DOUBLE
# Where a string could end, and another begin, inside of one: by whether it stands in single quotes.
_HAS_END = [re.compile(rf"[{marks}]\s*[,:\]}}]|[,:\[{{]\s*[{marks}]") for marks in (_DOUBLE, _SINGLE)]
_EDGES = [
    re.compile(rf"[{marks}](?=\s*[,:}}\]{marks}])|[,:{{\[]\s*[{marks}]") for marks in (_DOUBLE, _SINGLE)
]
_HAS_ESCAPE = re.compile(r"""\\["'\\/bfnrtuUx]""")
_LITERAL = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|[Tt]rue|[Ff]alse|[Nn](?:ull|one)")
_LITERALS = {"true": True, "false": False, "null": None, "none": None}
_BRACKET = re.compile(r"[{}\[\]]")
_QUOTE = re.compile(r'(?<!\\)"')


def is_json(text: str) -> bool:
    """Tell whether a text is JSON as it stands."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def objects_in(text: str, names: frozenset[str]) -> list[tuple[str, str]]:
    """Return the JSON objects in a text that is no JSON itself, each with what was done to read it.

    names: of the fields there may be, as far as they are known. A mended object with others was cut at the wrong
        quote, and is none.
    """
    if is_json(text):
        return []
    if found := found_objects(text):
        return [(one, "found among other text") for one in dict.fromkeys(found)]
    put_right = mended(text)
    if put_right is None or (names and not _names(json.loads(put_right)) <= names):
        return []
    return [(put_right, "mended in its punctuation")]


def found_objects(text: str) -> list[str]:
    """Return the JSON objects that stand in a text, those within others left out; none where one is broken."""
    found: list[str] = []
    at, tries = text.find("{"), 0
    while at >= 0 and tries < _MOST_TRIES:
        try:
            end = _DECODER.raw_decode(text, at)[1]
        except (ValueError, RecursionError):
            if _OBJECT.match(text, at):
                return []
            tries, end = tries + 1, at + 1
        else:
            found.append(text[at:end])
        at = text.find("{", end)
    return found


def mended(text: str) -> str | None:
    """Return the JSON object in a text with its punctuation put right; None where that is not enough.

    Quotes, commas, colons, escapes and Python's True, False and None are put right. No bracket, number or word is
    added, lost or moved: what was cut off stays broken, since nobody knows what came after.
    """
    first, last = text.find("{"), text.rfind("}")
    if first < 0 or last < first or last - first > _MOST_CHARACTERS:
        return None
    broken = text[first : last + 1]
    if any(broken.count(opened) != broken.count(closed) for opened, closed in ("{}", "[]")):
        return None
    if max(accumulate(1 if bracket in "{[" else -1 for bracket in _BRACKET.findall(broken))) > _MOST_DEPTH:
        return None
    if len(_QUOTE.findall(broken)) % 2:  # it was cut off within a string, at a brace of the string's own
        return None
    if _inner_quotes(broken) > _MOST_INNER_QUOTES:
        return None
    try:
        import json_repair

        data = json_repair.loads(broken, skip_json_loads=True)
        if not isinstance(data, dict) or not _says(broken, data):
            return None
        return (
            json.dumps(data, ensure_ascii=False, allow_nan=False).encode().decode()
        )  # no half of a character
    except Exception:  # noqa: BLE001  # whatever the text does to the library, it is then not mended
        return None


def is_cut_off(text: str) -> bool:
    """Tell whether a text begins a JSON object that it does not end."""
    return "{" in text and text.count("{") > text.count("}")


def members(text: str) -> dict[str, tuple[int, int]]:
    """Return where the values of a JSON object's members stand in its text."""
    spans: dict[str, tuple[int, int]] = {}
    at = _after(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = _after(text, _after(text, at) + 1)  # behind the colon
        at = _DECODER.raw_decode(text, start)[1]
        spans[name] = start, at
        at = _after(text, at)
        if text[at] == ",":
            at = _after(text, at + 1)
    return spans


def replaced(text: str, values: Mapping[str, str]) -> str:
    """Return a JSON object's text with the values of some members replaced, everything else byte for byte.

    values: JSON texts by name; a name that the object lacks is added at its end.
    """
    spans = members(text)
    for name in sorted(values.keys() & spans.keys(), key=spans.__getitem__, reverse=True):
        start, end = spans[name]
        text = text[:start] + values[name] + text[end:]
    added = [f"{json.dumps(name)}: {value}" for name, value in values.items() if name not in spans]
    if not added:
        return text
    end = text.rindex("}")
    return text[:end].rstrip() + (", " if spans else "") + ", ".join(added) + text[end:]


def _after(text: str, at: int) -> int:
    """Return where the next thing but white space stands."""
    while text[at] in " \t\n\r":
        at += 1
    return at


def _inner_quotes(text: str) -> int:
    """Count the quotes that neither begin nor end a string, of the kind that the text begins its strings with."""
    first = min((at for quote in _QUOTES if (at := text.find(quote)) >= 0), default=0)
    is_single = text[first] in _SINGLE
    marks = sum(map(text.count, _SINGLE if is_single else _DOUBLE))
    return marks - len(_EDGES[is_single].findall(text))


def _says(text: str, data: Any) -> bool:
    """Tell whether a text says this and nothing else: every bracket, name and value of it, letter for letter."""
    at = 0
    for part in _parts(data):
        gap = _GAP.match(text, at)
        at = _end_of(part, text, gap.end() if gap else at)
        if at < 0:
            return False
    return at == len(text)


def _end_of(part: Any, text: str, at: int) -> int:
    """Return where in a text a bracket, name or value ends that begins there; -1 where it does not."""
    if isinstance(part, _Bracket):
        return at + 1 if text.startswith(part, at) else -1
    if not isinstance(part, str):
        written = _LITERAL.match(text, at)
        if not written or not _ENDS.match(text, written.end()):
            return -1
        same = _LITERALS.get(written[0].lower(), written[0])
        is_same = same is part if isinstance(part, bool | None) else Decimal(str(same)) == Decimal(str(part))
        return written.end() if is_same else -1
    quote = text[at] if text[at] in _QUOTES else ""
    for spelt in _spellings(part, quote):
        end = at + 2 * len(quote) + len(spelt)
        is_closed = not quote or text[end - 1 : end] in _QUOTES
        if is_closed and text.startswith(spelt, at + len(quote)) and _ENDS.match(text, end):
            return end
    return -1


def _spellings(part: str, quote: str) -> Iterator[str]:
    """Yield how a string may be written behind such a quote, so that nobody can read it otherwise."""
    if not quote:
        yield from (part,) if part else ()
        return
    if not _HAS_ESCAPE.search(part) and not _HAS_END[quote in _SINGLE].search(part):
        yield part
    for is_ascii in (False, True):
        escaped = json.dumps(part, ensure_ascii=is_ascii)[1:-1]
        yield escaped.replace('\\"', '"').replace("'", "\\'") if quote in _SINGLE else escaped


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
