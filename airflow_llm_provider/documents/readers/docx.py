"""Word documents as text: paragraphs, tables, text boxes and notes, in document order."""

from __future__ import annotations

import io
from typing import Any

from airflow_llm_provider.documents.content import Part, Unreadable, checked
from airflow_llm_provider.options import Reading

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_LITERAL = {f"{_W}tab": "\t", f"{_W}br": "\n", f"{_W}cr": "\n", f"{_W}noBreakHyphen": "-"}


def read_docx(raw: bytes, reading: Reading) -> tuple[Part, ...]:  # noqa: ARG001 - every reader takes it
    """Return the text of a Word document: one line per paragraph, the cells of a table row separated by tabs.

    Footnotes and endnotes follow at the end. Page headers and footers are left out.

    Args:
        raw: the file's bytes.
        reading: not used.

    Raises:
        Unreadable: the document is broken, encrypted or empty.
    """
    # The signature of an OLE file, the container of old .doc files and of encrypted .docx files.
    if raw.startswith(b"\xd0\xcf\x11\xe0"):
        raise Unreadable(
            "unreadable", "an encrypted Word document, or one of the old .doc format. Save it as plain .docx."
        )
    import docx  # type: ignore[import-untyped, unused-ignore]
    from docx.opc.constants import RELATIONSHIP_TYPE
    from docx.oxml import parse_xml

    try:
        document = docx.Document(io.BytesIO(raw))
        trees: list[Any] = [document.element.body]
        trees += [
            parse_xml(relation.target_part.blob)
            for relation in document.part.rels.values()
            if relation.reltype in (RELATIONSHIP_TYPE.FOOTNOTES, RELATIONSHIP_TYPE.ENDNOTES)
        ]
    except Exception as error:  # noqa: BLE001 - python-docx passes on KeyErrors and errors of lxml and zipfile
        raise Unreadable("unreadable", f"a broken Word document ({type(error).__name__})") from None
    lines: list[str] = []
    for tree in trees:
        _blocks(tree, lines)
    return (Part(kind="text", data=checked("\n".join(lines))),)


# The tree is walked here because python-docx's own `text` leaves out content controls, tracked insertions and text
# boxes, and repeats a merged cell for each cell that it spans.
# The recursion is bounded, because lxml refuses XML that is nested more than 256 deep.


def _blocks(parent: Any, lines: list[str]) -> None:
    for element in parent:
        if element.tag == f"{_W}p":
            _paragraph(element, lines)
        elif element.tag == f"{_W}tbl":
            _table(element, lines)
        # The tag of a comment is no string. A Fallback repeats, for old programs, the text of the Choice beside it.
        elif isinstance(element.tag, str) and element.tag != _FALLBACK:
            _blocks(element, lines)


def _paragraph(paragraph: Any, lines: list[str]) -> None:
    pieces: list[str] = []
    boxes: list[str] = []
    _runs(paragraph, pieces, boxes)
    lines.append("".join(pieces))
    # A text box is anchored within a paragraph and shown beside it, so its text follows the paragraph.
    lines.extend(boxes)


def _runs(parent: Any, pieces: list[str], boxes: list[str]) -> None:
    for element in parent:
        tag = element.tag
        if tag == f"{_W}t":
            pieces.append(element.text or "")
        elif tag in _LITERAL:
            pieces.append(_LITERAL[tag])
        elif tag == f"{_W}txbxContent":
            _blocks(element, boxes)
        elif isinstance(tag, str) and tag not in (_FALLBACK, f"{_W}pPr", f"{_W}rPr"):
            _runs(element, pieces, boxes)


def _table(table: Any, lines: list[str]) -> None:
    for row in _children(table, f"{_W}tr"):
        cells = []
        for cell in _children(row, f"{_W}tc"):
            inside: list[str] = []
            _blocks(cell, inside)
            cells.append(" ".join(inside))
        lines.append("\t".join(cells))


def _children(parent: Any, tag: str) -> list[Any]:
    """Return the children with `tag`, those inside content controls included."""
    found: list[Any] = []
    for element in parent:
        if element.tag == tag:
            found.append(element)
        elif element.tag in (f"{_W}sdt", f"{_W}sdtContent"):
            found.extend(_children(element, tag))
    return found
