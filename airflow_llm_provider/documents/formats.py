"""The columns of a row, and rows written as JSONL, CSV or Parquet."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import importlib.util
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import IO, Any, Literal, Protocol, TypeAlias

import orjson

from airflow_llm_provider.engine.json_schema import (
    DECIMAL,
    LOCAL_TIME,
    MAX_DIGITS,
    PLACES,
    resolve_reference,
)

ColumnType: TypeAlias = Literal[
    "text", "integer", "number", "boolean", "date", "timestamp", "local_timestamp", "decimal", "price"
]

BEFORE_DATA: dict[str, ColumnType] = {"document_id": "text", "item": "integer", "outcome": "text"}
AFTER_DATA: dict[str, ColumnType] = {
    "reading": "text",
    "model": "text",
    "stop_reason": "text",
    "input_tokens": "integer",
    "output_tokens": "integer",
    "cache_read_tokens": "integer",
    "cache_write_tokens": "integer",
    "cost_usd": "price",
    "reused": "boolean",
    "attempts": "integer",
    "repairs": "integer",
    "latency_s": "number",
    "trace_id": "text",
}


class RowDoesNotFit(ValueError):
    """A value of a row does not fit its column; the row was not taken."""


_LONG_NUMBER = re.compile(rb"\d{19}")
_JSON_TYPES = {"text": "string", "price": "string"}
# Formats of texts that have a column type of their own.
_TEXT_FORMATS: Mapping[str, ColumnType] = {
    "date": "date",
    "date-time": "timestamp",
    LOCAL_TIME: "local_timestamp",
    DECIMAL: "decimal",
}
# Of a Decimal that does not state its digits: 20 before the point and 18 after it, in the 38 that warehouses take.
_DIGITS, _PLACES = 38, 18
_EXACT = decimal.Context(prec=1_000)


def columns(list_type: bool) -> list[str]:
    """Return a row's columns in order; `item`, from 0, only where an answer is a list with one row per item."""
    before = [name for name in BEFORE_DATA if list_type or name != "item"]
    return [*before, "data", *AFTER_DATA]


def refuse_unknown(row: Mapping[str, Any], known: frozenset[str]) -> None:
    """Raise RowDoesNotFit for a row with an unknown column."""
    if not known.issuperset(row):
        raise RowDoesNotFit(
            f"document {row.get('document_id')!r}: unknown columns {sorted(row.keys() - known)}"
        )


def row_schema(schema: Mapping[str, Any] | None, list_type: bool) -> dict[str, Any]:
    """Return the JSON schema of one row.

    Args:
        schema: of the row's data; None for plain text.
        list_type: whether an answer is a list with one row per item.
    """
    data = dict(schema) if schema is not None else {"type": ["string", "null"]}
    definitions = data.pop("$defs", None)
    properties: dict[str, Any] = {}
    for name in columns(list_type):
        kind = {**BEFORE_DATA, **AFTER_DATA}.get(name)
        if kind is None:
            properties[name] = data
        elif name == "document_id":
            properties[name] = {"type": "string"}
        else:
            properties[name] = {"type": [_JSON_TYPES.get(kind, kind), "null"]}
    whole: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "required": ["document_id"],
    }
    if definitions:
        whole["$defs"] = definitions  # references in it are resolved from the top of the whole schema
    return whole


def data_fields(schema: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]] | None:
    """Return the fields of the data and their schemas; None when the data is not an object with named fields."""
    if schema is None:
        return None
    found = resolve(schema, schema)
    return dict(found["properties"]) if _is_closed(found) else None


def _is_closed(part: Mapping[str, Any]) -> bool:
    """Tell whether an object has named fields and no others; others would have no column."""
    return bool(part.get("properties")) and not part.get("additionalProperties")


