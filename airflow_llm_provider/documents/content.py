"""The content of a document: its parts, how text is decoded, and the Messages API blocks it becomes."""

from __future__ import annotations

import base64
import codecs
import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self

from airflow_llm_provider.documents.document import Reason
from airflow_llm_provider.engine.framing import Framing, text_block

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


# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode(raw: bytes, encoding: str = "utf-8") -> str:
    """Return `raw` as text, without newline translation, stripping or normalisation.

    A byte order mark wins over `encoding` and is not part of the text.
    Raises Unreadable: not valid in the encoding, binary (NUL), or nothing but whitespace.
    """
    mark, marked = byte_order_mark(raw)
    encoding, start = marked or encoding, len(mark)
    try:
        text = raw[start:].decode(encoding)
    except UnicodeDecodeError as error:
        if b"\0" in raw:
            raise Unreadable("unreadable", _binary(raw.index(b"\0"))) from None
        byte = error.object[error.start]
        raise Unreadable(
            "unreadable",
            f"not valid {encoding}: byte 0x{byte:02x} at position {start + error.start} ({error.reason}). "
            "If the file is in another encoding, give it, such as `encoding='cp1252'`.",
        ) from None
    except LookupError:
        raise Unreadable("unreadable", f"Python knows no encoding {encoding!r} (`encoding=`)") from None
    return checked(text)


def byte_order_mark(raw: bytes) -> tuple[bytes, str | None]:
    """Return the mark that `raw` begins with, and the encoding it stands for; else no bytes and None."""
    return next(((mark, encoding) for mark, encoding in _MARKS if raw.startswith(mark)), (b"", None))


def checked(text: str) -> str:
    """Return `text` if it can be sent: valid Unicode, no NUL, not blank; else raise Unreadable."""
    if (position := text.find("\0")) >= 0:
        raise Unreadable("unreadable", _binary(position))
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Unreadable(
                "unreadable", f"holds a lone surrogate at character {error.start}, which is no valid text"
            ) from None
    if not text or text.isspace():
        raise Unreadable("empty", "there is no text in it" if text else "it is empty")
    return text


def _binary(position: int) -> str:
    return f"binary, not text: a NUL at position {position}"


IMAGE_TOKENS = 5_000
"""More than any image costs: https://docs.claude.com/en/docs/build-with-claude/vision."""
PDF_PAGE_TOKENS = 8_000
"""More than a page costs, as text and image: https://docs.claude.com/en/docs/build-with-claude/pdf-support."""


def to_blocks(content: Content, framing: Framing = "document") -> list[dict[str, Any]]:
    """Return the content as blocks of a user message.

    A file's name is not sent: renaming it does not make it another question, and copies are paid once.

    framing: how text is closed in; see engine.framing.
    """
    return [_block(part, framing) for part in content.parts]


def ceiling_tokens(content: Content) -> int:
    """Return an upper bound of the input tokens of images and pages; the request itself bounds its text."""
    images = sum(part.kind == "image" for part in content.parts)
    return IMAGE_TOKENS * images + PDF_PAGE_TOKENS * sum(part.pages for part in content.parts)


def _block(part: Part, framing: Framing) -> dict[str, Any]:
    if part.kind == "image":
        return {"type": "image", "source": _base64_source(part)}
    if part.kind == "text":
        return text_block(part.data, framing)
    block: dict[str, Any] = {"type": "document", "source": _base64_source(part)}
    if part.title:
        block["title"] = part.title
    return block


def _base64_source(part: Part) -> dict[str, str]:
    return {"type": "base64", "media_type": part.media_type, "data": part.data}
