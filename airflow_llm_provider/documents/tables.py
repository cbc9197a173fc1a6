"""Tables: JSONL and CSV files, read as a stream of rows."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO, Any

from airflow_llm_provider.documents.document import Document, Reason, Rejected
from airflow_llm_provider.documents.row_documents import DEFAULT_ID, is_unicode, row_document
from airflow_llm_provider.documents.rows import from_json
from airflow_llm_provider.documents.text import byte_order_mark

TABLE_SUFFIXES = frozenset({"jsonl", "ndjson", "csv"})
MAX_ROW_BYTES = 32 * 1024 * 1024

_SEPARATORS = re.compile(r"[;\t|]")


def table_rows(
    stream: IO[bytes], document: Document, *, id_field: str, text_field: str | None, encoding: str
) -> Iterator[Document | Rejected]:
    """Yield the rows of an open JSONL or CSV file; a broken row costs the others nothing.

    encoding: of a file without a byte order mark.
    """
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
    """A row that could not be parsed."""

    def __init__(self, message: str, reason: Reason = "unreadable") -> None:
        self.message = message
        self.reason = reason


class _Raw(io.RawIOBase):
    """A stream that its opener closes: the buffers around it don't."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = self._stream.read(len(buffer))
        buffer[: len(read)] = read
        return len(read)


def _text(stream: io.BufferedReader[Any], encoding: str, newline: str) -> io.TextIOWrapper:
    # Bytes that aren't valid become lone surrogates: they spoil their own row, not the stream.
    return io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline=newline)


def _jsonl_rows(stream: io.BufferedReader[Any], encoding: str) -> Iterator[tuple[int, Any]]:
    readline: Callable[[int], bytes] = stream.readline
    if codecs.lookup(encoding).name != "utf-8":
        # A line's end is one byte in UTF-8, not in every encoding.
        text = _text(stream, encoding, "\n")
        readline = lambda size: text.readline(size).encode(errors="surrogateescape")  # noqa: E731
    line = 0
    while True:
        line += 1
        try:
            raw = readline(MAX_ROW_BYTES + 1)
            is_too_large = len(raw) > MAX_ROW_BYTES
            while is_too_large and raw and not raw.endswith(b"\n"):
                raw = readline(MAX_ROW_BYTES)
        except UnicodeError:
            yield line, _not_valid(encoding)
            return
        if is_too_large:
            yield line, _Broken(f"the line is over {MAX_ROW_BYTES:,} bytes", "too_large")
            continue
        if not raw:
            return
        if not raw.strip():
            continue
        try:
            yield line, from_json(raw)
        except (ValueError, RecursionError) as error:
            is_text = is_unicode(raw.decode(errors="surrogateescape"))
            yield line, _Broken(f"not valid JSON: {error}") if is_text else _not_valid(encoding)


def _csv_rows(stream: io.BufferedReader[Any], encoding: str, id_field: str) -> Iterator[tuple[int, Any]]:
    # The limit is the process's; the default of 128 kB would refuse ordinary documents.
    if csv.field_size_limit() < MAX_ROW_BYTES:
        csv.field_size_limit(MAX_ROW_BYTES)
    return _csv_cells(_Lines(_text(stream, encoding, "")), encoding, id_field)


def _not_valid(encoding: str) -> _Broken:
    return _Broken(f"not valid {encoding}; give `encoding=`")


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


def _csv_cells(lines: _Lines, encoding: str, id_field: str) -> Iterator[tuple[int, Any]]:
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
        except UnicodeError:
            yield start, _not_valid(encoding)
            return
        if not cells:
            continue
        if not all(cell.isascii() or is_unicode(cell) for cell in cells):
            yield start, _not_valid(encoding)
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
    """Return why rows under this header would be paid for in vain."""
    (most, times), *_ = Counter(header).most_common(1)
    if times > 1:
        return f"column {most[:100]!r} appears twice in the header"
    if len(header) == 1 and (found := _SEPARATORS.search(header[0])):
        return (
            f"the header is one column, {header[0][:100]!r}: separated by {found[0]!r}, where CSV has commas"
        )
    if id_field in header:
        return None
    if padded := next((name for name in header if name.strip() == id_field), None):
        return f"column {padded!r} has blanks around its name, which `id_field=` {id_field!r} has not"
    if id_field != DEFAULT_ID:
        return f"the header has no column {id_field!r} (`id_field=`)"
    return None
