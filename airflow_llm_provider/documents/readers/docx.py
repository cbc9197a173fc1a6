"""Word documents as the text that a reader of the printout sees, with tracked changes accepted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from airflow_llm_provider.documents.content import Part
from airflow_llm_provider.documents.readers import kinds
from airflow_llm_provider.documents.readers.chart import chart_lines, diagram_lines
from airflow_llm_provider.documents.readers.numbering import number
from airflow_llm_provider.documents.readers.package import Package
from airflow_llm_provider.documents.readers.word_styles import ListNumbers, Styles, W, is_on, value_of
from airflow_llm_provider.options import Reading

_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_CHART = "{http://schemas.openxmlformats.org/drawingml/2006/chart}chart"
_DIAGRAM = "{http://schemas.openxmlformats.org/drawingml/2006/diagram}relIds"
_TEXT_PATH = "{urn:schemas-microsoft-com:vml}textpath"
_LITERAL = {f"{W}tab": "\t", f"{W}ptab": "\t", f"{W}br": "\n", f"{W}cr": "\n", f"{W}noBreakHyphen": "-"}
# Removed by a tracked change; a Fallback repeats, for old programs, the text of the Choice beside it.
_GONE = frozenset({f"{W}del", f"{W}moveFrom", f"{W}pPr", f"{W}rPr", f"{W}tblPr", f"{W}sdtPr", _FALLBACK})
# The marks of the symbol fonts with which forms show check boxes.
_SYMBOLS = {"F0FE": "☒", "F0FD": "☒", "F0A8": "☐", "F06F": "☐", "F0FC": "✓", "F0FB": "✗", "F0B7": "•"}


def read_docx(raw: bytes, reading: Reading) -> tuple[Part, ...]:  # noqa: ARG001 - every reader takes it
    """Return a Word document as one text: one line per paragraph, the cells of a table row separated by tabs.

    Automatic numbers stand before their paragraphs. Each page header stands once, before its section, and each footer
    after it. Footnotes and endnotes follow at the end, under the marks they have in the text, such as `[1]`. Hidden
    text, comments and what tracked changes have removed are left out.

    Args:
        raw: the file's bytes.
        reading: not used.

    Raises:
        Unreadable: the document is broken, encrypted or empty.
    """
    package = Package(raw, "a Word document")
    starts = [part for kind, part in package.relations("").values() if kind == "officeDocument"]
    lines = _Document(package, starts[0] if starts else "word/document.xml").lines()
    return package.parts("\n".join(lines), "word/media/")


class _Document:
    """One document, while it is read from its beginning to its end."""

    def __init__(self, package: Package, main: str) -> None:
        self._package = package
        self._body = package.xml(main).find(f"{W}body")
        self._main = main
        self._relations = package.relations(main)
        self._styles = Styles(self._part("styles"))
        self._numbers = ListNumbers(self._part("numbering"), self._styles)
        self._has_even_pages = bool(is_on(self._part("settings"), "evenAndOddHeaders"))
        self._said: set[str] = set()  # headers and footers that an earlier section had
        self._notes: dict[str, list[Any]] = {"footnotes": [], "endnotes": []}
        # For each open field, whether its code is being read; of a field only the result is shown.
        self._fields: list[bool] = []
        self._has_fields = False

    def _part(self, kind: str) -> Any:
        found = [name for each, name in self._relations.values() if each == kind and name in self._package]
        return self._package.xml(found[0]) if found else None

    def lines(self) -> list[str]:
        lines: list[str] = []
        if self._body is None:
            return lines
        self._sections = [each for each in self._body.iter(f"{W}sectPr") if not _is_change(each)]
        self._section = 0
        self._headings("header", lines)
        self._story(self._body, lines)
        self._headings("footer", lines)
        for kind, label in (("footnotes", "decimal"), ("endnotes", "lowerRoman")):
            root = self._part(kind)
            by_id = {} if root is None else {note.get(f"{W}id"): note for note in root}
            # A note may refer to another, which comes after it.
            for position, note_id in enumerate(self._notes[kind], 1):
                note: list[str] = []
                if note_id in by_id:
                    self._story(by_id[note_id], note)
                lines.append(f"[{number(position, label)}] " + "\n".join(note).strip())
        return lines

    def _headings(self, kind: str, lines: list[str]) -> None:
        """Add the page headers or footers of the current section that no earlier section had."""
        if self._section >= len(self._sections):
            return
        section = self._sections[self._section]
        shown = {
            "default": True,
            "first": bool(is_on(section, "titlePg")),
            "even": self._has_even_pages,
        }
        references = {each.get(f"{W}type"): each for each in section.iterfind(f"{W}{kind}Reference")}
        for page in ("first", "default", "even"):
            relation = self._relations.get(references[page].get(f"{_R}id")) if page in references else None
            if relation is None or not shown[page] or relation[1] not in self._package:
                continue
            found: list[str] = []
            outer, self._relations = self._relations, self._package.relations(relation[1])
            self._story(self._package.xml(relation[1]), found)
            self._relations = outer
            text = "\n".join(found).strip()
            if text and text not in self._said:
                self._said.add(text)
                lines.append(text)

    def _story(self, root: Any, lines: list[str]) -> None:
        """Add the lines of a body, a header or a note, each of which has fields of its own."""
        marks = [mark.get(f"{W}fldCharType") for mark in root.iter(f"{W}fldChar") if not _is_removed(mark)]
        outer = self._fields, self._has_fields
        # A field that is never closed would hide the rest of the document.
        self._fields, self._has_fields = [], marks.count("begin") == marks.count("end")
        self._blocks(root, lines)
        self._fields, self._has_fields = outer

    # The tree is walked here because python-docx's `text` leaves out content controls, tracked insertions, text boxes
    # and numbers. The recursion is bounded, because lxml refuses XML that is nested more than 256 deep.

    def _blocks(self, parent: Any, lines: list[str]) -> None:
        pieces: list[str] = []
        boxes: list[str] = []
        for element in parent:
            if element.tag == f"{W}p":
                properties = element.find(f"{W}pPr")
                style = self._styles.of_paragraph(properties)
                self._runs(element, style, pieces, boxes)
                mark = None if properties is None else properties.find(f"{W}rPr")
                # Without its mark, a paragraph is joined to the next one.
                if mark is not None and (
                    mark.find(f"{W}del") is not None or mark.find(f"{W}moveFrom") is not None
                ):
                    continue
                text = "".join(pieces)
                if text or not self._styles.hides_run(mark, style):
                    lines.append(" ".join(filter(None, (self._numbers.next(properties), text))))
                # A text box is anchored within a paragraph and shown beside it, so its text follows the paragraph.
                lines.extend(boxes)
                pieces, boxes = [], []
                if properties is not None and properties.find(f"{W}sectPr") is not None:
                    self._headings("footer", lines)
                    self._section += 1
                    self._headings("header", lines)
            elif element.tag == f"{W}tbl":
                self._table(element, lines)
            elif element.tag == f"{W}altChunk":
                lines.extend(self._chunk(element))
            elif element.tag not in _GONE:
                self._blocks(element, lines)
        if pieces:
            lines.append("".join(pieces))
        lines.extend(boxes)

    def _runs(self, parent: Any, style: str | None, pieces: list[str], boxes: list[str]) -> None:
        for element in parent:
            tag = element.tag
            if tag == f"{W}fldChar":
                self._field(element, pieces)
            elif tag == f"{W}txbxContent":
                self._blocks(element, boxes)
            elif tag in _GONE or any(self._fields):
                # The code of a field; its marks must still be counted.
                if tag not in _GONE:
                    self._runs(element, style, pieces, boxes)
            elif tag == f"{W}r":
                if not self._styles.hides_run(element.find(f"{W}rPr"), style):
                    self._runs(element, style, pieces, boxes)
                else:
                    self._runs(element, style, [], [])
            elif (piece := self._piece(element)) is not None:
                pieces.append(piece)
            elif tag in (_CHART, _DIAGRAM):
                boxes.extend(self._drawing(element))
            else:
                self._runs(element, style, pieces, boxes)

    def _piece(self, element: Any) -> str | None:
        """Return the text that one element of a run stands for; None where it is none of its own."""
        tag = element.tag
        if tag in (f"{W}t", f"{_M}t"):
            return element.text or ""
        if tag in _LITERAL:
            return _LITERAL[tag]
        if tag == f"{W}sym":
            return _symbol(element.get(f"{W}char") or "")
        if tag in (f"{W}footnoteReference", f"{W}endnoteReference"):
            return self._note(element)
        if tag == _TEXT_PATH:
            return element.get("string") or ""
        return None

    def _field(self, mark: Any, pieces: list[str]) -> None:
        if not self._has_fields:
            return
        kind = mark.get(f"{W}fldCharType")
        if kind == "begin":
            if not any(self._fields):
                pieces.append(_form_value(mark))
            self._fields.append(True)
        elif kind == "separate" and self._fields:
            self._fields[-1] = False
        elif kind == "end" and self._fields:
            self._fields.pop()

    def _note(self, reference: Any) -> str:
        is_footnote = reference.tag == f"{W}footnoteReference"
        notes = self._notes["footnotes" if is_footnote else "endnotes"]
        notes.append(reference.get(f"{W}id"))
        return f"[{number(len(notes), 'decimal' if is_footnote else 'lowerRoman')}]"

    def _drawing(self, element: Any) -> list[str]:
        is_chart = element.tag == _CHART
        relation = self._relations.get(element.get(f"{_R}id" if is_chart else f"{_R}dm") or "")
        if relation is None or relation[1] not in self._package:
            return []
        root = self._package.xml(relation[1])
        return chart_lines(root) if is_chart else diagram_lines(root)

    def _chunk(self, element: Any) -> list[str]:
        """Return the text of another file within this one, such as HTML, which Word shows as a part of the text."""
        relation = self._relations.get(element.get(f"{_R}id") or "")
        if relation is None or relation[1] not in self._package:
            return []
        parts = kinds.read_here(self._package.read(relation[1]), relation[1], Reading())
        return [part.data for part in parts if part.kind == "text"]

    def _table(self, table: Any, lines: list[str]) -> None:
        for row in _children(table, f"{W}tr"):
            properties = row.find(f"{W}trPr")
            if properties is not None and (
                properties.find(f"{W}del") is not None or is_on(properties, "hidden")
            ):
                continue
            cells = []
            for cell in _children(row, f"{W}tc"):
                inside: list[str] = []
                if cell.find(f"{W}tcPr/{W}cellDel") is None:
                    self._blocks(cell, inside)
                cells.append(" ".join(line for line in inside if line))
            lines.append("\t".join(cells))


def _is_change(section: Any) -> bool:
    return bool(section.getparent().tag == f"{W}sectPrChange")


def _is_removed(element: Any) -> bool:
    return any(parent.tag in (f"{W}del", f"{W}moveFrom") for parent in element.iterancestors())


def _children(parent: Any, tag: str) -> Iterator[Any]:
    """Yield the children with `tag`, those inside content controls and tracked insertions included."""
    for element in parent:
        if element.tag == tag:
            yield element
        elif element.tag in (f"{W}sdt", f"{W}sdtContent", f"{W}ins", f"{W}moveTo", f"{W}customXml"):
            yield from _children(element, tag)


def _symbol(code: str) -> str:
    if code.upper() in _SYMBOLS:
        return _SYMBOLS[code.upper()]
    try:
        point = int(code, 16)
    except ValueError:
        return ""
    # Fonts of symbols keep their characters in a private range, whose low byte is the character.
    return chr(point - 0xF000) if 0xF020 <= point <= 0xF0FF else chr(point) if 0x20 <= point < 0xD800 else ""


def _form_value(mark: Any) -> str:
    """Return what a check box or a list of an old form shows; a text field has its text as the field's result."""
    box = mark.find(f"{W}ffData/{W}checkBox")
    if box is not None:
        checked_now = is_on(box, "checked")
        return "☒" if (is_on(box, "default") if checked_now is None else checked_now) else "☐"
    choice = mark.find(f"{W}ffData/{W}ddList")
    if choice is not None:
        entries = [each.get(f"{W}val") or "" for each in choice.iterfind(f"{W}listEntry")]
        chosen = value_of(choice, "result") or value_of(choice, "default") or "0"
        return entries[int(chosen)] if chosen.isdigit() and int(chosen) < len(entries) else ""
    return ""
