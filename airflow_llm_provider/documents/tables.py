"""Rows as documents, one document per row: of JSONL and CSV files, and of lists."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import IO, Any

import orjson

from airflow_llm_provider.documents.content import byte_order_mark
from airflow_llm_provider.documents.document import Document, Reason, Rejected
from airflow_llm_provider.documents.formats import from_json
from airflow_llm_provider.options import MAX_FILE_BYTES

TABLE_SUFFIXES = frozenset({"jsonl", "ndjson", "csv"})

_SEPARATORS = re.compile(r"[;\t|]")


def table_rows(
    stream: IO[bytes], document: Document, *, id_field: str, text_field: str | None, encoding: str
) -> Iterator[Document | Rejected]:
    """Yield one document per row of an open table; a broken row is a Rejected, and the other rows are read.

    Args:
        stream: the open file; it is not closed.
        document: the file. A name that ends in `.csv` is read as CSV, any other as JSONL.
        id_field: see `row_document`.
        text_field: see `row_document`.
        encoding: of a file without a byte order mark.
    """
    # A buffer of our own, because not every store's stream can look ahead, as the byte order mark needs.
    buffered = io.BufferedReader(_Raw(stream), 64 * 1024)
    mark, marked = byte_order_mark(buffered.peek(4))
    buffered.read(len(mark))
    if document.name.lower().endswith(".csv"):
        rows = _csv_rows(buffered, marked or encoding, id_field)
    else:
        rows = _jsonl_rows(buffered, marked or encoding)
    for line, row in rows:
        uri = f"{document.uri}#L{line}"
        where = f"{document.id} line {line}"
        if isinstance(row, _Broken):
            yield Rejected(id=where, uri=uri, reason=row.reason, message=f"{where}: {row.message}")
        else:
            yield row_document(row, where=where, uri=uri, id_field=id_field, text_field=text_field)


class _Broken:
    """A row that cannot be parsed, and why."""

    def __init__(self, message: str, reason: Reason = "unreadable") -> None:
        self.message = message
        self.reason = reason


class _Raw(io.RawIOBase):
    """A stream that the buffers around it do not close; the one who opened it does."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = self._stream.read(len(buffer))
        buffer[: len(read)] = read
        return len(read)


def _text(stream: io.BufferedReader[Any], encoding: str, newline: str) -> io.TextIOWrapper:
    # Invalid bytes become lone surrogates, so that they make their own row unreadable and not the stream.
    return io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline=newline)


def _jsonl_rows(stream: io.BufferedReader[Any], encoding: str) -> Iterator[tuple[int, Any]]:
    readline: Callable[[int], bytes] = stream.readline
    if codecs.lookup(encoding).name != "utf-8":
        # Only in UTF-8 is the end of a line one byte that occurs nowhere else.
        text = _text(stream, encoding, "\n")
        readline = lambda size: text.readline(size).encode(errors="surrogateescape")  # noqa: E731
    line = 0
    while True:
        line += 1
        try:
            raw = readline(MAX_FILE_BYTES + 1)
            is_too_large = len(raw) > MAX_FILE_BYTES
            # The rest of the line is read and dropped, so that the next row starts at the next line.
            while is_too_large and raw and not raw.endswith(b"\n"):
                raw = readline(MAX_FILE_BYTES)
        except UnicodeError:
            yield line, _not_valid(encoding)
            return
        if is_too_large:
            yield line, _Broken(f"the line is over {MAX_FILE_BYTES:,} bytes", "too_large")
            continue
        if not raw:
            return
        if not raw.strip():
            continue
        try:
            yield line, from_json(raw)
        except (ValueError, RecursionError) as error:
            # Invalid JSON and bytes in another encoding need different advice.
            is_text = is_unicode(raw.decode(errors="surrogateescape"))
            yield line, _Broken(f"not valid JSON: {error}") if is_text else _not_valid(encoding)


def _csv_rows(stream: io.BufferedReader[Any], encoding: str, id_field: str) -> Iterator[tuple[int, Any]]:
    # The csv module has one limit for the process; its default of 128 kB would refuse ordinary documents.
    if csv.field_size_limit() < MAX_FILE_BYTES:
        csv.field_size_limit(MAX_FILE_BYTES)
    return _csv_cells(_Lines(_text(stream, encoding, "")), encoding, id_field)


def _not_valid(encoding: str) -> _Broken:
    return _Broken(f"not valid {encoding}; if the file is in another encoding, give `Reading(encoding=…)`")


class _Lines:
    """The lines of a CSV file, limited in size per row: one quotation mark can make the whole file one row."""

    def __init__(self, text: IO[str]) -> None:
        self._text = text
        self.left = MAX_FILE_BYTES

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_FILE_BYTES)
        self.left -= len(line)
        if not line:
            raise StopIteration
        if self.left < 0:
            raise csv.Error(f"the row is over {MAX_FILE_BYTES:,} characters")
        return line


