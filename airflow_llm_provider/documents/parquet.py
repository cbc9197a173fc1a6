"""Rows as Parquet: the data's JSON schema becomes a struct, what it can't type becomes JSON text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import IO, Any, TypeAlias

from airflow_llm_provider.documents.rows import (
    AFTER_DATA,
    BEFORE_DATA,
    ColumnType,
    RowDoesNotFit,
    as_json,
    columns,
    refuse_unknown,
    resolve,
    scalar_type,
)

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
        """Return the row with its values as Arrow takes them; raise RowDoesNotFit."""
        refuse_unknown(row, self._known)
        whole: dict[str, Any] = {}
        for name, value in row.items():
            if value is None:
                continue
            try:
                whole[name] = self._convert[name](value)
            except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
                raise RowDoesNotFit(
                    f"document {row.get('document_id')!r}: {name} {str(value)[:200]!r} does not fit its "
                    f"Parquet column ({error}); write .jsonl, or change the schema"
                ) from None
        return whole


class ParquetWriter:
    """Writes row groups of at most ROW_GROUP_ROWS rows or about ROW_GROUP_CHARACTERS of text, with zstd."""

    def __init__(self, file: IO[bytes], schema: Mapping[str, Any] | None, list_type: bool) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        self._pa = pa
        self._columns = ParquetColumns(schema, list_type)
        self._out = pq.ParquetWriter(file, self._columns.arrow, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._characters = 0

    def write(self, row: Mapping[str, Any]) -> None:
        """Hold the row until its group is full."""
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
    """Return the Arrow type of a schema, and what turns a JSON value into one of it."""
    import pyarrow as pa

    part = resolve(part, whole)
    if (kind := scalar_type(part)) is not None:
        return _scalar(kind)
    if depth < _MAX_DEPTH:  # deeper, or going round in circles: as JSON text
        if part.get("properties"):
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
        "decimal": (pa.decimal128(18, 6), Decimal),
    }
    return converts[kind]


def _integer(value: Any) -> int:
    number = int(value)
    if number != value or not -(2**63) <= number < 2**63:
        raise ValueError("not a 64-bit integer")
    return number


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def _struct(converts: Mapping[str, Convert]) -> Convert:
    def convert(value: Any) -> dict[str, Any]:
        return {name: inner(value[name]) for name, inner in converts.items() if value.get(name) is not None}

    return convert


def _list(inner: Convert) -> Convert:
    def convert(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError("not a list")
        return [None if item is None else inner(item) for item in value]

    return convert


def _weight(value: Any) -> int:
    """Return about how many characters a value holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    if isinstance(value, list):
        return 8 + sum(map(_weight, value))
    return 8
