"""Reading a document: its bytes are fetched within limits, its format is recognised, its content is returned."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
from collections.abc import Mapping
from typing import Any, cast

from airflow_llm_provider.documents import sandbox
from airflow_llm_provider.documents.content import (
    IMAGE_TOKENS,
    PDF_PAGE_TOKENS,
    Content,
    Part,
    Unreadable,
    checked,
)
from airflow_llm_provider.documents.document import Document
from airflow_llm_provider.documents.files import open_regular
from airflow_llm_provider.documents.readers import pdf
from airflow_llm_provider.documents.readers.kinds import read_parts
from airflow_llm_provider.options import Reading

__all__ = ["Content", "Part", "Unreadable", "read"]


def read(document: Document, reading: Reading | None = None) -> Content:
    """Return the content of a document. It blocks, and may be called from several threads.

    The text of rows and text files is returned exactly; other formats are converted by a reader.

    Args:
        document: as `list_documents` yielded it.
        reading: how; None: the defaults. A document over `max_bytes` is refused by its size, before it is read.

    Raises:
        Unreadable: the document cannot be asked about.
        OSError: reading failed for a reason that may pass, such as object storage that does not answer.
    """
    reading = reading or Reading()
    if document.text is not None:
        return _row_content(document.text, reading.max_bytes)
    raw = _read_bytes(document, reading.max_bytes)
    if not raw:
        raise Unreadable("empty", "the file is empty (0 bytes)")
    content_hash = hashlib.sha256(raw).hexdigest()
    return Content(content_hash=content_hash, parts=read_parts(raw, document.name, reading))


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


def _too_large(size: int, max_bytes: int) -> Unreadable:
    return Unreadable("too_large", f"{size:,} bytes; at most {max_bytes:,} are read (`max_bytes=`)")


def _why(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it was deleted after it was listed"
    if error.errno == errno.ELOOP:
        return "it was replaced by a link after it was listed"
    return error.strerror or str(error)


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
        return int(sandbox.run(f"{pdf.__name__}:count_pages", base64.b64decode(data), {}))
    except (Unreadable, TypeError, ValueError):
        return pdf.MAX_NATIVE_PAGES
