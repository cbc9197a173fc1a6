"""From a document to its content: bytes are fetched within limits, told apart, and read by their format."""

from __future__ import annotations

import errno
import hashlib
import os
from typing import cast

from airflow_llm_provider.documents.content import Content, Part, Unreadable
from airflow_llm_provider.documents.document import Document
from airflow_llm_provider.documents.image import image_part, image_type
from airflow_llm_provider.documents.pdf import PdfMode
from airflow_llm_provider.documents.pdf_process import pdf_parts_beside
from airflow_llm_provider.documents.regular import open_regular
from airflow_llm_provider.documents.text import checked, decode

__all__ = ["MAX_BYTES", "Content", "Part", "PdfMode", "Unreadable", "read"]

MAX_BYTES = 32 * 1000 * 1000
"""How large a document may be unless told otherwise: about the API's limit for one request."""

_FORMATS = {
    **dict.fromkeys(("html", "htm", "xhtml"), "html"),
    **dict.fromkeys(("png", "jpg", "jpeg", "gif", "webp"), "image"),
    "pdf": "pdf",
    "docx": "docx",
}


def read(
    document: Document, *, pdf: PdfMode = "auto", max_bytes: int = MAX_BYTES, encoding: str = "utf-8"
) -> Content:
    """Return the document's content; blocking, safe in threads.

    pdf: how PDFs are read, see `documents.pdf.pdf_parts`.
    max_bytes: larger documents are refused from their size alone, before a byte is read.
    encoding: of text files without a byte order mark.
    Raises Unreadable for what can't be asked about, OSError where trying again may help (object storage).
    Text of files and rows is passed on exactly; only HTML, PDF and DOCX are turned into text.
    """
    if document.text is not None:
        return _row_content(document.text, max_bytes)
    raw = _read_bytes(document, max_bytes)
    if not raw:
        raise Unreadable("empty", "the file is empty (0 bytes)")
    content_hash = hashlib.sha256(raw).hexdigest()
    name = document.name
    parts, pages = _parse(raw, _format(raw, name.rpartition(".")[2].lower()), pdf, encoding)
    return Content(content_hash=content_hash, parts=parts, pages=pages)


def _row_content(text: str, max_bytes: int) -> Content:
    if len(text) > max_bytes:
        raise _too_large(len(text), max_bytes)
    raw = checked(text).encode()
    if len(raw) > max_bytes:
        raise _too_large(len(raw), max_bytes)
    return Content(content_hash=hashlib.sha256(raw).hexdigest(), parts=(Part(kind="text", data=text),))


def _read_bytes(document: Document, max_bytes: int) -> bytes:
    if document.size is not None and document.size > max_bytes:
        raise _too_large(document.size, max_bytes)
    if document.path is None:
        raise ValueError(f"document {document.id!r} has neither a path nor a text")
    if document.store is None:
        return _read_file(document.path, max_bytes)
    try:
        # One byte more than allowed tells whether there is more, where the store did not say how large it is.
        end = max_bytes + 1 if document.size is None else None
        raw = cast("bytes", document.store.fs.cat_file(document.path, start=None, end=end))
    except (FileNotFoundError, PermissionError) as error:
        raise Unreadable("unreadable", f"{document.uri!r} can't be read: {_why(error)}") from None
    if len(raw) > max_bytes:
        raise _too_large(len(raw), max_bytes)
    return raw


def _read_file(path: str, max_bytes: int) -> bytes:
    """Read a regular file; what was listed as a file and has become a link, pipe or device is refused."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise _too_large(size, max_bytes)
            raw = file.read()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE):
            raise  # the machine's trouble, not the document's
        raise Unreadable("unreadable", f"{path!r} can't be read: {_why(error)}") from None
    if len(raw) > max_bytes:
        raise _too_large(len(raw), max_bytes)
    return raw


def _format(raw: bytes, suffix: str) -> str:
    """Return the format by the first bytes, or by the name's suffix where those say nothing."""
    if image_type(raw) is not None:
        return "image"
    if raw.startswith(b"%PDF-"):
        return "pdf"
    known = _FORMATS.get(suffix, "text")
    if known != "docx" and raw.startswith(b"PK\x03\x04"):
        from airflow_llm_provider.documents.docx import is_docx

        return "docx" if is_docx(raw) else known
    return known


def _parse(raw: bytes, kind: str, pdf: PdfMode, encoding: str) -> tuple[tuple[Part, ...], int]:
    if kind == "pdf":
        return pdf_parts_beside(raw, pdf)
    if kind == "image":
        return (image_part(raw),), 0
    if kind == "docx":
        from airflow_llm_provider.documents.docx import docx_text

        text = docx_text(raw)
    elif kind == "html":
        from airflow_llm_provider.documents.html import html_text

        text = html_text(raw, encoding)
    else:
        text = decode(raw, encoding)
    return (Part(kind="text", data=text),), 0


def _too_large(size: int, max_bytes: int) -> Unreadable:
    return Unreadable("too_large", f"{size:,} bytes; at most {max_bytes:,} are read (`max_bytes=`)")


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it has vanished since it was listed"
    if error.errno == errno.ELOOP:
        return "it has become a link since it was listed"
    return error.strerror or str(error)
