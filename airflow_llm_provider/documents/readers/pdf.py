"""PDF by PDFium: the text of its pages, and a smaller PDF of the pages that have to be looked at."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from airflow_llm_provider.documents.content import (
    MAX_NATIVE_PAGES,
    MAX_REQUEST_BYTES,
    Part,
    Unreadable,
    encode_base64,
    pdf_ceiling_tokens,
)
from airflow_llm_provider.documents.readers.pdf_page import Page, read_page
from airflow_llm_provider.documents.readers.pdf_pieces import HYPHEN
from airflow_llm_provider.documents.readers.pdf_text_bound import text_bytes
from airflow_llm_provider.options import Reading

MAX_TEXT_PAGES = 5_000
MAX_TEXT_CHARACTERS = 32 * 1024 * 1024

_HYPHENATED = re.compile(rf"(\w*){HYPHEN}(\n?)(\w*)([^\w\s]*)( ?)")
_CREATED = re.compile(rb"/CreationDate\(D:(\d{14})[^)]{0,10}\)/Creator\(PDFium\)")
_FILE_ID = re.compile(rb"/ID\[<([0-9A-F]{32})><([0-9A-F]{32})>\]")


def read_pdf(raw: bytes, reading: Reading) -> tuple[Part, ...]:
    """Return the parts of a PDF: its text, then the pages that have to be looked at, as a smaller PDF.

    The text has a form feed between pages, so that pages keep their numbers where one has no text. Blank pages are
    not sent. A document with more pages to look at than one request takes is returned in several such pairs.

    Args:
        raw: the file's bytes.
        reading: of `pdf`, `text` is the text alone; `native` all pages as they are, which the API reads as text and
            images; `auto` the text, and the pages that show more than their text says (see `Page.has_more`).

    Raises:
        Unreadable: the PDF is broken, encrypted, too large or blank, or `text` is wanted and it has none.
    """
    with _opened(raw) as pdf:
        count = len(pdf)
        if count == 0:
            raise Unreadable("empty", "a PDF without pages")
        if reading.pdf == "native":
            return tuple(_pairs(pdf, raw, [""] * count, list(range(count)), range(count)))
        pages = _read(pdf)
        more = [index for index, page in enumerate(pages) if page.has_more]
        if not any(page.text for page in pages):
            if reading.pdf == "text" and more:
                raise Unreadable(
                    "unreadable", f"none of its {count} pages has text. Use pdf='auto' or 'native'."
                )
            if not more:
                raise Unreadable("empty", f"all {count} pages are blank")
        texts = _without_hyphens([page.text for page in pages])
        warnings = _warnings(pdf, pages, more if reading.pdf == "text" else [])
        looked_at = more if reading.pdf == "auto" else []
        first, *others = _pairs(pdf, raw, texts, looked_at, range(count))
        return (dataclasses.replace(first, warnings=warnings), *others)


def ceiling_tokens(raw: bytes) -> int:
    """Return an upper bound of a PDF's input tokens; raises Unreadable for one that cannot be opened."""
    with _opened(raw) as pdf:
        return pdf_ceiling_tokens(pages=len(pdf), text_bytes=text_bytes(raw))


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


def _read(pdf: Any) -> list[Page]:
    if len(pdf) > MAX_TEXT_PAGES:
        raise Unreadable("too_large", f"{len(pdf):,} pages; at most {MAX_TEXT_PAGES:,} are read")
    if pdf.get_formtype():
        pdf.init_forms()  # without it, fields have no values
    pages: list[Page] = []
    characters = 0
    for index in range(len(pdf)):
        pages.append(read_page(pdf, index))
        characters += len(pages[-1].text)
        if characters > MAX_TEXT_CHARACTERS:
            raise Unreadable("too_large", f"over {MAX_TEXT_CHARACTERS:,} characters of text")
    return pages


