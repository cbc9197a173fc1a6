"""HTML as readable text, through inscriptis."""

from __future__ import annotations

import re
from typing import Any

from airflow_llm_provider.documents.content import Unreadable
from airflow_llm_provider.documents.text import decode

_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_.:-]+)", re.IGNORECASE)
_XML_DECLARATION = re.compile(r"\A\s*<\?xml [^>]*>")
_TABLE_TAGS = ("table", "tr", "td", "th")


def html_text(raw: bytes, encoding: str = "utf-8") -> str:
    """Return what a reader of the page would see, tables kept, trailing blanks of lines dropped.

    The page's own `<meta charset>` is used where `encoding` does not fit. Raises Unreadable.
    """
    from inscriptis.html_engine import Inscriptis  # type: ignore[import-untyped]
    from lxml import etree  # type: ignore[import-untyped]
    from lxml.html import document_fromstring  # type: ignore[import-untyped]

    source = _XML_DECLARATION.sub("", _decode(raw, encoding), count=1)
    try:
        tree = document_fromstring(source)
    except (etree.ParserError, ValueError) as error:
        if "empty" in str(error).lower():
            raise Unreadable("empty", "there is no text in this HTML") from None
        raise Unreadable("unreadable", f"HTML that can't be parsed: {error}") from None
    if _padding(tree) > 4 * len(source) + 1_000_000:
        for element in list(tree.iter(*_TABLE_TAGS)):
            element.tag = "div"
    try:
        text = Inscriptis(tree).get_text()
    except RecursionError:
        raise Unreadable("unreadable", "HTML nested too deeply") from None
    text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
    if not text:
        raise Unreadable("empty", "there is no text in this HTML")
    return text


def _decode(raw: bytes, encoding: str) -> str:
    try:
        return decode(raw, encoding)
    except Unreadable as error:
        declared = _CHARSET.search(raw[:4096])
        if error.reason != "unreadable" or declared is None:
            raise
        try:
            return decode(raw, declared.group(1).decode("ascii"))
        except Unreadable:
            raise error from None


def _padding(tree: Any) -> int:
    """Bound the characters that aligning the tables will take.

    Cells are padded to their column's width, so one long cell above many rows costs their product, and
    tables in tables multiply: a small page could fill the memory.
    """
    # Sizes from the leaves up, without recursion. A table inside a table counts with what it becomes.
    size: dict[Any, int] = {}
    rows: dict[Any, int] = {}
    widest: dict[Any, int] = {}
    total = 0
    from lxml import etree

    for _, element in etree.iterwalk(tree, events=("end",)):
        mine = size.pop(element, 0) + len(element.text or "")
        if element.tag == "tr":
            table = next(element.iterancestors("table"), None)
            if table is not None:
                rows[table] = rows.get(table, 0) + 1
                widest[table] = max(widest.get(table, 0), mine)
        elif element.tag == "table":
            mine = max(mine, rows.pop(element, 0) * widest.pop(element, 0))
            total += mine
        parent = element.getparent()
        if parent is not None:
            size[parent] = size.get(parent, 0) + mine + len(element.tail or "")
    return total
