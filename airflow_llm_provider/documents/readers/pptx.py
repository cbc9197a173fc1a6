"""PowerPoint presentations as the text of their slides, in the order in which they are shown."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any

from airflow_llm_provider.documents.content import Part, Unreadable
from airflow_llm_provider.documents.readers.chart import chart_lines, diagram_lines
from airflow_llm_provider.documents.readers.package import Package, parse_xml
from airflow_llm_provider.options import Reading

_DIAGRAM = "{http://schemas.openxmlformats.org/drawingml/2006/diagram}relIds"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_WHAT = "a PowerPoint presentation"


def read_pptx(raw: bytes, reading: Reading) -> tuple[Part, ...]:  # noqa: ARG001 - every reader takes it
    """Return a presentation (.pptx) as one text, slide by slide.

    A slide begins with its number; a hidden one says so. Then come its texts, tables (cells separated by tabs), charts
    and diagrams in their reading order, and the speaker's notes. Comments, pictures and what stands on the master
    slide are left out.

    Raises:
        Unreadable: the presentation is broken, encrypted or empty.
        ImportError: the extra `office` is not installed.
    """
    from pptx import Presentation

    package = Package(raw, _WHAT)
    lines: list[str] = []
    try:
        for index, slide in enumerate(Presentation(io.BytesIO(package.raw)).slides, 1):
            found = [line for line in _lines(slide.shapes) if line.strip()]
            notes = slide.notes_slide.notes_text_frame if slide.has_notes_slide else None
            said = [] if notes is None else [line for line in notes.text.splitlines() if line.strip()]
            if found or said:
                hidden = " (hidden)" if slide.element.get("show") == "0" else ""
                lines += [f"Slide {index}{hidden}", *found, *(["Notes:", *said] if said else []), ""]
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - python-pptx passes on KeyErrors and errors of lxml and zipfile
        raise package.broken(error) from None
    return package.parts("\n".join(lines[:-1]), "ppt/media/")


def _lines(shapes: Iterable[Any]) -> Iterator[str]:
    for shape in shapes:
        if _is_hidden(shape):
            continue
        if hasattr(shape, "shapes"):
            yield from _lines(shape.shapes)
        elif shape.has_text_frame:
            # A vertical tab is a line break within a paragraph.
            yield from shape.text_frame.text.replace("\v", "\n").splitlines()
        elif getattr(shape, "has_table", False):
            for row in shape.table.rows:
                yield "\t".join(" ".join(cell.text.split()) for cell in row.cells)
        elif getattr(shape, "has_chart", False):
            yield from chart_lines(shape.chart.element)
        else:
            for reference in shape.element.iter(_DIAGRAM):
                part = shape.part.related_part(reference.get(f"{_R}dm"))
                yield from diagram_lines(parse_xml(part.blob, _WHAT))


def _is_hidden(shape: Any) -> bool:
    # The properties of a shape that is drawn, whatever its kind.
    return any(each.get("hidden") in ("1", "true") for each in shape.element.xpath("./*[1]/p:cNvPr"))