def resolve(part: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow `$ref` and drop "or null": return what a value of `part` is when it is there."""
    for _ in range(32):  # a reference to itself leads nowhere
        if "$ref" in part:
            part = resolve_reference(str(part["$ref"]), whole) or {}
            continue
        options = part.get("anyOf") or part.get("oneOf") or part.get("allOf")
        if options and "type" not in part:
            real = [option for option in options if option.get("type") != "null"]
            if len(real) != 1:
                return {}
            part = real[0]
            continue
        return part
    return {}


def scalar_type(part: Mapping[str, Any]) -> ColumnType | None:
    """Return the column type of a resolved schema; None for objects, arrays and unions."""
    kinds = part.get("type")
    if kinds is None and ("enum" in part or "const" in part):
        values = part["enum"] if "enum" in part else [part["const"]]
        return "text" if all(isinstance(value, str) for value in values) else None
    real = [kind for kind in ([kinds] if isinstance(kinds, str) else kinds or []) if kind != "null"]
    if len(real) != 1:
        return None
    if real[0] == "string":
        return _TEXT_FORMATS.get(part.get("format", ""), "text")
    names: dict[str, ColumnType] = {
        "integer": "integer",
        "number": "number",
        "boolean": "boolean",
    }
    return names.get(real[0])


def as_json(value: object) -> str:
    """Return a value without a column type of its own as JSON text; a text stays as it is."""
    return value if isinstance(value, str) else to_json(value).decode()


def to_json(value: object) -> bytes:
    """Return a value as one line of JSON.

    Raises:
        ValueError, TypeError, RecursionError: JSON has no such value, or other programs could not read it.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        # An answer may hold integers above 64 bits, which orjson refuses. Half of a surrogate pair fails here, too.
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def from_json(raw: bytes) -> Any:
    """Return the value of a JSON text, with exact integers.

    Raises:
        ValueError, RecursionError: the text is not JSON, or it is nested too deeply.
    """
    # orjson makes floats of integers above 64 bits; the standard library is slower, and keeps them.
    if _LONG_NUMBER.search(raw):
        return json.loads(raw, parse_constant=_refuse)
    return orjson.loads(raw)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


FORMATS = ("jsonl", "csv", "parquet")


class UnknownFormat(ValueError):
    """Rows cannot be written in this format."""


class MissingExtra(ImportError):
    """The format needs a package that is not installed."""


class FormatWriter(Protocol):
    """Writes rows in order to an open file, and does not close it."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one row; a column that it lacks is null."""

    def finish(self) -> None:
        """Write what is still in memory."""


def require_known(name: str) -> None:
    """Raise UnknownFormat unless there is a format of this name."""
    if name not in FORMATS:
        raise UnknownFormat(
            f"rows cannot be written as {name!r}: end the output in .jsonl, .csv or .parquet, "
            "or in a slash for a folder of JSONL parts"
        )


def check_format(name: str) -> None:
    """Check, before the first call is paid for, that rows can be written in a format.

    Raises:
        UnknownFormat: there is no such format.
        MissingExtra: the format needs a package that is not installed.
    """
    require_known(name)
    if name == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtra(
            "writing Parquet needs pyarrow: pip install 'airflow-provider-llm[parquet]', "
            "or end the output in .jsonl or .csv"
        )


def row_check(
    name: str, *, schema: Mapping[str, Any] | None, list_type: bool
) -> Callable[[Mapping[str, Any]], object]:
    """Return a function that raises RowDoesNotFit for a row that does not fit the format."""
    if name == "jsonl":
        known = frozenset(columns(list_type))
        return lambda row: refuse_unknown(row, known)
    if name == "csv":
        return CsvColumns(schema, list_type).cells
    # Each row is converted here and once more when it is written. Only here can its document still be a dead letter.
    return ParquetColumns(schema, list_type).convert


def open_writer(
    name: str, file: IO[bytes], *, schema: Mapping[str, Any] | None, list_type: bool
) -> FormatWriter:
    """Return a writer of rows.

    Args:
        name: one of FORMATS.
        file: open for writing in binary mode.
        schema: of one row's data; None for plain text.
        list_type: whether an answer is a list with one row per item.
    """
    if name == "jsonl":
        return _JsonlWriter(file, list_type)
    if name == "csv":
        return _CsvWriter(file, schema, list_type)
    return ParquetWriter(file, schema, list_type)


class _JsonlWriter:
    """One JSON object per line, with all columns in the same order."""

    def __init__(self, file: IO[bytes], list_type: bool) -> None:
        self._file = file
        self._columns = columns(list_type)

    def write(self, row: Mapping[str, Any]) -> None:
        whole = {name: row.get(name) for name in self._columns}
        self._file.write(to_json(whole) + b"\n")

    def finish(self) -> None:
        pass


class _CsvWriter:
    """UTF-8 with a header; the fields of the data are columns `data.field`, and nested values are JSON text.

    Null is an empty cell; true and false are written as in JSON.
    """

    def __init__(self, file: IO[bytes], schema: Mapping[str, Any] | None, list_type: bool) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=False)
        # The line ending of RFC 4180. With any other, Python before 3.13 does not quote a lone carriage return.
        self._writer = csv.writer(self._text, lineterminator="\r\n")
        self._columns = CsvColumns(schema, list_type)
        self._writer.writerow(self._columns.header)

    def write(self, row: Mapping[str, Any]) -> None:
        self._writer.writerow(self._columns.cells(row))

    def finish(self) -> None:
        self._text.flush()
        # Without it, the wrapper would close the file when it is collected, and the file is the caller's.
        self._text.detach()


