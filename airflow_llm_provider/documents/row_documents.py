"""Rows as documents: dicts and strings, each with an id and a text."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import orjson

from airflow_llm_provider.documents.document import Document, Reason, Rejected

MAX_ID_CHARACTERS = 1024
DEFAULT_ID = "id"

_ROW_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS
_FILE_NAME = re.compile(
    r"(?!https?://)(?:/|\./|\.\./|[a-z][a-z0-9+.-]*://)?[^\n]*?\.(?:txt|md|html?|pdf|docx|csv|jsonl|png|jpe?g|gif|webp)\Z",
    re.IGNORECASE,
)


def row_document(
    row: object, *, where: str, uri: str | None, id_field: str, text_field: str | None
) -> Document | Rejected:
    """Return one row as a document, or why it can't be one.

    row: a dict (its text is `text_field`, or the whole row as JSON with sorted keys) or a str (its own text).
    where: the row's place, such as `rows.jsonl line 7`: its name in messages, and its id when it has none.
    """

    def rejected(reason: Reason, message: str, row_id: str = where) -> Rejected:
        return Rejected(id=row_id, uri=uri, reason=reason, message=f"{where}: {message}")

    if isinstance(row, str):
        return Document(id=_hash(row), uri=uri, text=row)
    if not isinstance(row, Mapping):
        return rejected("unreadable", f"a row is a dict or a string, this is {type(row).__name__!r}")
    canonical: str | None = None
    if text_field is None or id_field not in row:
        try:
            canonical = canonical_row(row)
        except (TypeError, ValueError, RecursionError) as error:
            return rejected("unreadable", f"the row can't be written as JSON ({error})")
    if id_field in row:
        given = row[id_field]
        if given is None or given == "" or isinstance(given, bool | Mapping | list | tuple | set | bytes):
            shown = reprlib.repr(given)
            return rejected("unreadable", f"its id, field {id_field!r}, is {shown}; give a text or a number")
        row_id = str(given)
        if len(row_id) > MAX_ID_CHARACTERS:
            return rejected(
                "unreadable", f"its id, field {id_field!r}, is over {MAX_ID_CHARACTERS} characters"
            )
        if not row_id.isascii() and not is_unicode(row_id):
            return rejected("unreadable", f"its id, field {id_field!r}, holds a lone surrogate")
    elif id_field != DEFAULT_ID:
        return rejected("unreadable", f"has no field {id_field!r} (`id_field=`)")
    else:
        row_id = _hash(canonical or "")
    if text_field is None:
        text = canonical
    elif text_field not in row:
        return rejected("unreadable", f"has no field {text_field!r} (`text_field=`)", row_id)
    else:
        text = row[text_field]
        if text is None:
            return rejected("empty", f"field {text_field!r} is null", row_id)
        if not isinstance(text, str):
            return rejected(
                "unreadable", f"field {text_field!r} is {type(text).__name__!r}, not a text", row_id
            )
    return Document(id=row_id, uri=uri, text=text)


def looks_like_a_path(text: str) -> bool:
    """Tell whether a string given as a text is more likely the name of a file."""
    if len(text) > 1024 or _FILE_NAME.match(text) is None:
        return False
    return " " not in text or text.startswith(("/", "./", "../")) or "://" in text


def canonical_row(row: Mapping[Any, Any]) -> str:
    """Return the row as compact JSON with sorted keys: the same text for the same row, whoever exported it.

    Raises TypeError, ValueError or RecursionError for what JSON can't hold.
    """
    plain = row if isinstance(row, dict) else dict(row)
    try:
        return orjson.dumps(plain, default=_plain, option=_ROW_OPTIONS).decode()
    except TypeError:
        # orjson refuses integers past 64 bits and lone surrogates; the slower standard library doesn't.
        return json.dumps(plain, default=_plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def is_unicode(text: str) -> bool:
    """Tell whether a string is free of lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def _plain(value: object) -> str:
    if isinstance(value, Decimal):
        return str(value)
    if hasattr(value, "isoformat"):  # dates, for the standard library's encoder; orjson knows them itself
        return str(value.isoformat())
    raise TypeError(f"{type(value).__name__!r} is no JSON value")