def _csv_cells(lines: _Lines, encoding: str, id_field: str) -> Iterator[tuple[int, Any]]:
    reader = csv.reader(lines)
    header: list[str] | None = None
    while True:
        # A quoted cell may hold line breaks, so a row starts where the one before has ended.
        start = reader.line_num + 1
        lines.left = MAX_FILE_BYTES
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, _Broken(f"not valid CSV: {error}")
            continue
        except UnicodeError:
            yield start, _not_valid(encoding)
            return
        if not cells:
            continue
        if not all(cell.isascii() or is_unicode(cell) for cell in cells):
            yield start, _not_valid(encoding)
            # No row can be read without the names of its columns.
            if header is None:
                return
        elif header is None:
            header = cells
            if wrong := _wrong_header(header, id_field):
                yield start, _Broken(f"{wrong}, so no row was read")
                return
        elif len(cells) != len(header):
            yield start, _Broken(f"{len(cells)} cells where the header has {len(header)}")
        else:
            yield start, dict(zip(header, cells, strict=True))


def _wrong_header(header: list[str], id_field: str) -> str | None:
    """Return why the rows under this header cannot be documents; None when they can."""
    (most, times), *_ = Counter(header).most_common(1)
    if times > 1:
        number = header.index(most) + 1
        return f"the header names columns {number} and {header.index(most, number) + 1} alike"
    if len(header) == 1 and (found := _SEPARATORS.search(header[0])):
        return f"the header is one column with {found[0]!r} in it: the file is separated by {found[0]!r}, not by commas"
    if id_field in header:
        return None
    if any(name.strip() == id_field for name in header):
        return f"the header has white space around the name of the column {id_field!r} (`reading.id_field`)"
    if id_field != DEFAULT_ID:
        return f"the header has no column {id_field!r} (`reading.id_field`)"
    return None


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
    """Return one row as a document, or why it cannot be one.

    Args:
        row: a dict, or a str, which is its own text.
        where: the position of the row, such as `rows.jsonl line 7`: its name in messages, and its id where it has none.
        uri: where it is; None for a row given in memory.
        id_field: the field that is its id. Only the default, `id`, may be missing: the id is then a hash.
        text_field: the field that is its text; None: the whole row as JSON with sorted keys.
    """

    def rejected(reason: Reason, message: str, row_id: str = where) -> Rejected:
        return Rejected(id=row_id, uri=uri, reason=reason, message=f"{where}: {message}")

    if isinstance(row, str):
        return Document(id=_hash(row), uri=uri, text=row)
    if not isinstance(row, Mapping):
        return rejected(
            "unreadable", f"a row should be a dict or a string, and this is a {type(row).__name__!r}"
        )
    canonical: str | None = None
    if text_field is None or id_field not in row:
        try:
            canonical = canonical_row(row)
        except (TypeError, ValueError, RecursionError) as error:
            return rejected("unreadable", f"the row cannot be written as JSON ({type(error).__name__})")
    if id_field in row:
        given = row[id_field]
        # Many rows would share the id None or True, and the text of a dict depends on the order of its fields.
        if given is None or given == "" or isinstance(given, bool | Mapping | list | tuple | set | bytes):
            kind = "an empty string" if given == "" else f"a {type(given).__name__!r}"
            return rejected("unreadable", f"its id, field {id_field!r}, is {kind}; give a text or a number")
        row_id = str(given)
        if len(row_id) > MAX_ID_CHARACTERS:
            return rejected(
                "unreadable", f"its id, field {id_field!r}, is over {MAX_ID_CHARACTERS} characters"
            )
        if not row_id.isascii() and not is_unicode(row_id):
            return rejected(
                "unreadable",
                f"its id, field {id_field!r}, contains a lone surrogate, which is not valid text",
            )
    elif id_field != DEFAULT_ID:
        return rejected("unreadable", f"has no field {id_field!r} (`reading.id_field`)")
    else:
        row_id = _hash(canonical or "")
    if text_field is None:
        text = canonical
    elif text_field not in row:
        return rejected("unreadable", f"has no field {text_field!r} (`reading.text_field`)", row_id)
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
    """Tell whether a string that was given as a text is probably the name of a file."""
    if len(text) > 1024 or _FILE_NAME.match(text) is None:
        return False
    return " " not in text or text.startswith(("/", "./", "../")) or "://" in text


def canonical_row(row: Mapping[Any, Any]) -> str:
    """Return the row as compact JSON with sorted keys, so that equal rows have equal texts.

    Raises:
        TypeError, ValueError, RecursionError: the row holds something that JSON cannot hold.
    """
    plain = row if isinstance(row, dict) else dict(row)
    try:
        return orjson.dumps(plain, default=_plain, option=_ROW_OPTIONS).decode()
    except TypeError:
        # orjson refuses integers above 64 bits and lone surrogates; the standard library is slower, and takes them.
        return json.dumps(plain, default=_plain, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def is_unicode(text: str) -> bool:
    """Tell whether a string has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hash(text: str) -> str:
    # surrogatepass: a row with a lone surrogate still needs an id, under which it is a dead letter.
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def _plain(value: object) -> str:
    if isinstance(value, Decimal):
        return str(value)
    if hasattr(value, "isoformat"):  # dates, for the standard library; orjson writes them itself
        return str(value.isoformat())
    raise TypeError(f"{type(value).__name__!r} is not a JSON value")