class CsvColumns:
    """The columns of a CSV file: those of a row, with the fields of its data."""

    def __init__(self, schema: Mapping[str, Any] | None, list_type: bool) -> None:
        self._columns = columns(list_type)
        self._known = frozenset(self._columns)
        self._fields = data_fields(schema)
        self.header: list[str] = []
        for name in self._columns:
            is_split = name == "data" and self._fields is not None
            self.header += [f"data.{field}" for field in self._fields or ()] if is_split else [name]

    def cells(self, row: Mapping[str, Any]) -> list[str]:
        """Return the row as texts; raises RowDoesNotFit."""
        refuse_unknown(row, self._known)
        cells: list[str] = []
        for name in self._columns:
            value = row.get(name)
            if name == "data" and self._fields is not None:
                cells += [_cell(each) for each in self._split(row, value)]
            else:
                cells.append(_cell(value))
        return cells

    def _split(self, row: Mapping[str, Any], data: Any) -> Iterator[Any]:
        fields = self._fields or {}
        if data is not None and not (isinstance(data, Mapping) and data.keys() <= fields.keys()):
            raise RowDoesNotFit(
                f"document {row.get('document_id')!r}: its data, a {type(data).__name__!r}, has something that its "
                "schema does not name, and CSV has no column for it; write .jsonl, or change the schema"
            )
        yield from ((data or {}).get(field) for field in fields)


def _cell(value: object) -> str:
    return "" if value is None else as_json(value)


ROW_GROUP_ROWS = 5_000
ROW_GROUP_CHARACTERS = 16_000_000
_MAX_DEPTH = 8

Convert: TypeAlias = Callable[[Any], Any]


