"""Reading a document: its bytes are fetched within limits, its format is recognised, its content is returned."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from airflow_llm_provider.documents import sandbox
from airflow_llm_provider.documents.content import (
    IMAGE_TOKENS,
    Content,
    Part,
    Unreadable,
    checked,
)
from airflow_llm_provider.documents.document import Document
from airflow_llm_provider.documents.opening import fetch, too_large
from airflow_llm_provider.documents.readers import pdf
from airflow_llm_provider.documents.readers.kinds import read_parts
from airflow_llm_provider.options import Reading
from airflow_llm_provider.pricing import LARGEST_WINDOW

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
    raw, stamp = fetch(document, reading.max_bytes)
    if not raw:
        raise Unreadable("empty", "the file is empty (0 bytes)")
    content_hash = hashlib.sha256(raw).hexdigest()
    return Content(content_hash=content_hash, parts=read_parts(raw, document.name, reading), stamp=stamp)


def _row_content(text: str, max_bytes: int) -> Content:
    # A text has at least as many bytes as characters, so a huge one is refused before it is encoded.
    if len(text) > max_bytes:
        raise too_large(len(text), max_bytes)
    raw = checked(text).encode()
    if len(raw) > max_bytes:
        raise too_large(len(raw), max_bytes)
    return Content(content_hash=hashlib.sha256(raw).hexdigest(), parts=(Part(kind="text", data=text),))


def ceiling_of_blocks(value: Any) -> int:
    """Return an upper bound of the input tokens of images and pages in messages, or in blocks within them.

    A PDF that is elsewhere (a URL, a file id) or that cannot be parsed counts as the most that any model reads.
    """
    if isinstance(value, Mapping):
        source = value.get("source")
        if value.get("type") == "image":
            return IMAGE_TOKENS
        if isinstance(source, Mapping) and source.get("type") in ("base64", "url", "file"):
            return _pdf_ceiling_tokens(source.get("data"))
        return sum(map(ceiling_of_blocks, value.values()))
    return sum(map(ceiling_of_blocks, value)) if isinstance(value, (list, tuple)) else 0


def _pdf_ceiling_tokens(data: Any) -> int:
    try:
        return int(sandbox.run(f"{pdf.__name__}:ceiling_tokens", base64.b64decode(data), {}))
    except (Unreadable, TypeError, ValueError):
        return LARGEST_WINDOW
