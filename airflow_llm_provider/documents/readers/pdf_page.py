"""One PDF page: its text, what stands in its form fields and notes, and whether it has to be looked at."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_llm_provider.documents.readers.pdf_lines import Value, in_reading_order, joined, lines_of, place
from airflow_llm_provider.documents.readers.pdf_pieces import Characters, Piece

_UNREAD_SHARE = 0.03
"""A page is looked at when images without text on them cover at least so much of it: about a third of a line of
business cards; a logo is smaller."""
_POINTS_PER_CHARACTER = 2_000
"""An image with fewer characters, one per so many square points, has no text on it. A page of text has one per 200; a
scan that is stamped with an id has one per 10,000."""
_FEW_CHARACTERS, _MANY_DRAWINGS = 200, 300
"""A page with less text and more lines and curves shows text that was drawn, or a figure."""
_UNSURE_SHARE = 0.02
"""A page is looked at when so many of its characters have no meaning in the file."""
_MAX_DEPTH = 6  # of form XObjects, which hold the objects of a page

# Replacement characters, and those of the private use area: their shape is only in the font.
_UNSURE = re.compile("[\ufffd\ue000-\uf8ff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What one page says.

    Attributes:
        text: in lines; empty where there is none.
        has_more: whether the page shows something that its text does not say: a scan, an image, a drawing.
        doubts: why the text cannot be trusted, as words of `DOUBTS`.
    """

    text: str
    has_more: bool
    doubts: tuple[str, ...] = ()


def read_page(pdf: Any, index: int) -> Page:
    """Read one page.

    Args:
        pdf: an open document of pypdfium2, with forms initialised. What is shown of notes and stamps becomes part of
            the page, so its pages are not to be written to a file.
        index: the page's number, from 0.
    """
    from pypdfium2 import raw  # type: ignore[import-untyped]

    page = pdf[index]
    try:
        values, is_flat = _annotations(pdf, page)
        if not is_flat:
            raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY)
            page.close()
            page = pdf[index]  # else the text is that of before
        layer = page.get_textpage()
        text, is_cut = _text(page, layer, values)
        characters = len(text) - sum(map(text.count, " \n\t"))
        unsure = 0 if text.isascii() else len(_UNSURE.findall(text))
        doubts = [*(["text_outside_page"] if is_cut else ()), *(["unsure_characters"] if unsure else ())]
        seen = _Seen.of(page, layer)
        has_more = (
            seen.unread_share >= _UNREAD_SHARE
            or (characters < _FEW_CHARACTERS and seen.drawings > _MANY_DRAWINGS)
            or unsure > _UNSURE_SHARE * characters
            or (not characters and seen.objects > 0)
        )
        return Page(text=text if characters else "", has_more=has_more, doubts=tuple(doubts))
    finally:
        page.close()


def _text(page: Any, layer: Any, values: Sequence[Value]) -> tuple[str, bool]:
    """Return the text of a page with one line per line on the page, and whether text outside the page was left out.

    PDFium's own lines break a wide row of a table in two, and glue two rows; so they are found again by the positions
    of the characters. Text may run in any direction.
    """
    box = _Box(page)
    pieces = list(Characters(layer).pieces(by_word=bool(values)))
    shown = [piece for piece in pieces if box.shows(piece)]
    lines = in_reading_order(lines_of(shown))
    place(values, lines)
    return "\n".join(map(joined, lines)), len(shown) < len(pieces)


class _Box:
    """The part of the page that is shown."""

    def __init__(self, page: Any) -> None:
        self.left, self.bottom, self.right, self.top = page.get_bbox()

    def shows(self, piece: Piece) -> bool:
        """Tell whether any of a piece lies on the page."""
        across = piece.baseline + piece.height / 4
        if not piece.angle:
            return bool(
                piece.end >= self.left and piece.start <= self.right and self.bottom <= across <= self.top
            )
        cos, sin = math.cos(piece.angle), math.sin(piece.angle)
        x0, x1 = sorted(along * cos - across * sin for along in (piece.start, piece.end))
        y0, y1 = sorted(along * sin + across * cos for along in (piece.start, piece.end))
        return bool(x1 >= self.left and x0 <= self.right and y1 >= self.bottom and y0 <= self.top)


