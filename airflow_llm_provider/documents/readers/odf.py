"""OpenDocument files: texts, spreadsheets and presentations, as a reader of the printout sees them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from airflow_llm_provider.documents.content import Part, Unreadable
from airflow_llm_provider.documents.readers.numbering import Counters, Level, number
from airflow_llm_provider.documents.readers.package import Package
from airflow_llm_provider.documents.readers.spreadsheet import Row, Tables
from airflow_llm_provider.options import Reading

_URN = "{urn:oasis:names:tc:opendocument:xmlns:"
_OFFICE, _TEXT, _TABLE = (f"{_URN}{name}:1.0}}" for name in ("office", "text", "table"))
_STYLE, _DRAW, _PRESENTATION = (f"{_URN}{name}:1.0}}" for name in ("style", "drawing", "presentation"))
_FORMATS = {"1": "decimal", "a": "lowerLetter", "A": "upperLetter", "i": "lowerRoman", "I": "upperRoman"}
# Comments, removed and hidden text, readings of a word, and what describes a picture to those who do not see it.
_GONE = frozenset(
    {
        f"{_OFFICE}annotation",
        f"{_TEXT}tracked-changes",
        f"{_TEXT}sequence-decls",
        f"{_TEXT}hidden-text",
        f"{_TEXT}hidden-paragraph",
        f"{_TEXT}ruby-text",
        f"{_URN}svg-compatible:1.0}}title",
        f"{_URN}svg-compatible:1.0}}desc",
        f"{_OFFICE}forms",
        f"{_OFFICE}event-listeners",
    }
)
_SPACE = re.compile(r"[ \t\r\n]+")


def read_odt(raw: bytes, reading: Reading) -> tuple[Part, ...]:  # noqa: ARG001 - every reader takes it
    """Return an OpenDocument text (.odt) as one text: a line per paragraph, list numbers before their paragraphs.

    Page headers stand first and footers last, each once; notes follow at the end. Hidden text, comments and removed
    text are left out.

    Raises:
        Unreadable: the document is broken, encrypted or empty.
    """
    document = _Document(raw, "an OpenDocument text")
    body = document.body("text")
    headers, footers = document.headings()
    lines = document.lines_of(body)
    return document.parts([*headers, *lines, *footers, *document.notes()])


def read_odp(raw: bytes, reading: Reading) -> tuple[Part, ...]:  # noqa: ARG001 - every reader takes it
    """Return an OpenDocument presentation (.odp) as one text, slide by slide, with the speaker's notes.

    Raises:
        Unreadable: the presentation is broken, encrypted or empty.
    """
    document = _Document(raw, "an OpenDocument presentation")
    lines: list[str] = []
    for index, page in enumerate(document.body("presentation").iterfind(f"{_DRAW}page"), 1):
        notes = page.find(f"{_PRESENTATION}notes")
        if notes is not None:
            page.remove(notes)
        found = [line for line in document.lines_of(page) if line]
        said = [] if notes is None else [line for line in document.lines_of(notes) if line]
        if found or said:
            hidden = " (hidden)" if document.hides_page(page.get(f"{_DRAW}style-name")) else ""
            lines += [f"Slide {index}{hidden}", *found, *(["Notes:", *said] if said else []), ""]
    return document.parts(lines[:-1])


def read_ods(raw: bytes, reading: Reading) -> tuple[Part, ...]:  # noqa: ARG001 - every reader takes it
    """Return an OpenDocument spreadsheet (.ods) as its tables; cells have the text that is shown in them.

    Raises:
        Unreadable: the spreadsheet is broken, encrypted or empty.
    """
    document = _Document(raw, "an OpenDocument spreadsheet")
    tables = Tables()
    for table in document.body("spreadsheet").iterfind(f"{_TABLE}table"):
        hidden = document.hides_table(table.get(f"{_TABLE}style-name"))
        tables.add(table.get(f"{_TABLE}name") or "", document.rows_of(table), "hidden" if hidden else "")
    return tables.parts()


def _repeated(element: Any, what: str) -> int:
    given = element.get(f"{_TABLE}number-{what}-repeated") or "1"
    return int(given) if given.isdigit() else 1


class _Document:
    """One OpenDocument file, while it is read."""

    def __init__(self, raw: bytes, what: str) -> None:
        self._package = Package(raw, what)
        if "META-INF/manifest.xml" in self._package and b"encryption-data" in self._package.read(
            "META-INF/manifest.xml"
        ):
            raise Unreadable("unreadable", f"{what} that is encrypted. Save it without a password.")
        self._root = self._package.xml("content.xml")
        self._page_styles = self._package.xml("styles.xml") if "styles.xml" in self._package else None
        roots = [root for root in (self._page_styles, self._root) if root is not None]
        self._styles = {
            (style.get(f"{_STYLE}family"), style.get(f"{_STYLE}name")): style
            for root in roots
            for style in root.iter(f"{_STYLE}style")
        }
        self._lists = {
            each.get(f"{_STYLE}name"): _levels(each)
            for root in roots
            for each in root.iter(f"{_TEXT}list-style")
        }
        outline = None if self._page_styles is None else self._page_styles.find(f".//{_TEXT}outline-style")
        self._outline = {} if outline is None else _levels(outline)
        self._outline_counters = Counters()
        self._counters: dict[str, Counters] = {}
        self._notes: list[tuple[str, Any]] = []
        self._note_counts: Counter[str] = Counter()

    def parts(self, lines: list[str]) -> tuple[Part, ...]:
        """Return the lines as one text, and the pictures where there is hardly any text."""
        return self._package.parts("\n".join(lines), "Pictures/")

    def body(self, kind: str) -> Any:
        """Return the element of the contents; raises Unreadable where there is none of this kind."""
        found = self._root.find(f"{_OFFICE}body/{_OFFICE}{kind}")
        if found is None:
            raise Unreadable("unreadable", f"{self._package.what} without contents")
        return found

    def hides_table(self, name: str | None) -> bool:
        """Tell whether a style hides the table that has it."""
        return self._says(("table", name), f"{_STYLE}table-properties", f"{_TABLE}display", "false")

    def hides_page(self, name: str | None) -> bool:
        """Tell whether a style hides the slide that has it."""
        return self._says(
            ("drawing-page", name), f"{_STYLE}drawing-page-properties", f"{_PRESENTATION}visibility", "hidden"
        )

    def _hides_text(self, family: str, name: str | None) -> bool:
        return self._says((family, name), f"{_STYLE}text-properties", f"{_TEXT}display", "none")

    def _says(self, key: tuple[str, str | None], tag: str, attribute: str, value: str) -> bool:
        """Tell whether a style, or one that it is based on, has a property with this value."""
        family, name = key
        for _ in range(20):
            style = self._styles.get((family, name))
            if style is None:
                return False
            properties = style.find(tag)
            if properties is not None and properties.get(attribute) is not None:
                return bool(properties.get(attribute) == value)
            name = style.get(f"{_STYLE}parent-style-name")
        return False

    def headings(self) -> tuple[list[str], list[str]]:
        """Return the page headers and the page footers, each once."""
        found: tuple[list[str], list[str]] = ([], [])
        if self._page_styles is not None:
            for page in self._page_styles.iter(f"{_STYLE}master-page"):
                for lines, kind in zip(found, ("header", "footer"), strict=True):
                    for tag in (kind, f"{kind}-first", f"{kind}-left"):
                        for element in page.iterfind(_STYLE + tag):
                            text = "\n".join(self.lines_of(element)).strip()
                            if element.get(f"{_STYLE}display") != "false" and text and text not in lines:
                                lines.append(text)
        return found

    def lines_of(self, parent: Any) -> list[str]:
        """Return the lines of text below an element."""
        lines: list[str] = []
        self._blocks(parent, lines)
        return lines

    def notes(self) -> list[str]:
        """Return the notes that the text refers to, each after its mark."""
        # A note may refer to another, which comes after it.
        return [f"[{mark}] " + "\n".join(self.lines_of(body)).strip() for mark, body in self._notes]

    def _blocks(self, parent: Any, lines: list[str]) -> None:
        for element in parent:
            if element.tag in (f"{_TEXT}p", f"{_TEXT}h"):
                lines.extend(self._paragraph(element, ""))
            elif element.tag == f"{_TEXT}list":
                self._list(element, lines, 0, element.get(f"{_TEXT}style-name"), None)
            elif element.tag == f"{_TABLE}table":
                lines += [
                    "\t".join(" ".join(cell.split()) for cell in row) for row in self.rows_of(table=element)
                ]
            elif element.tag == f"{_TEXT}section" and element.get(f"{_TEXT}display") == "none":
                continue
            elif element.tag not in _GONE:
                self._blocks(element, lines)

    def _list(
        self, element: Any, lines: list[str], depth: int, style: str | None, counters: Counters | None
    ) -> None:
        style = element.get(f"{_TEXT}style-name") or style
        levels = self._lists.get(style, {})
        if counters is None:
            # A list goes on with the numbers of an earlier one where it says so.
            before = self._counters.get(element.get(f"{_TEXT}continue-list") or "")
            if before is None and element.get(f"{_TEXT}continue-numbering") == "true":
                before = self._counters.get(f"style {style}")
            counters = before or Counters()
            for name in (element.get("{http://www.w3.org/XML/1998/namespace}id"), f"style {style}"):
                if name:
                    self._counters[name] = counters
        for item in element:
            mark = ""
            if item.tag == f"{_TEXT}list-item" and depth in levels:
                if (start := item.get(f"{_TEXT}start-value")) and start.isdigit():
                    counters.set(depth, int(start))
                # An item that only holds a deeper list has no number of its own.
                if any(child.tag in (f"{_TEXT}p", f"{_TEXT}h") for child in item):
                    mark = counters.next(levels, depth)
            for child in item:
                if child.tag == f"{_TEXT}list":
                    self._list(child, lines, depth + 1, style, counters)
                elif child.tag in (f"{_TEXT}p", f"{_TEXT}h"):
                    lines.extend(self._paragraph(child, mark))
                    mark = ""
                elif child.tag not in _GONE:
                    self._blocks([child], lines)

    def _paragraph(self, element: Any, mark: str) -> list[str]:
        """Return the line of a paragraph and those of its text boxes; nothing where it is hidden."""
        if self._hides_text("paragraph", element.get(f"{_TEXT}style-name")):
            return []
        pieces: list[str] = []
        boxes: list[str] = []
        self._pieces(element, pieces, boxes)
        level = element.get(f"{_TEXT}outline-level") or ""
        is_numbered = element.tag == f"{_TEXT}h" and element.get(f"{_TEXT}is-list-header") != "true"
        if not mark and is_numbered and level.isdigit() and int(level) - 1 in self._outline:
            mark = self._outline_counters.next(self._outline, int(level) - 1)
        # A text box is anchored within a paragraph and shown beside it, so its text follows the paragraph.
        return [" ".join(filter(None, (mark, "".join(pieces).strip(" ")))), *boxes]

    def _pieces(self, parent: Any, pieces: list[str], boxes: list[str]) -> None:
        # White space in the file is layout of the file; spaces of the text in a row are elements.
        pieces.append(_SPACE.sub(" ", parent.text or ""))
        for element in parent:
            tag = element.tag
            if tag == f"{_TEXT}s":
                count = element.get(f"{_TEXT}c") or "1"
                pieces.append(" " * (int(count) if count.isdigit() else 1))
            elif tag == f"{_TEXT}tab":
                pieces.append("\t")
            elif tag == f"{_TEXT}line-break":
                pieces.append("\n")
            elif tag == f"{_TEXT}note":
                pieces.append(self._note(element))
            elif tag == f"{_DRAW}text-box":
                self._blocks(element, boxes)
            elif tag not in _GONE and not self._hides_text("text", element.get(f"{_TEXT}style-name")):
                self._pieces(element, pieces, boxes)
            pieces.append(_SPACE.sub(" ", element.tail or ""))

    def _note(self, element: Any) -> str:
        body = element.find(f"{_TEXT}note-body")
        kind = element.get(f"{_TEXT}note-class") or "footnote"
        self._note_counts[kind] += 1
        mark = number(self._note_counts[kind], "lowerRoman" if kind == "endnote" else "decimal")
        if body is not None:
            self._notes.append((mark, body))
        return f"[{mark}]"

    def rows_of(self, table: Any) -> Iterator[Row]:
        """Yield the rows of a table, each as the texts of its cells."""
        for row in _rows(table):
            texts = list(self._cells(row))
            while texts and not texts[-1]:
                texts.pop()
            # Empty rows up to the last possible one are one element, which is repeated a million times.
            for _ in range(_repeated(row, "rows") if texts else 1):
                yield texts

    def _cells(self, row: Any) -> Iterator[str]:
        empty = 0
        for cell in row:
            if cell.tag not in (f"{_TABLE}table-cell", f"{_TABLE}covered-table-cell"):
                continue
            count = _repeated(cell, "columns")
            text = ""
            if cell.tag == f"{_TABLE}table-cell":
                text = (
                    " ".join(line for line in self.lines_of(cell) if line)
                    or cell.get(f"{_OFFICE}value")
                    or ""
                )
            if not text:
                empty += count
                continue
            yield from [""] * empty
            empty = 0
            yield from [text] * count


def _rows(table: Any) -> Iterator[Any]:
    """Yield the rows of a table, those in groups and headers included."""
    for element in table:
        if element.tag == f"{_TABLE}table-row":
            yield element
        elif element.tag in (
            f"{_TABLE}{name}" for name in ("table-row-group", "table-header-rows", "table-rows")
        ):
            yield from _rows(element)


def _levels(style: Any) -> dict[int, Level]:
    levels = {}
    for element in style:
        given = element.get(f"{_TEXT}level") or ""
        if not given.isdigit():
            continue
        depth = int(given) - 1
        code = element.get(f"{_STYLE}num-format")
        if element.tag == f"{_TEXT}list-level-style-bullet":
            levels[depth] = Level(text="•", number_format="bullet")
        elif code:
            above = element.get(f"{_TEXT}display-levels") or "1"
            first = max(depth + 1 - (int(above) if above.isdigit() else 1), 0)
            places = ".".join(f"%{each + 1}" for each in range(first, depth + 1))
            start = element.get(f"{_TEXT}start-value") or "1"
            prefix, suffix = (element.get(f"{_STYLE}num-{end}") or "" for end in ("prefix", "suffix"))
            levels[depth] = Level(
                text=f"{prefix}{places}{suffix}",
                number_format=_FORMATS.get(code, "decimal"),
                start=int(start) if start.isdigit() else 1,
            )
    return levels
