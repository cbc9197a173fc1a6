"""Rows as documents: dicts and strings in memory, JSONL and CSV files read as a stream."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import IO, Any

import orjson

from airflow_llm_provider.documents.document import Document, Reason, Rejected

TABLE_SUFFIXES = frozenset({"jsonl", "ndjson", "csv"})
MAX_ROW_BYTES = 32 * 1024 * 1024
MAX_ID_CHARACTERS = 1024

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
        if not row_id.isascii() and not _is_unicode(row_id):
            return rejected("unreadable", f"its id, field {id_field!r}, holds a lone surrogate")
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


def table_rows(
    stream: IO[bytes], document: Document, *, id_field: str, text_field: str | None, encoding: str
) -> Iterator[Document | Rejected]:
    """Yield the rows of an open JSONL or CSV file; a broken row costs the others nothing."""
    reader = _csv_rows if document.name.lower().endswith(".csv") else _jsonl_rows
    # A BOM is no part of the first column's name.
    encoding = "utf-8-sig" if encoding.lower().replace("_", "-") in {"utf-8", "utf8"} else encoding
    for line, row in reader(stream, encoding):
        uri = f"{document.uri}#L{line}"
        where = f"{document.id} line {line}"
        if isinstance(row, _Broken):
            yield Rejected(id=where, uri=uri, reason=row.reason, message=f"{where}: {row.message}")
        else:
            yield row_document(row, where=where, uri=uri, id_field=id_field, text_field=text_field)


class _Broken:
    """A row that could not be parsed."""

    def __init__(self, message: str, reason: Reason = "unreadable") -> None:
        self.message = message
        self.reason = reason


def _jsonl_rows(stream: IO[bytes], encoding: str) -> Iterator[tuple[int, Any]]:
    line = 0
    while raw := stream.readline(MAX_ROW_BYTES + 1):
        line += 1
        if len(raw) > MAX_ROW_BYTES:
            while raw and not raw.endswith(b"\n"):
                raw = stream.readline(MAX_ROW_BYTES)
            yield line, _Broken(f"the line is over {MAX_ROW_BYTES:,} bytes", "too_large")
            continue
        if line == 1 and encoding == "utf-8-sig":
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            continue
        try:
            yield line, orjson.loads(raw if encoding == "utf-8-sig" else raw.decode(encoding))
        except UnicodeDecodeError as error:
            yield line, _Broken(f"not valid {encoding} at byte {error.start}; give `encoding=`")
        except orjson.JSONDecodeError as error:
            yield line, _Broken(f"not valid JSON: {error}")


def _csv_rows(stream: IO[bytes], encoding: str) -> Iterator[tuple[int, Any]]:
    # The limit is the process's; the default of 128 kB would refuse ordinary documents.
    if csv.field_size_limit() < MAX_ROW_BYTES:
        csv.field_size_limit(MAX_ROW_BYTES)
    # Bytes that aren't valid become lone surrogates: they spoil their own row, not the stream.
    text = io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline="")
    try:
        yield from _csv_cells(_Lines(text), encoding)
    finally:
        text.detach()  # the stream is its opener's to close


class _Lines:
    """The lines of a CSV file, as many as one row may have: quotes can make all of a file one row."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self.left = MAX_ROW_BYTES

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_ROW_BYTES)
        self.left -= len(line)
        if not line:
            raise StopIteration
        if self.left < 0:
            raise csv.Error(f"the row is over {MAX_ROW_BYTES:,} characters")
        return line


def _csv_cells(lines: _Lines, encoding: str) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(lines)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        lines.left = MAX_ROW_BYTES
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, _Broken(f"not valid CSV: {error}")
            continue
        if not cells:
            continue
        if not all(cell.isascii() or _is_unicode(cell) for cell in cells):
            yield start, _Broken(f"not valid {encoding}; give `encoding=`")
            if header is None:
                return
        elif header is None:
            header = cells
            if len(set(header)) < len(header):
                (twice, _), *_ = Counter(header).most_common(1)
                yield (
                    start,
                    _Broken(f"column {twice[:100]!r} appears twice in the header, so no row was read"),
                )
                return
        elif len(cells) != len(header):
            yield start, _Broken(f"{len(cells)} cells where the header has {len(header)}")
        else:
            yield start, dict(zip(header, cells, strict=True))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: object) -> str:
    if isinstance(value, Decimal):
        return str(value)
    if hasattr(value, "isoformat"):  # dates, for the standard library's encoder; orjson knows them itself
        return str(value.isoformat())
    raise TypeError(f"{type(value).__name__!r} is no JSON value")
