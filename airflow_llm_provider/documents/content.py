"""What reading a document gives: its content in parts, or Unreadable with a reason."""

from __future__ import annotations

import base64
import dataclasses
from dataclasses import dataclass
from typing import Literal, Self

from airflow_llm_provider.documents.document import Reason

MAX_REQUEST_BYTES = 32 * 1024 * 1024
"""The Messages API's limit for one request, base64 included."""


class Unreadable(Exception):
    """The document can't be asked about; `reason` is its dead letter's, the message says what to do."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One piece of a document, in reading order.

    data: the text itself, or base64 for pdf and image.
    pages: how many pages a pdf part has.
    title: what to call this part, where it isn't the whole document.
    """

    kind: Literal["text", "pdf", "image"]
    data: str
    media_type: str = "text/plain"
    pages: int = 0
    title: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """A document's content.

    content_hash: sha256 (hex) of the file's bytes, or of the row's text in UTF-8.
    pages: of a PDF, however sent; else 0.
    """

    content_hash: str
    parts: tuple[Part, ...]
    pages: int = 0

    def with_text(self, text: str) -> Self:
        """Return the content with another text in place of its own."""
        return dataclasses.replace(self, parts=(Part(kind="text", data=text),))

    @property
    def text(self) -> str | None:
        """Return all the text there is, to check quotes against; None when all is images or native pages."""
        texts = [part.data for part in self.parts if part.kind == "text"]
        return "\n".join(texts) if texts else None


def encode_base64(data: bytes) -> str:
    """Return `data` as base64 text, as the API takes it."""
    return base64.b64encode(data).decode("ascii")
