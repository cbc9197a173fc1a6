"""Files of rows: JSONL, CSV and Parquet behind one small writer protocol, chosen by extension."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Callable, Mapping
from typing import IO, Any, Protocol

from airflow_llm_provider.documents.rows import as_json, columns, data_fields, refuse_unknown, to_json

FORMATS = ("jsonl", "csv", "parquet")


class UnknownFormat(ValueError):
    """Rows can't be written in this format."""


class MissingExtra(ImportError):
    """The format needs a package that is not installed."""


class RowWriter(Protocol):
    """Writes rows, in order, to an open file, and leaves it open."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Write one row; columns it lacks are null."""

    def finish(self) -> None:
        """Write what is still held back."""


def check_format(name: str) -> None:
    """Raise UnknownFormat or MissingExtra if rows can't be written in this format here.

    Asked before the first call is paid for, not after the last.
    """
    if name not in FORMATS:
        raise UnknownFormat(
            f"rows can't be written as {name!r}: end the output in .jsonl, .csv or .parquet, "
            "or in a slash for a folder of JSONL parts"
        )
    if name == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtra(
            "writing Parquet needs pyarrow: pip install 'airflow-provider-llm[parquet]', "
            "or end the output in .jsonl or .csv"
        )


def row_check(
    name: str, *, schema: Mapping[str, Any] | None, list_type: bool
) -> Callable[[Mapping[str, Any]], object]:
    """Return what raises RowDoesNotFit for a row that the format could not hold."""
    if name != "parquet":
        known = frozenset(columns(list_type))
        return lambda row: refuse_unknown(row, known)
    from airflow_llm_provider.documents.parquet import ParquetColumns

    return ParquetColumns(schema, list_type).convert


def open_writer(
    name: str, file: IO[bytes], *, schema: Mapping[str, Any] | None, list_type: bool
) -> RowWriter:
    """Return the writer of format `name`; schema: of one row's data, None for plain text."""
    if name == "jsonl":
        return _JsonlWriter(file, list_type)
    if name == "csv":
        return _CsvWriter(file, schema, list_type)
    from airflow_llm_provider.documents.parquet import ParquetWriter

    return ParquetWriter(file, schema, list_type)


class _JsonlWriter:
    """One JSON object a line, with every column in the same order."""

    def __init__(self, file: IO[bytes], list_type: bool) -> None:
        self._file = file
        self._columns = columns(list_type)

    def write(self, row: Mapping[str, Any]) -> None:
        whole = {name: row.get(name) for name in self._columns}
        self._file.write(to_json(whole) + b"\n")

    def finish(self) -> None:
        pass


class _CsvWriter:
    """UTF-8 with a header; the data's fields as `data.field`, what is nested in them as JSON text.

    Null is an empty cell; true and false are written as in JSON.
    """

    def __init__(self, file: IO[bytes], schema: Mapping[str, Any] | None, list_type: bool) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=False)
        # The ending RFC 4180 asks for; with any other, Python before 3.13 leaves a lone carriage return unquoted.
        self._writer = csv.writer(self._text, lineterminator="\r\n")
        self._columns = columns(list_type)
        self._fields = data_fields(schema)
        header: list[str] = []
        for name in self._columns:
            if name == "data" and self._fields is not None:
                header += [f"data.{field}" for field in self._fields]
            else:
                header.append(name)
        self._writer.writerow(header)

    def write(self, row: Mapping[str, Any]) -> None:
        cells: list[str] = []
        for name in self._columns:
            value = row.get(name)
            if name == "data" and self._fields is not None:
                data = value if isinstance(value, Mapping) else {}
                cells += [_cell(data.get(field)) for field in self._fields]
            else:
                cells.append(_cell(value))
        self._writer.writerow(cells)

    def finish(self) -> None:
        self._text.flush()
        self._text.detach()


def _cell(value: object) -> str:
    return "" if value is None else as_json(value)