def _without_hyphens(texts: Sequence[str]) -> list[str]:
    """Return the texts of a document's pages with each word that is hyphenated at a line's end as one word.

    The hyphen stays where it belongs to the word: beside a digit or a capital, after a single letter, where the word
    stands elsewhere in the document with it, or where both its halves stand there as words.
    """
    if not any(HYPHEN in text for text in texts):
        return list(texts)
    known = set(re.findall(r"\w+(?:-\w+)*", _HYPHENATED.sub(" ", "\n".join(texts)).lower()))

    def join(match: re.Match[str]) -> str:
        before, line_end, after, rest, blank = match.groups()
        left, right = before.lower(), after.lower()
        is_syllable = before.isalpha() and after.isalpha() and after.islower() and len(before) > 1
        is_whole = is_syllable and left + right in known
        has_hyphen = not is_syllable or f"{left}-{right}" in known or {left, right} <= known
        # The line ends behind the word.
        return f"{before}{'-' if has_hyphen and not is_whole else ''}{after}{rest}{line_end or blank}"

    return [_HYPHENATED.sub(join, text) for text in texts]


def _warnings(pdf: Any, pages: list[Page], not_looked_at: list[int]) -> tuple[str, ...]:
    """Return why the text cannot be trusted, each with the pages."""
    import pypdfium2.raw as pdfium  # type: ignore[import-untyped]

    found: dict[str, list[int]] = {"not_looked_at": not_looked_at} if not_looked_at else {}
    for index, page in enumerate(pages):
        for doubt in page.doubts:
            found.setdefault(doubt, []).append(index)
    # Such a file draws its pages by a program of its own, and shows others without it: "please wait".
    xfa = ["xfa_form"] if pdf.get_formtype() == pdfium.FORMTYPE_XFA_FULL else []
    return (*xfa, *(f"{doubt}: {_numbers(indexes)}" for doubt, indexes in found.items()))


def _pairs(pdf: Any, raw: bytes, texts: list[str], looked_at: list[int], pages: range) -> Iterator[Part]:
    """Yield the text of some pages and those of them to look at, in as few pairs as the API's limits allow."""
    here = [index for index in looked_at if index in pages]
    native = _native(pdf, raw, here) if 0 < len(here) <= MAX_NATIVE_PAGES else None
    if len(here) > MAX_NATIVE_PAGES or (native is not None and len(native.data) > MAX_REQUEST_BYTES):
        if len(here) == 1:
            raise Unreadable(
                "too_large",
                f"page {here[0] + 1:,} has {len(native.data) * 3 // 4 if native else 0:,} bytes; "
                f"the API takes {MAX_REQUEST_BYTES * 3 // 4:,}. Scale its images down, or use pdf='text'.",
            )
        middle = here[MAX_NATIVE_PAGES if len(here) > MAX_NATIVE_PAGES else len(here) // 2]
        yield from _pairs(pdf, raw, texts, here, range(pages.start, middle))
        yield from _pairs(pdf, raw, texts, here, range(middle, pages.stop))
        return
    text = "\f".join(texts[pages.start : pages.stop])
    if text.strip():
        yield Part(kind="text", data=text)
    if native is not None:
        yield native


def _native(pdf: Any, raw: bytes, pages: list[int]) -> Part:
    """Return pages of a file as a part that the API reads as text and images; all of them: the file as it is."""
    import pypdfium2

    is_whole = len(pages) == len(pdf)
    # The API refuses encrypted files, even those that open without a password; copied pages are not encrypted.
    if not is_whole or pypdfium2.raw.FPDF_GetSecurityHandlerRevision(pdf) != -1:
        # Opened again, because reading changes pages.
        with _opened(raw) as source, closing(pypdfium2.PdfDocument.new()) as copy:
            copy.import_pages(source, None if is_whole else pages)
            out = io.BytesIO()
            copy.save(out)
            raw = _same_every_time(out.getvalue())
    # The copy numbers its pages from 1 again. The title says which pages of the document they are.
    title = None if is_whole else _numbers(pages)
    return Part(
        kind="pdf",
        data=encode_base64(raw),
        media_type="application/pdf",
        pages=len(pages),
        text_bytes=text_bytes(raw),
        title=title,
    )


def _numbers(indexes: list[int]) -> str:
    return "pages " + ", ".join(str(index + 1) for index in indexes)


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