class ParquetColumns:
    """The Arrow types of a row's columns: tokens int64, latency_s double, cost_usd decimal(18, 6)."""

    def __init__(self, schema: Mapping[str, Any] | None, list_type: bool) -> None:
        import pyarrow as pa  # type: ignore[import-untyped]

        self._known = frozenset(columns(list_type))
        self._convert: dict[str, Convert] = {}
        fields = []
        for name in columns(list_type):
            kind = {**BEFORE_DATA, **AFTER_DATA}.get(name)
            if kind is not None:
                arrow, convert = _scalar(kind)
            elif schema is None:
                arrow, convert = _scalar("text")
            else:
                arrow, convert = _typed(schema, schema, 0)
            fields.append(pa.field(name, arrow))
            self._convert[name] = convert
        self.arrow = pa.schema(fields)

    def convert(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row with values that Arrow takes; raises RowDoesNotFit."""
        refuse_unknown(row, self._known)
        whole: dict[str, Any] = {}
        for name, value in row.items():
            if value is None:
                continue
            try:
                whole[name] = self._convert[name](value)
            except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
                raise RowDoesNotFit(
                    f"document {row.get('document_id')!r}: the value of {name}, a {type(value).__name__!r}, does not "
                    f"fit its Parquet column ({_reason(error)}); write .jsonl, or change the schema"
                ) from None
        return whole


class ParquetWriter:
    """Writes row groups of at most ROW_GROUP_ROWS rows, or about ROW_GROUP_CHARACTERS of text, with zstd."""

    def __init__(self, file: IO[bytes], schema: Mapping[str, Any] | None, list_type: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        self._pa = pa
        self._columns = ParquetColumns(schema, list_type)
        self._out = pq.ParquetWriter(file, self._columns.arrow, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._characters = 0

    def write(self, row: Mapping[str, Any]) -> None:
        """Keep the row until its group is full, then write the group."""
        whole = self._columns.convert(row)
        self._rows.append(whole)
        self._characters += _weight(whole)
        if len(self._rows) >= ROW_GROUP_ROWS or self._characters >= ROW_GROUP_CHARACTERS:
            self._flush()

    def finish(self) -> None:
        """Write the last group and the footer."""
        self._flush()
        self._out.close()

    def _flush(self) -> None:
        if self._rows:
            self._out.write_table(self._pa.Table.from_pylist(self._rows, schema=self._columns.arrow))
            self._rows = []
            self._characters = 0


def _typed(part: Mapping[str, Any], whole: Mapping[str, Any], depth: int) -> tuple[Any, Convert]:
    """Return the Arrow type of a schema, and the function that converts a JSON value to it."""
    import pyarrow as pa

    part = resolve(part, whole)
    if (kind := scalar_type(part)) == "decimal":
        return _decimal(part.get(MAX_DIGITS), part.get(PLACES))
    if kind is not None:
        return _scalar(kind)
    if depth < _MAX_DEPTH:  # deeper, or a schema that refers to itself: as JSON text
        if _is_closed(part):
            members = {name: _typed(inner, whole, depth + 1) for name, inner in part["properties"].items()}
            converts = {name: convert for name, (_, convert) in members.items()}
            return pa.struct([pa.field(name, arrow) for name, (arrow, _) in members.items()]), _struct(
                converts
            )
        if part.get("type") == "array" and isinstance(part.get("items"), Mapping) and part["items"]:
            arrow, convert = _typed(part["items"], whole, depth + 1)
            return pa.list_(arrow), _list(convert)
    return pa.string(), as_json


def _scalar(kind: ColumnType) -> tuple[Any, Convert]:
    import pyarrow as pa

    converts: dict[ColumnType, tuple[Any, Convert]] = {
        "text": (pa.string(), as_json),
        "integer": (pa.int64(), _integer),
        "number": (pa.float64(), float),
        "boolean": (pa.bool_(), _boolean),
        "date": (pa.date32(), dt.date.fromisoformat),
        "timestamp": (pa.timestamp("us", tz="UTC"), _timestamp),
        "local_timestamp": (pa.timestamp("us"), dt.datetime.fromisoformat),
        # Six decimals: a price is a whole number of micro-USD.
        "price": (pa.decimal128(18, 6), Decimal),
    }
    return converts[kind]


def _decimal(digits: int | None, places: int | None) -> tuple[Any, Convert]:
    """Return the Arrow type of a Decimal with so many digits in all, and after the point, and what converts to it."""
    import pyarrow as pa

    scale = min(_PLACES if places is None else places, _DIGITS)
    precision = _DIGITS if digits is None else min(max(digits, scale, 1), _DIGITS)

    def convert(value: Any) -> Decimal:
        number = Decimal(value)
        shifted = number.scaleb(scale, _EXACT)
        if shifted != shifted.to_integral_value() or abs(shifted) >= Decimal(10) ** precision:
            raise _NotOfType(f"more than {precision - scale} digits before the point or {scale} after it")
        return number

    return pa.decimal128(precision, scale), convert


def _timestamp(value: Any) -> dt.datetime:
    time = dt.datetime.fromisoformat(value)
    # RFC 3339 wants an offset. A time without one is taken as UTC.
    return time if time.tzinfo else time.replace(tzinfo=dt.UTC)


def _integer(value: Any) -> int:
    number = int(value)
    # JSON has one kind of number: 3.0 is an integer, 3.5 is not. Python's integers have no limit, int64 has.
    if number != value or not -(2**63) <= number < 2**63:
        raise _NotOfType("not a 64-bit integer")
    return number


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _NotOfType("neither true nor false")
    return value


def _struct(converts: Mapping[str, Convert]) -> Convert:
    def convert(value: Any) -> dict[str, Any]:
        if not value.keys() <= converts.keys():
            raise _NotOfType("it has a field that its schema does not name")
        return {name: inner(value[name]) for name, inner in converts.items() if value.get(name) is not None}

    return convert


def _list(inner: Convert) -> Convert:
    def convert(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _NotOfType("not a list")
        return [None if item is None else inner(item) for item in value]

    return convert


class _NotOfType(ValueError):
    """A value is not of its column's type; the text is ours, and holds no value."""


def _reason(error: Exception) -> str:
    """Return why a value does not fit; errors of libraries may quote the value, so only their class is named."""
    return str(error) if isinstance(error, _NotOfType) else type(error).__name__


def _weight(value: Any) -> int:
    """Return about how many characters of text a value holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    if isinstance(value, list):
        return 8 + sum(map(_weight, value))
    return 8
