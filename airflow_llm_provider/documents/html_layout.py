"""What laying out an HTML page as text would cost, reckoned before it is done.

Cells are padded to their column's width and their row's height, and tables in tables multiply: a small page
could fill the memory. Lists are indented on every line. And a line of text is copied for each piece added.
"""

from __future__ import annotations

from typing import Any

BLOCKS = frozenset(
    {
        *("address", "article", "aside", "blockquote", "body", "br", "dd", "div", "dl", "dt", "figcaption"),
        *("figure", "footer", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "hr", "html", "layer"),
        *("li", "listing", "main", "nav", "ol", "p", "plaintext", "pre", "section", "table", "tbody", "td"),
        *("tfoot", "th", "thead", "tr", "ul", "xmp"),
    }
)
# Those of them that inscriptis starts a line for; others run on.
_LINES = BLOCKS - {"body", "dd", "dl", "dt", "hr", "html", "section", "tbody", "tfoot", "thead", "tr"}
_PREFORMATTED = frozenset({"pre", "xmp", "listing", "plaintext"})
_LISTS = frozenset({"ul", "ol"})
_CELLS = frozenset({"td", "th"})
_INDENT = 4
_SEPARATOR = 2
_MAX_COPIED = 1_000_000_000
_PADDING_FREE = 1_000_000


class _Table:
    """The width of each column and the height of all rows so far."""

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
    """Tell whether a page of `size` characters is laid out in about that much time and memory.

    Every bound is on the safe side: a cell is at most as wide as all its text.
    """
    from lxml import etree  # type: ignore[import-untyped]

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
