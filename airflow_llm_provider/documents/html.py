"""HTML as readable text, through inscriptis where that costs about the page's size."""

from __future__ import annotations

import re
from typing import Any

from airflow_llm_provider.documents.content import Unreadable
from airflow_llm_provider.documents.html_layout import BLOCKS, layout_is_cheap
from airflow_llm_provider.documents.text import decode

_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_.:-]+)", re.IGNORECASE)
_XML_DECLARATION = re.compile(r"\A\s*<\?xml [^>]*>")
_HIDING = re.compile(r"display\s*:\s*none", re.IGNORECASE)
_HIDDEN = frozenset({"head", "link", "meta", "script", "title", "style"})


def html_text(raw: bytes, encoding: str = "utf-8") -> str:
    """Return what a reader of the page would see, tables kept, trailing blanks of lines dropped.

    The page's own `<meta charset>` is used where `encoding` does not fit. Of styles only `display: none`
    counts. A page that is laid out so as to cost far more than its size is read without layout.
    Raises Unreadable.
    """
    from inscriptis.html_engine import Inscriptis  # type: ignore[import-untyped]
    from lxml import etree  # type: ignore[import-untyped]
    from lxml.html import HTMLParser, document_fromstring  # type: ignore[import-untyped]

    source = _XML_DECLARATION.sub("", _decode(raw, encoding), count=1)
    # Without huge_tree, what is nested more than 256 deep is left out without a word.
    parser = HTMLParser(huge_tree=True)
    try:
        tree = document_fromstring(source, parser=parser)
    except (etree.ParserError, ValueError) as error:
        if "empty" in str(error).lower():
            raise Unreadable("empty", "there is no text in this HTML") from None
        raise Unreadable("unreadable", f"HTML that can't be parsed: {error}") from None
    if any(entry.type == etree.ErrorTypes.ERR_RESOURCE_LIMIT for entry in parser.error_log):
        raise Unreadable("unreadable", "HTML nested too deeply")
    _keep_only_hiding(tree)
    if layout_is_cheap(tree, len(source)):
        try:
            text = Inscriptis(tree).get_text()
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
        declared = _CHARSET.search(raw[:4096])
        if error.reason != "unreadable" or declared is None:
            raise
        try:
            return decode(raw, declared.group(1).decode("ascii"))
        except Unreadable:
            raise error from None


def _keep_only_hiding(tree: Any) -> None:
    """Drop styles, whose margins and paddings a page may set to any size."""
    for element in tree.iter():
        style = element.attrib.pop("style", None) if isinstance(element.tag, str) else None
        if style is not None and _HIDING.search(style):
            element.set("style", "display: none")


def _without_layout(tree: Any) -> str:
    """Return the page's text with a line for each block, and nothing aligned."""
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
