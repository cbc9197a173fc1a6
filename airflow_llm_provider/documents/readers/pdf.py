"""PDF by PDFium: the text layer of pages, and a smaller PDF of the pages that have none."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from airflow_llm_provider.documents.content import MAX_REQUEST_BYTES, Part, Unreadable, encode_base64
from airflow_llm_provider.options import Reading

MAX_NATIVE_PAGES = 100
"""The API's limit for the pages of one document block."""
MAX_TEXT_PAGES = 5_000
MAX_TEXT_CHARACTERS = 32 * 1024 * 1024

_CREATED = re.compile(rb"/CreationDate\(D:(\d{14})[^)]{0,10}\)/Creator\(PDFium\)")
_FILE_ID = re.compile(rb"/ID\[<([0-9A-F]{32})><([0-9A-F]{32})>\]")


def read_pdf(raw: bytes, reading: Reading) -> tuple[Part, ...]:
    """Return the parts of a PDF.

    The text has a form feed between pages, so that pages keep their numbers where one has no text. Blank pages are
    not sent.

    Args:
        raw: the file's bytes.
        reading: of `pdf`, `text` is the text layer alone; `native` the file as it is, which the API reads as text and
            images; `auto` the text of the pages that have it, and one smaller PDF of the pages that do not.

    Raises:
        Unreadable: the PDF is broken, encrypted, too large or blank, or `text` is wanted and it has none.
    """
    mode = reading.pdf
    with _opened(raw) as pdf:
        pages = len(pdf)
        if pages == 0:
            raise Unreadable("empty", "a PDF without pages")
        if mode == "native":
            return (_native(pdf, raw, None),)
        texts, unread = _texts(pdf)
        parts = []
        if any(texts):
            parts.append(Part(kind="text", data="\f".join(texts)))
        elif mode == "text":
            raise Unreadable("unreadable", f"none of its {pages} pages has text. Use pdf='auto' or 'native'.")
        if mode == "auto" and unread:
            parts.append(_native(pdf, raw, None if len(unread) == pages else unread))
        if not parts:
            raise Unreadable("empty", f"all {pages} pages are blank")
        return tuple(parts)


def count_pages(raw: bytes) -> int:
    """Return how many pages a PDF has; raises Unreadable for one that cannot be opened."""
    with _opened(raw) as pdf:
        return len(pdf)


@contextmanager
def _opened(raw: bytes) -> Iterator[Any]:
    """Open a PDF, and close it again; its faults are Unreadable, found at once or later."""
    import pypdfium2  # type: ignore[import-untyped]

    try:
        with closing(pypdfium2.PdfDocument(raw)) as pdf:
            yield pdf
    except pypdfium2.PdfiumError as error:
        if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            raise Unreadable("unreadable", "an encrypted PDF that needs a password. Decrypt it.") from None
        raise Unreadable("unreadable", f"a broken PDF: {error}") from None


def _texts(pdf: Any) -> tuple[list[str], list[int]]:
    """Return the text of every page, and the numbers from 0 of pages that show something and have no text."""
    import pypdfium2.raw as pdfium  # type: ignore[import-untyped]

    if len(pdf) > MAX_TEXT_PAGES:
        raise Unreadable("too_large", f"{len(pdf):,} pages; at most {MAX_TEXT_PAGES:,} are read")
    texts: list[str] = []
    unread: list[int] = []
    characters = 0
    for index in range(len(pdf)):
        page = pdf[index]
        try:
            layer = page.get_textpage()
            characters += layer.count_chars()
            if characters > MAX_TEXT_CHARACTERS:
                raise Unreadable("too_large", f"over {MAX_TEXT_CHARACTERS:,} characters of text")
            text = layer.get_text_bounded().replace("\r\n", "\n").replace("\0", "")
            if not text.strip():
                text = ""
                # A page without any object is blank. One with objects and no text shows something, such as a scan.
                if pdfium.FPDFPage_CountObjects(page) > 0:
                    unread.append(index)
            texts.append(text)
        finally:
            page.close()
    return texts, unread


def _native(pdf: Any, raw: bytes, pages: list[int] | None) -> Part:
    """Return the whole file, or some of its pages, as a part that the API reads as text and images."""
    import pypdfium2

    count = len(pdf) if pages is None else len(pages)
    if count > MAX_NATIVE_PAGES:
        raise Unreadable(
            "too_large",
            f"{count} pages to be sent as they are; the API takes {MAX_NATIVE_PAGES}. Split it, or use pdf='text'.",
        )
    # The API refuses encrypted files, even those that open without a password; copied pages are not encrypted.
    if pages is not None or pypdfium2.raw.FPDF_GetSecurityHandlerRevision(pdf) != -1:
        copy = pypdfium2.PdfDocument.new()
        try:
            copy.import_pages(pdf, pages)
            out = io.BytesIO()
            copy.save(out)
            raw = _same_every_time(out.getvalue())
        finally:
            copy.close()
    data = encode_base64(raw)
    if len(data) > MAX_REQUEST_BYTES:
        raise Unreadable(
            "too_large", f"{len(raw):,} bytes of PDF; the API takes {MAX_REQUEST_BYTES * 3 // 4:,}"
        )
    # The copy numbers its pages from 1 again. The title says which pages of the document they are.
    title = None if pages is None else "pages " + ", ".join(str(index + 1) for index in pages)
    return Part(kind="pdf", data=data, media_type="application/pdf", pages=count, title=title)


def _same_every_time(pdf: bytes) -> bytes:
    """Replace the time and the random file id in a PDF that PDFium wrote.

    With them, every reading would give another request, which would be paid for again.
    """
    fixed = bytearray(pdf)
    if created := _CREATED.search(fixed):
        fixed[created.start(1) : created.end(1)] = b"20000101000000"
    # Only in the trailer: the same bytes could stand in a page.
    if file_id := _FILE_ID.search(fixed, max(fixed.rfind(b"trailer"), 0)):
        for group in (1, 2):
            fixed[file_id.start(group) : file_id.end(group)] = b"0" * 32
        digest = hashlib.sha256(fixed).hexdigest()[:32].upper().encode()
        for group in (1, 2):
            fixed[file_id.start(group) : file_id.end(group)] = digest
    return bytes(fixed)
