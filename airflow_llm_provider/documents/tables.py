"""Rows as documents, one document per row: of JSONL and CSV files, and of lists."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import IO, Any

import orjson

from airflow_llm_provider.documents.content import byte_order_mark
from airflow_llm_provider.documents.document import Document, Reason, Rejected
from airflow_llm_provider.documents.formats import from_json
from airflow_llm_provider.options import MAX_FILE_BYTES, Reading

TABLE_SUFFIXES = frozenset({"jsonl", "ndjson", "csv", "tsv"})

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE_BYTES = 64 * 1024
_SAID = re.compile(r"\"?sep=(.)\"?", re.IGNORECASE)

_log = logging.getLogger(__name__)


def table_rows(
    stream: IO[bytes], document: Document, *, reading: Reading, is_alone: bool = True
) -> Iterator[Document | Rejected]:
    """Yield one document per row of an open table; a broken row is a Rejected, and the other rows are read.

    Args:
        stream: the open file; it is not closed.
        document: the file. A name that ends in `.csv` or `.tsv` is read as such, any other as JSONL.
        reading: which fields are id and text; the encoding of a file without a byte order mark; the delimiter of CSV.
        is_alone: there is no other table, so that an id need not be told from those in another.
    """
    # A buffer of our own, because not every store's stream can look ahead, as the byte order mark needs.
    buffered = io.BufferedReader(_Raw(stream), _SAMPLE_BYTES)
    mark, marked = byte_order_mark(buffered.peek(4))
    buffered.read(len(mark))
    encoding = marked or reading.encoding
    if document.name.lower().endswith((".csv", ".tsv")):
        delimiter = reading.delimiter or _delimiter(buffered, document, encoding, reading)
        rows = _csv_rows(buffered, encoding, reading.id_field, delimiter)
    else:
        rows = _jsonl_rows(buffered, encoding)
    qualifier = "" if is_alone else f"{document.id}#"
    for line, row in rows:
        uri = f"{document.uri}#L{line}"
        where = f"{document.id} line {line}"
        if isinstance(row, _Broken):
            yield Rejected(id=where, uri=uri, reason=row.reason, message=f"{where}: {row.message}")
        else:
            yield row_document(row, where=where, uri=uri, reading=reading, qualifier=qualifier)


def _delimiter(buffered: io.BufferedReader[Any], document: Document, encoding: str, reading: Reading) -> str:
    """Return what separates the cells of a CSV file, found in its first rows; the log says so if it is no comma.

    It is what gives all rows the same number of cells, more than one. Where several do, it is the one that finds the id
    or the text in the header, else not the comma, which is common in amounts and texts, else what gives the most cells.
    """
    if document.name.lower().endswith(".tsv"):
        return "\t"
    # The last line of the sample may be cut off.
    sample = buffered.peek(_SAMPLE_BYTES)[:_SAMPLE_BYTES]
    lines = list(io.StringIO(sample.decode(encoding, errors="replace"), newline=""))
    # Excel reads, and some programs write, a first line that says it.
    if lines and (said := _SAID.fullmatch(lines[0].rstrip("\r\n"))):
        return said[1]
    whole = lines if len(sample) < _SAMPLE_BYTES // 2 else lines[:-1]
    wanted = {reading.id_field, reading.text_field}
    fitting = {}
    for delimiter in _DELIMITERS:
        try:
            rows = [row for row in csv.reader(whole, delimiter=delimiter) if row]
        except csv.Error:
            continue
        # A quoted cell of the last row may be cut off, too.
        if rows and len(rows[0]) > 1 and all(len(row) == len(rows[0]) for row in rows[1:-1] or rows[1:]):
            fitting[delimiter] = (bool(wanted & set(rows[0])), delimiter != ",", len(rows[0]))
    found = max(fitting, key=lambda delimiter: fitting[delimiter], default=",")
    if len(fitting) > 1 and not fitting[found][0]:
        _log.warning(
            "%s may be separated by any of %s; %r is taken. If that is wrong, set `Reading(delimiter=…)`.",
            document.uri,
            " ".join(map(repr, fitting)),
            found,
        )
    elif found != ",":
        _log.info("%s is separated by %r.", document.uri, found)
    return found


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


def _csv_rows(
    stream: io.BufferedReader[Any], encoding: str, id_field: str, delimiter: str
) -> Iterator[tuple[int, Any]]:
    # The csv module has one limit for the process; its default of 128 kB would refuse ordinary documents.
    if csv.field_size_limit() < MAX_FILE_BYTES:
        csv.field_size_limit(MAX_FILE_BYTES)
    return _csv_cells(_Lines(_text(stream, encoding, "")), encoding, id_field, delimiter)


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


def _csv_cells(lines: _Lines, encoding: str, id_field: str, delimiter: str) -> Iterator[tuple[int, Any]]:
    # Strict: otherwise a quote that is never closed takes all rows after it into its cell.
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
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
            until = f" up to line {reader.line_num}" if reader.line_num > start else ""
            yield start, _Broken(f"not valid CSV{until}: {error}")
            continue
        except UnicodeError:
            yield start, _not_valid(encoding)
            return
        if not cells or (header is None and _SAID.fullmatch(delimiter.join(cells))):
            continue
        if not all(cell.isascii() or is_unicode(cell) for cell in cells):
            yield start, _not_valid(encoding)
            # No row can be read without the names of its columns.
            if header is None:
                return
        elif header is None:
            header = cells
            if wrong := _wrong_header(header, id_field, delimiter):
                yield start, _Broken(f"{wrong}, so no row was read")
                return
        elif len(cells) != len(header):
            yield start, _Broken(f"{len(cells)} cells where the header has {len(header)}")
        else:
            yield start, dict(zip(header, cells, strict=True))


def _wrong_header(header: list[str], id_field: str, delimiter: str) -> str | None:
    """Return why the rows under this header cannot be documents; None when they can."""
    (most, times), *_ = Counter(header).most_common(1)
    if times > 1:
        number = header.index(most) + 1
        return f"the header names columns {number} and {header.index(most, number) + 1} alike"
    other = next((each for each in _DELIMITERS if each in header[0]), None)
    if len(header) == 1 and other is not None:
        return (
            f"the header is one column with {other!r} in it, and {delimiter!r} separates the cells: "
            "if another character does, give it, such as `Reading(delimiter=';')`"
        )
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
    r"(?!https?://)(?:/|\./|\.\./|[a-z][a-z0-9+.-]*://)?[^\n]*?\.(?:"
    r"txt|md|html?|pdf|docx?|xlsx?|pptx?|od[tsp]|rtf|epub|eml|msg|csv|tsv|jsonl?|xml|png|jpe?g|gif|webp|tiff?|bmp|zip)\Z",
    re.IGNORECASE,
)


def row_document(
    row: object, *, where: str, uri: str | None, reading: Reading, qualifier: str = ""
) -> Document | Rejected:
    """Return one row as a document, or why it cannot be one.

    Args:
        row: a dict, or a str, which is its own text.
        where: the position of the row, such as `rows.jsonl line 7`: its name in messages, and its id where it has none.
        uri: where it is; None for a row given in memory.
        reading: `id_field` is the field that is its id. Only the default, `id`, may be missing: the id is then a hash.
            `text_field` is the field that is its text; None: the whole row as JSON with sorted keys.
        qualifier: put before the id, for rows of a table that is not alone.
    """
    id_field, text_field = reading.id_field, reading.text_field

    def rejected(reason: Reason, message: str, row_id: str = where) -> Rejected:
        return Rejected(id=row_id, uri=uri, reason=reason, message=f"{where}: {message}")

    if isinstance(row, str):
        return Document(id=qualifier + _hash(row), uri=uri, text=row)
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
    row_id = qualifier + row_id
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
