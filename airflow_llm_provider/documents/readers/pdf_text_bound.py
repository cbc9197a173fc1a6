"""How much text a PDF can have: a bound for what the API reads of the pages that are sent as they are."""

from __future__ import annotations

import re
import zlib
from contextlib import closing, suppress
from typing import Any

from airflow_llm_provider.pricing import LARGEST_WINDOW

_HEX_STRING = re.compile(rb"<[0-9A-Fa-f\s]+>")
_FONTS = (b"\0\1\0\0", b"OTTO", b"true", b"%!PS", b"%!Font")
_PARENTHESIS = re.compile(rb"\\.|[()]", re.DOTALL)
# Streams of pictures, fonts, colour profiles and places in the file.
_NOT_TEXT = re.compile(
    rb"/Subtype\s*/(?:Image|Type1C|CIDFontType0C|OpenType)\b|/Length1\b|/Alternate\b|/XRef\b"
)


def text_bytes(raw: bytes) -> int:
    """Return a bound of the bytes of text that a reader can find in a PDF: of pages, notes, form values and titles.

    Counting stops above what any model reads.

    Raises:
        pypdfium2.PdfiumError: it cannot be opened.
    """
    import pypdfium2  # type: ignore[import-untyped]

    with closing(pypdfium2.PdfDocument(raw)) as pdf:
        # Another reader may put a space after each character.
        return max(_string_bytes(raw), 2 * _page_text_bytes(pdf))


def _page_text_bytes(pdf: Any) -> int:
    """Return the bytes of the text that PDFium finds on the pages.

    A form counts as often as it is drawn, and a code of one byte as the characters that it stands for.
    """
    found = 0
    for index in range(len(pdf)):
        if found > LARGEST_WINDOW:
            break
        page = pdf[index]
        try:
            found += len(page.get_textpage().get_text_range().encode("utf-8", "surrogatepass"))
        finally:
            page.close()
    return found


def _string_bytes(raw: bytes) -> int:
    """Return the bytes of all strings in a PDF, of which PDFium cuts long ones off and shows no notes."""
    found = 0
    for piece in raw.split(b"endstream"):
        if found > LARGEST_WINDOW:
            break
        head, _, data = piece.partition(b"stream")
        found += _literal_bytes(head) + _hex_bytes(head)
        # Only what the object says of this stream, which stands after the objects before it.
        if _NOT_TEXT.search(head, head.rfind(b"obj") + 1):
            continue
        with suppress(zlib.error):
            data = zlib.decompressobj().decompress(data.lstrip(b"\r\n"), 2 * LARGEST_WINDOW)
        if not _is_binary(data):
            found += _literal_bytes(data) + _hex_bytes(data)
    return found


def _is_binary(data: bytes) -> bool:
    """Tell fonts, colour profiles and tables of characters from what may hold text."""
    return data.startswith(_FONTS) or data[36:40] == b"acsp" or b"begincmap" in data


def _hex_bytes(data: bytes) -> int:
    return sum(len(digits) // 2 for digits in _HEX_STRING.findall(data))


def _literal_bytes(data: bytes) -> int:
    """Return how many bytes stand in parentheses, which a PDF has around strings, and may have within them."""
    depth = start = found = 0
    for mark in _PARENTHESIS.finditer(data):
        if mark[0] == b"(":
            depth += 1
            start = mark.end() if depth == 1 else start
        elif mark[0] == b")" and depth:
            depth -= 1
            found += mark.start() - start if depth == 0 else 0
    return found + (len(data) - start if depth else 0)