@dataclass(kw_only=True, slots=True)
class _Seen:
    """What is drawn on a page beside its text.

    Attributes:
        objects: of any kind.
        drawings: lines, curves and shadings.
        unread_share: how much of the page is covered by images on which no text stands.
    """

    objects: int = 0
    drawings: int = 0
    unread_share: float = 0.0
    _images: list[tuple[float, float, float, float]] = field(default_factory=list)

    @classmethod
    def of(cls, page: Any, layer: Any) -> _Seen:
        """Look through the objects of a page."""
        from pypdfium2 import raw

        seen = cls()
        seen._look(raw, page, raw.FPDFPage_CountObjects(page), raw.FPDFPage_GetObject, ())
        left, bottom, right, top = page.get_bbox()
        unread = 0.0
        for image in seen._images:
            x0, y0, x1, y1 = (
                max(image[0], left),
                max(image[1], bottom),
                min(image[2], right),
                min(image[3], top),
            )
            area = max(x1 - x0, 0) * max(y1 - y0, 0)
            # As a text has at least one character, a small image without any is unread.
            if (
                area
                and raw.FPDFText_GetBoundedText(layer, x0, y1, x1, y0, None, 0) < area / _POINTS_PER_CHARACTER
            ):
                unread += area
        seen.unread_share = unread / max((right - left) * (top - bottom), 1.0)
        return seen

    def _look(self, raw: Any, parent: Any, count: int, get: Any, matrices: tuple[Any, ...]) -> None:
        edges = [ctypes.c_float() for _ in range(4)]
        kind_of, text = raw.FPDFPageObj_GetType, raw.FPDF_PAGEOBJ_TEXT
        self.objects += count
        for number in range(count):
            item = get(parent, number)
            if (kind := kind_of(item)) == text:  # most of them
                continue
            if kind in (raw.FPDF_PAGEOBJ_PATH, raw.FPDF_PAGEOBJ_SHADING):
                self.drawings += 1
            elif kind == raw.FPDF_PAGEOBJ_IMAGE and raw.FPDFPageObj_GetBounds(item, *edges):
                self._images.append(_on_page([edge.value for edge in edges], matrices))
            elif kind == raw.FPDF_PAGEOBJ_FORM and len(matrices) < _MAX_DEPTH:
                matrix = raw.FS_MATRIX()
                raw.FPDFPageObj_GetMatrix(item, matrix)
                inside = raw.FPDFFormObj_CountObjects(item)
                self._look(raw, item, inside, raw.FPDFFormObj_GetObject, (matrix, *matrices))


def _on_page(edges: list[float], matrices: tuple[Any, ...]) -> tuple[float, float, float, float]:
    """Return a rectangle in the page's points, out of those of the form XObjects around it."""
    left, bottom, right, top = edges
    for m in matrices:
        corners = [
            (m.a * x + m.c * y + m.e, m.b * x + m.d * y + m.f) for x in (left, right) for y in (bottom, top)
        ]
        (left, right), (bottom, top) = (
            (min(values), max(values)) for values in ([x for x, _ in corners], [y for _, y in corners])
        )
    return left, bottom, right, top


def _annotations(pdf: Any, page: Any) -> tuple[list[Value], bool]:
    """Return the values of the form fields, and whether nothing else on the page is an annotation that shows something.

    The fields are hidden, so that their values are not read a second time when the others become part of the page.
    """
    from pypdfium2 import raw

    values: list[Value] = []
    is_flat = True
    for number in range(raw.FPDFPage_GetAnnotCount(page)):
        annotation = raw.FPDFPage_GetAnnot(page, number)
        try:
            kind = raw.FPDFAnnot_GetSubtype(annotation)
            flags = raw.FPDFAnnot_GetFlags(annotation)
            if flags & (raw.FPDF_ANNOT_FLAG_HIDDEN | raw.FPDF_ANNOT_FLAG_NOVIEW):
                continue
            if kind in (raw.FPDF_ANNOT_LINK, raw.FPDF_ANNOT_POPUP):
                continue
            text = None
            if kind == raw.FPDF_ANNOT_WIDGET:
                text = _value(raw, pdf.formenv, annotation)
            elif kind == raw.FPDF_ANNOT_FREETEXT and not raw.FPDFAnnot_HasKey(annotation, b"AP"):
                text = _wide(raw.FPDFAnnot_GetStringValue, annotation, b"Contents")
            if text is None:
                is_flat = False
                continue
            box = raw.FS_RECTF()
            raw.FPDFAnnot_GetRect(annotation, box)
            raw.FPDFAnnot_SetFlags(annotation, flags | raw.FPDF_ANNOT_FLAG_HIDDEN)
            if text:
                values.append(
                    Value(text=text, left=box.left, bottom=box.bottom, right=box.right, top=box.top)
                )
        finally:
            raw.FPDFPage_CloseAnnot(annotation)
    return values, is_flat


def _value(raw: Any, form: Any, annotation: Any) -> str | None:
    """Return what a form field shows; None for a field whose look has to be read instead, such as a signature."""
    if form is None:
        return None
    kind = raw.FPDFAnnot_GetFormFieldType(form, annotation)
    if kind in (raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON):
        return "[x]" if raw.FPDFAnnot_IsChecked(form, annotation) else "[ ]"
    if kind in (raw.FPDF_FORMFIELD_COMBOBOX, raw.FPDF_FORMFIELD_LISTBOX):
        options = range(raw.FPDFAnnot_GetOptionCount(form, annotation))
        chosen = [number for number in options if raw.FPDFAnnot_IsOptionSelected(form, annotation, number)]
        labels = [_wide(raw.FPDFAnnot_GetOptionLabel, form, annotation, number) for number in chosen]
        return ", ".join(labels) or _wide(raw.FPDFAnnot_GetFormFieldValue, form, annotation)
    if kind == raw.FPDF_FORMFIELD_TEXTFIELD:
        text = _wide(raw.FPDFAnnot_GetFormFieldValue, form, annotation)
        is_password = raw.FPDFAnnot_GetFormFieldFlags(form, annotation) & raw.FPDF_FORMFLAG_TEXT_PASSWORD
        return "*" * len(text) if is_password else "\n".join(_lines(text))
    return None


def _lines(text: str) -> Iterator[str]:
    return (line.strip() for line in re.split(r"[\r\n]+", text))


def _wide(call: Any, *arguments: Any) -> str:
    """Return the text that a function of PDFium writes into a buffer, as UTF-16."""
    size = call(*arguments, None, 0)
    buffer = (ctypes.c_ushort * (size // 2 + 1))()
    call(*arguments, buffer, size)
    return bytes(buffer)[:size].decode("utf-16-le", "replace").rstrip("\0")
