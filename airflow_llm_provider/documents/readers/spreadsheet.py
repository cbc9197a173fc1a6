"""Spreadsheets as their tables: Excel workbooks, new and old."""

from __future__ import annotations

import datetime as dt
import io
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from airflow_llm_provider.documents.content import Part, Unreadable, checked
from airflow_llm_provider.documents.readers.number_format import shown
from airflow_llm_provider.documents.readers.package import Package
from airflow_llm_provider.options import Reading

Row = Iterable[str]
_BREAK = re.compile(r"[\t\r\n\v\f]+")


class Tables:
    """The text of a spreadsheet, while its sheets are read."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self.not_computed = 0  # cells with a formula and no value

    def add(self, name: str, rows: Iterable[Row], note: str = "") -> None:
        """Add one sheet: a line with its name, then a line per row; empty cells at the end of a row are left out.

        Args:
            name: of the sheet.
            rows: the texts of the cells; a row without text is an empty line, and several of them are one.
            note: put behind the name, such as `hidden`.
        """
        lines: list[str] = []
        for row in rows:
            # A line break within a cell would begin another row.
            cells = [_BREAK.sub(" ", cell).strip(" ") if cell else "" for cell in row]
            while cells and not cells[-1]:
                cells.pop()
            if cells or (lines and lines[-1]):
                lines.append("\t".join(cells))
        while lines and not lines[-1]:
            lines.pop()
        if lines:
            self._lines += [f"Sheet: {name}{f' ({note})' if note else ''}", *lines, ""]

    def parts(self) -> tuple[Part, ...]:
        """Return all sheets as one text; raises Unreadable where all are empty."""
        warnings = (f"formulas_not_computed: {self.not_computed}",) if self.not_computed else ()
        return (Part(kind="text", data=checked("\n".join(self._lines[:-1])), warnings=warnings),)


def read_xlsx(raw: bytes, reading: Reading) -> tuple[Part, ...]:  # noqa: ARG001 - every reader takes it
    """Return an Excel workbook (.xlsx, .xlsm) as its tables.

    Cells show the value that Excel stored, and the formula where it stored none. Numbers have all their digits, and
    the percent sign, currency and unit of their format; dates are ISO dates. Merged cells have their value once, in the
    first of them. Hidden sheets are read, and said to be hidden.

    Raises:
        Unreadable: the workbook is broken, encrypted or empty.
        ImportError: the extra `office` is not installed.
    """
    import openpyxl  # type: ignore[import-untyped]

    package = Package(raw, "an Excel workbook")
    try:
        values = openpyxl.load_workbook(
            io.BytesIO(package.raw), read_only=True, data_only=True, keep_links=False
        )
        formulas: list[Any] = []  # opened where a formula has no stored value

        def formula_rows(name: str) -> Iterator[Any]:
            if not formulas:
                formulas.append(
                    openpyxl.load_workbook(io.BytesIO(package.raw), read_only=True, keep_links=False)
                )
            return _open_rows(formulas[0][name])

        tables = Tables()
        for sheet in values.worksheets:
            note = "" if sheet.sheet_state == "visible" else "hidden"
            rows = _xlsx_rows(sheet, lambda name=sheet.title: formula_rows(name), tables)  # type: ignore[misc]
            tables.add(sheet.title, rows, note)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - openpyxl passes on KeyErrors and errors of its XML parser
        raise package.broken(error) from None
    return tables.parts()


def _open_rows(sheet: Any) -> Iterator[Any]:
    # The size that a sheet states of itself may be wrong; then cells would be missing, or millions would be made up.
    sheet.reset_dimensions()
    return iter(sheet.iter_rows())


def _xlsx_rows(sheet: Any, formulas: Callable[[], Iterator[Any]], tables: Tables) -> Iterator[Row]:
    shadow: Iterator[Any] | None = None
    for index, row in enumerate(_open_rows(sheet)):
        # A cell that is there and has no value is a formula that nothing has computed, or it has only a format.
        if shadow is None and any(cell.value is None and hasattr(cell, "row") for cell in row):
            shadow = formulas()
            for _ in range(index):
                next(shadow)
        others = () if shadow is None else next(shadow)
        cells = [
            others[column] if cell.value is None and column < len(others) else cell
            for column, cell in enumerate(row)
        ]
        tables.not_computed += sum(cell.data_type == "f" for cell in cells if cell.value is not None)
        yield [_xlsx_cell(cell) for cell in cells]


def _xlsx_cell(cell: Any) -> str:
    value = cell.value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return shown(value, cell.number_format or "General")
    return text_of(value)


def text_of(value: object) -> str:
    """Return a cell's value, which is not a number, as text."""
    match value:
        case None:
            return ""
        case bool():
            return "TRUE" if value else "FALSE"
        case dt.datetime():
            # Spreadsheets store a date as its midnight.
            return (
                value.date().isoformat() if value.time() == dt.time.min else value.isoformat(" ", "seconds")
            )
        case dt.date() | dt.time():
            return value.isoformat()
        case dt.timedelta():
            minutes, seconds = divmod(round(value.total_seconds()), 60)
            return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    return str(value)


def read_xls(raw: bytes, reading: Reading) -> tuple[Part, ...]:  # noqa: ARG001 - every reader takes it
    """Return an old Excel workbook (.xls) as its tables, see `read_xlsx`.

    Raises:
        Unreadable: the workbook is broken, encrypted or empty.
        ImportError: the extra `office` is not installed.
    """
    import xlrd  # type: ignore[import-untyped]

    try:
        book = xlrd.open_workbook(
            file_contents=raw,
            formatting_info=True,
            on_demand=True,
            logfile=io.StringIO(),
            ignore_workbook_corruption=True,
        )
        tables = Tables()
        for index in range(book.nsheets):
            sheet = book.sheet_by_index(index)
            rows = ([_xls_cell(book, cell) for cell in row] for row in sheet.get_rows())
            tables.add(sheet.name, rows, "hidden" if sheet.visibility else "")
            book.unload_sheet(index)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - xlrd passes on errors of struct, and asserts
        if "encrypted" in str(error).lower():
            raise Unreadable(
                "unreadable", "an Excel workbook (.xls) that is encrypted. Save it without a password."
            ) from None
        raise Unreadable(
            "unreadable", f"an Excel workbook (.xls) that is broken ({type(error).__name__})"
        ) from None
    return tables.parts()


def _xls_cell(book: Any, cell: Any) -> str:
    import xlrd

    match cell.ctype:
        case xlrd.XL_CELL_NUMBER:
            number_format = book.format_map.get(book.xf_list[cell.xf_index].format_key)
            return shown(cell.value, "General" if number_format is None else number_format.format_str)
        case xlrd.XL_CELL_DATE:
            try:
                moment = xlrd.xldate_as_datetime(cell.value, book.datemode)
            except (ValueError, OverflowError):
                return shown(cell.value, "General")
            # A number below 1 is a time of day.
            return text_of(moment.time() if cell.value < 1 else moment)
        case xlrd.XL_CELL_BOOLEAN:
            return text_of(bool(cell.value))
        case xlrd.XL_CELL_ERROR:
            return str(xlrd.error_text_from_code.get(cell.value, "#ERROR"))
    return str(cell.value)
