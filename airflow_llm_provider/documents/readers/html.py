"""HTML pages as readable text, laid out by inscriptis."""

from __future__ import annotations

import re
import sys
from typing import Any

from airflow_llm_provider.documents.content import Part, Unreadable, decode
from airflow_llm_provider.documents.readers.text import declared_encoding
from airflow_llm_provider.options import Reading

_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_.:-]+)", re.IGNORECASE)
_XML_DECLARATION = re.compile(r"\A\s*<\?xml [^>]*>")
_HIDING = re.compile(r"display\s*:\s*none", re.IGNORECASE)
_MAX_DEPTH = 20_000


def read_html(raw: bytes, reading: Reading) -> tuple[Part, ...]:
    """Return the text that a reader of the page would see, with tables laid out.

    Of styles only `display: none` counts. Trailing blanks of lines are removed.

    Args:
        raw: the file's bytes.
        reading: its `encoding` is tried first; where it does not fit, the one that the page declares is used.

    Raises:
        Unreadable: the page cannot be decoded or parsed, or it has no text.
    """
    from inscriptis.html_engine import Inscriptis  # type: ignore[import-untyped]
    from lxml import etree  # type: ignore[import-untyped]
    from lxml.html import HTMLParser, document_fromstring  # type: ignore[import-untyped]

    # lxml refuses a decoded text that declares an encoding.
    source = _XML_DECLARATION.sub("", _decode(raw, reading.encoding), count=1)
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
    # It calls itself for each level of the page, which may have more levels than Python calls by default.
    sys.setrecursionlimit(_MAX_DEPTH)
    text = Inscriptis(tree).get_text()
    text = "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")
    if not text:
        raise Unreadable("empty", "there is no text in this HTML")
    return (Part(kind="text", data=text),)


def _decode(raw: bytes, encoding: str) -> str:
    try:
        return decode(raw, encoding)
    except Unreadable as error:
        # HTML wants the declaration within the first 1,024 bytes.
        meta = _CHARSET.search(raw[:4096])
        declared = declared_encoding(raw) or (meta and meta.group(1).decode("ascii"))
        if error.reason != "unreadable" or not declared:
            raise
        try:
            return decode(raw, declared)
        except Unreadable:
            raise error from None


def _keep_only_hiding(tree: Any) -> None:
    """Remove all styles but `display: none`: a page may set margins and paddings to any size."""
    for element in tree.iter():
        style = element.attrib.pop("style", None) if isinstance(element.tag, str) else None
        if style is not None and _HIDING.search(style):
            element.set("style", "display: none")
