"""Reading a document: its bytes are fetched within limits, its format is recognised, its content is returned."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
from collections.abc import Mapping
from typing import Any, cast

from airflow_llm_provider.documents.content import (
    IMAGE_TOKENS,
    PDF_PAGE_TOKENS,
    Content,
    Part,
    Unreadable,
    checked,
    decode,
    encode_base64,
)
from airflow_llm_provider.documents.document import Document
from airflow_llm_provider.documents.files import open_regular
from airflow_llm_provider.documents.pdf import MAX_NATIVE_PAGES, PdfMode
from airflow_llm_provider.documents.pdf_process import pdf_parts_in_child
from airflow_llm_provider.options import MAX_FILE_BYTES

__all__ = ["Content", "Part", "PdfMode", "Unreadable", "read"]

MAX_IMAGE_BASE64_BYTES = 5 * 1024 * 1024
"""The API's limit for an image. It counts the base64 text, so a file may have three quarters of it (3.75 MiB)."""

_FORMATS = {
    **dict.fromkeys(("html", "htm", "xhtml"), "html"),
    **dict.fromkeys(("png", "jpg", "jpeg", "gif", "webp"), "image"),
    "pdf": "pdf",
    "docx": "docx",
}


def read(
    document: Document, *, pdf: PdfMode = "auto", max_bytes: int = MAX_FILE_BYTES, encoding: str = "utf-8"
) -> Content:
    """Return the content of a document. It blocks, and may be called from several threads.

    The text of files and rows is returned exactly; only HTML, PDF and DOCX are converted to text.

    Args:
        document: as `list_documents` yielded it.
        pdf: how PDFs are read, see `pdf_parts`.
        max_bytes: a larger document is refused by its size, before it is read.
        encoding: of text files without a byte order mark.

    Raises:
        Unreadable: the document cannot be asked about.
        OSError: reading failed for a reason that may pass, such as object storage that does not answer.
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
    # A text has at least as many bytes as characters, so a huge one is refused before it is encoded.
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
        # The store did not say how large the object is: one byte more than allowed shows that it is too large.
        end = max_bytes + 1 if document.size is None else None
        raw = cast("bytes", document.store.fs.cat_file(document.path, start=None, end=end))
    # Any other error of a store stays an OSError: the store may answer at the next try of the task.
    except (FileNotFoundError, PermissionError) as error:
        raise Unreadable("unreadable", f"{document.uri!r} cannot be read: {_why(error)}") from None
    if len(raw) > max_bytes:
        raise _too_large(len(raw), max_bytes)
    return raw


def _read_file(path: str, max_bytes: int) -> bytes:
    """Read a regular file; a file that has become a link, a pipe or a device since it was listed is refused."""
    try:
        with open_regular(path) as file:
            # Of the open file: it may have grown since it was listed.
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise _too_large(size, max_bytes)
            raw = file.read()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE):
            raise  # a fault of the machine, which may pass, and not of the document
        raise Unreadable("unreadable", f"{path!r} cannot be read: {_why(error)}") from None
    if len(raw) > max_bytes:
        raise _too_large(len(raw), max_bytes)
    return raw


def _format(raw: bytes, suffix: str) -> str:
    """Return the format that the first bytes show, else the one of the file name's suffix."""
    if image_type(raw) is not None:
        return "image"
    if raw.startswith(b"%PDF-"):
        return "pdf"
    known = _FORMATS.get(suffix, "text")
    # A zip archive: a Word document under another name, or something that the name tells better.
    if known != "docx" and raw.startswith(b"PK\x03\x04"):
        from airflow_llm_provider.documents.docx import is_docx

        return "docx" if is_docx(raw) else known
    return known


def _parse(raw: bytes, kind: str, pdf: PdfMode, encoding: str) -> tuple[tuple[Part, ...], int]:
    if kind == "pdf":
        return pdf_parts_in_child(raw, pdf)
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
        return "it was deleted after it was listed"
    if error.errno == errno.ELOOP:
        return "it was replaced by a link after it was listed"
    return error.strerror or str(error)


def image_type(raw: bytes) -> str | None:
    """Return the media type of PNG, JPEG, GIF or WebP data; None for anything else."""
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if raw.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    # A text file may begin with "GIF89a" too; in an image, a NUL follows within the header.
    if raw.startswith((b"GIF87a", b"GIF89a")) and b"\0" in raw[6:32]:
        return "image/gif"
    if raw.startswith(b"RIFF") and raw[8:12] == b"WEBP":
        return "image/webp"
    return None


def image_part(raw: bytes) -> Part:
    """Return the image as a part; raise Unreadable when it is not an image, or too large for the API."""
    media_type = image_type(raw)
    if media_type is None:
        raise Unreadable("unreadable", "not a PNG, JPEG, GIF or WebP image, although its name ends like one")
    data = encode_base64(raw)
    if len(data) > MAX_IMAGE_BASE64_BYTES:
        raise Unreadable(
            "too_large",
            f"the image has {len(raw):,} bytes; the API takes {MAX_IMAGE_BASE64_BYTES * 3 // 4:,}. Scale it down.",
        )
    return Part(kind="image", data=data, media_type=media_type)


def ceiling_of_blocks(value: Any) -> int:
    """Return an upper bound of the input tokens of images and pages in messages, or in blocks within them.

    A PDF that is elsewhere (a URL, a file id) or that cannot be parsed counts as the most pages that the API takes.
    """
    if isinstance(value, Mapping):
        source = value.get("source")
        if value.get("type") == "image":
            return IMAGE_TOKENS
        if isinstance(source, Mapping) and source.get("type") in ("base64", "url", "file"):
            return PDF_PAGE_TOKENS * _pages(source.get("data"))
        return sum(map(ceiling_of_blocks, value.values()))
    return sum(map(ceiling_of_blocks, value)) if isinstance(value, (list, tuple)) else 0


def _pages(data: Any) -> int:
    try:
        return pdf_parts_in_child(base64.b64decode(data), "native")[1]
    except (Unreadable, TypeError, ValueError):
        return MAX_NATIVE_PAGES
