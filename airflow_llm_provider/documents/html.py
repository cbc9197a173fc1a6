"""HTML pages as readable text, laid out by inscriptis unless that would cost far more than the page's size."""

from __future__ import annotations

import re
from typing import Any

from airflow_llm_provider.documents.content import Unreadable, decode

_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_.:-]+)", re.IGNORECASE)
_XML_DECLARATION = re.compile(r"\A\s*<\?xml [^>]*>")
_HIDING = re.compile(r"display\s*:\s*none", re.IGNORECASE)
_HIDDEN = frozenset({"head", "link", "meta", "script", "title", "style"})


def html_text(raw: bytes, encoding: str = "utf-8") -> str:
    """Return the text that a reader of the page would see, with tables laid out.

    Of styles only `display: none` counts. Trailing blanks of lines are removed. A page whose layout would cost far
    more than its size is read without layout.

    Args:
        raw: the file's bytes.
        encoding: tried first; where it does not fit, the page's own `<meta charset>` is used.

    Raises:
        Unreadable: the page cannot be decoded or parsed, or it has no text.
    """
    from inscriptis.html_engine import Inscriptis  # type: ignore[import-untyped]
    from lxml import etree  # type: ignore[import-untyped]
    from lxml.html import HTMLParser, document_fromstring  # type: ignore[import-untyped]

    # lxml refuses a decoded text that declares an encoding.
    source = _XML_DECLARATION.sub("", _decode(raw, encoding), count=1)
    # Without huge_tree, the parser drops what is nested more than 256 deep, and reports nothing.
    parser = HTMLParser(huge_tree=True)
    try:
        tree = document_fromstring(source, parser=parser)
    except (etree.ParserError, ValueError) as error:
        if "empty" in str(error).lower():
            raise Unreadable("empty", "there is no text in this HTML") from None
        raise Unreadable("unreadable", f"HTML that cannot be parsed ({type(error).__name__})") from None
    # With this error the parser has dropped a part of the page, which nothing else tells.
    if any(entry.type == etree.ErrorTypes.ERR_RESOURCE_LIMIT for entry in parser.error_log):
        raise Unreadable("unreadable", "HTML nested too deeply")
    _keep_only_hiding(tree)
    if layout_is_cheap(tree, len(source)):
        try:
            text = Inscriptis(tree).get_text()
        # The other walk uses no recursion.
        except RecursionError:
            text = _without_layout(tree)
    else:
        text = _without_layout(tree)
    text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
    if not text:
        raise Unreadable("empty", "there is no text in this HTML")
    return text


def _decode(raw: bytes, encoding: str) -> str:
    try:
        return decode(raw, encoding)
    except Unreadable as error:
        # HTML wants the declaration within the first 1,024 bytes.
        declared = _CHARSET.search(raw[:4096])
        if error.reason != "unreadable" or declared is None:
            raise
        try:
            return decode(raw, declared.group(1).decode("ascii"))
        except Unreadable:
            raise error from None


def _keep_only_hiding(tree: Any) -> None:
    """Remove all styles but `display: none`: a page may set margins and paddings to any size."""
    for element in tree.iter():
        style = element.attrib.pop("style", None) if isinstance(element.tag, str) else None
        if style is not None and _HIDING.search(style):
            element.set("style", "display: none")


def _without_layout(tree: Any) -> str:
    """Return the page's text with one line per block and no alignment."""
    from lxml import etree

    pieces: list[str] = []
    walk = etree.iterwalk(tree, events=("start", "end", "comment"))
    for event, element in walk:
        if event == "comment":
            pieces.append(element.tail or "")
            continue
        if element.tag in BLOCKS:
            pieces.append("\n")
        if event == "end":
            pieces.append(element.tail or "")
        elif element.tag in _HIDDEN or element.get("style"):
            walk.skip_subtree()
        else:
            pieces.append(element.text or "")
    lines = (" ".join(line.split()) for line in "".join(pieces).split("\n"))
    return "\n".join(line for line in lines if line)


BLOCKS = frozenset(
    {
        *("address", "article", "aside", "blockquote", "body", "br", "dd", "div", "dl", "dt", "figcaption"),
        *("figure", "footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "hr", "html", "layer"),
        *("li", "listing", "main", "nav", "ol", "p", "plaintext", "pre", "section", "table", "tbody", "td"),
        *("tfoot", "th", "thead", "tr", "ul", "xmp"),
    }
)
# The blocks for which inscriptis starts a line.
_LINES = BLOCKS - {"body", "dd", "dl", "dt", "hr", "html", "section", "tbody", "tfoot", "thead", "tr"}
_PREFORMATTED = frozenset({"pre", "xmp", "listing", "plaintext"})
_LISTS = frozenset({"ul", "ol"})
_CELLS = frozenset({"td", "th"})
_INDENT = 4
_SEPARATOR = 2
_MAX_COPIED = 1_000_000_000
_PADDING_FREE = 1_000_000


class _Table:
    """An open table: the width of each column, and the height of all rows so far."""

    def __init__(self) -> None:
        self.widths: list[int] = []
        self.height = 0
        self._column = 0
        self._row_height = 0

    def end_row(self) -> None:
        self.height += self._row_height
        self._column = self._row_height = 0

    def cell(self, width: int, height: int) -> None:
        if self._column == len(self.widths):
            self.widths.append(0)
        self.widths[self._column] = max(self.widths[self._column], width + _SEPARATOR)
        self._column += 1
        self._row_height = max(self._row_height, height)


def layout_is_cheap(tree: Any, size: int) -> bool:
    """Tell whether laying out a page takes time and memory in proportion to its size.

    Cells are padded to the width of their column and the height of their row, and nested tables multiply: a small
    page could fill the memory. Lists are indented on every line, and a line of text is copied for each piece that is
    added to it. All three are bounded from above: a cell counts as wide as all its text.

    Args:
        tree: the parsed page.
        size: of the page, in characters.
    """
    from lxml import etree

    tables: list[_Table] = []
    widths, heights = [0], [1]  # of the open cells, the page itself being the first
    run = copied = padded = lines = 0
    preformatted = lists = deepest_list = 0
    for event, element in etree.iterwalk(tree, events=("start", "end", "comment")):
        tag = element.tag
        text = element.text if event == "start" else element.tail
        step = {"start": 1, "end": -1}.get(event, 0)
        if step:
            if tag in _LINES:
                run = 0
                lines += 1
                heights[-1] += 1
            if tag in _PREFORMATTED:
                preformatted += step
            elif tag in _LISTS:
                lists += step
                deepest_list = max(deepest_list, lists)
            elif tag == "tr" and tables:
                tables[-1].end_row()
            elif tag in _CELLS and tables:
                if event == "start":
                    widths.append(0)
                    heights.append(1)
                else:
                    tables[-1].cell(widths.pop(), heights.pop())
            elif tag == "table":
                if event == "start":
                    tables.append(_Table())
                else:
                    table = tables.pop()
                    table.end_row()
                    width = sum(table.widths)
                    padded += width * table.height
                    # A nested table is text of the cell around it, which pads it again.
                    widths[-1] += width
                    heights[-1] += table.height
        if text:
            run += len(text)
            copied += run
            widths[-1] += len(text)
            if preformatted:
                new_lines = text.count("\n")
                lines += new_lines
                heights[-1] += new_lines
    padded += lines * deepest_list * _INDENT
    return padded <= 4 * size + _PADDING_FREE and copied <= _MAX_COPIED
