"""The content of a document: its parts, the decoding of its text, and the Messages API blocks it becomes."""

from __future__ import annotations

import base64
import codecs
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from airflow_llm_provider.documents.document import Reason
from airflow_llm_provider.engine.text_block import Framing, text_block

MAX_REQUEST_BYTES = 32 * 1024 * 1024
"""The Messages API's limit for one request, base64 included."""
MAX_NATIVE_PAGES = 100
"""The API's limit for the pages in one request."""
IMAGE_TOKENS = 5_000
"""An upper bound for one image: https://docs.claude.com/en/docs/build-with-claude/vision."""
PDF_PAGE_TOKENS = 8_000
"""An upper bound for a page with little text, which the API reads as text and as an image; `pdf_ceiling_tokens` bounds
any page: https://docs.claude.com/en/docs/build-with-claude/pdf-support."""

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Unreadable(Exception):
    """The document cannot be asked about; it becomes a dead letter and costs nothing.

    Attributes:
        reason: the dead letter's reason. The error's own text says what is wrong and what to do.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One piece of a document, in reading order.

    Attributes:
        kind: what it is sent as.
        data: the text itself; of a PDF or an image, base64.
        media_type: of `data`.
        pages: how many pages a PDF part has; else 0.
        text_bytes: of a PDF part, a bound of the bytes of text in it; else 0.
        title: what to call a part that is not the whole document.
        warnings: why what was read cannot be trusted, such as `unsure_characters: pages 2, 5`.
    """

    kind: Literal["text", "pdf", "image"]
    data: str
    media_type: str = "text/plain"
    pages: int = 0
    text_bytes: int = 0
    title: str | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, data: dict[str, Any]) -> Self:
        """Return the part that the sandbox sent as plain JSON data."""
        return cls(**{**data, "warnings": tuple(data["warnings"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """A document's content.

    Attributes:
        content_hash: SHA-256 (hex) of the file's bytes, or of the row's text in UTF-8.
        parts: at least one, in reading order.
        stamp: of the file or object in the state that was read, in the form of `Document.stamp`; None for rows.
    """

    content_hash: str
    parts: tuple[Part, ...]
    stamp: str | None = dataclasses.field(default=None, compare=False)

    def with_text(self, text: str) -> Self:
        """Return the same content with one text in place of its parts."""
        return dataclasses.replace(self, parts=(Part(kind="text", data=text),))

    @property
    def pieces(self) -> tuple[Self, ...]:
        """Return the content in pieces, each of which has no more pages and bytes than one request takes."""
        # The text of some pages and those of them to look at stay together.
        pairs: list[list[Part]] = [[]]
        for part in self.parts:
            pairs[-1].append(part)
            if part.kind == "pdf":
                pairs.append([])
        pieces: list[list[Part]] = [[]]
        for pair in pairs:
            if pieces[-1] and not _fit_one_request([*pieces[-1], *pair]):
                pieces.append([])
            pieces[-1] += pair
        return tuple(dataclasses.replace(self, parts=tuple(parts)) for parts in pieces)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return why what was read cannot be trusted, each reason once."""
        return tuple(dict.fromkeys(warning for part in self.parts for warning in part.warnings))

    @property
    def text(self) -> str | None:
        """Return all text of the parts, joined by newlines; None when all are images or pages sent as they are."""
        texts = [part.data for part in self.parts if part.kind == "text"]
        return "\n".join(texts) if texts else None

    @property
    def sole_text(self) -> str | None:
        """Return the text of a document that is one text, which can be cut or read in parts; None for any other."""
        return self.text if len(self.parts) == 1 else None


def _fit_one_request(parts: Sequence[Part]) -> bool:
    data = sum(len(part.data) for part in parts if part.kind != "text")
    return data <= MAX_REQUEST_BYTES and sum(part.pages for part in parts) <= MAX_NATIVE_PAGES


def encode_base64(data: bytes) -> str:
    """Return `data` as base64 text."""
    return base64.b64encode(data).decode("ascii")


def decode(raw: bytes, encoding: str = "utf-8") -> str:
    """Return `raw` as text, without newline translation, stripping or normalisation.

    Args:
        raw: the file's bytes. A byte order mark takes precedence over `encoding` and is not part of the text.
        encoding: a name that Python knows.

    Raises:
        Unreadable: the bytes are not valid in the encoding, contain a NUL, or are nothing but white space.
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
            "If the file is in another encoding, give it, such as `reading=Reading(encoding='cp1252')`.",
        ) from None
    except LookupError:
        raise Unreadable(
            "unreadable", f"encoding={encoding!r} is not an encoding that Python knows"
        ) from None
    return checked(text)


def byte_order_mark(raw: bytes) -> tuple[bytes, str | None]:
    """Return the byte order mark at the start of `raw` and its encoding; empty and None where there is none."""
    return next(((mark, encoding) for mark, encoding in _MARKS if raw.startswith(mark)), (b"", None))


def checked(text: str) -> str:
    """Return `text` unchanged if it can be sent.

    Raises:
        Unreadable: the text contains a lone surrogate or a NUL, or it is blank.
    """
    # A NUL is valid UTF-8, and a binary file can pass as text but for it.
    if (position := text.find("\0")) >= 0:
        raise Unreadable("unreadable", _binary(position))
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Unreadable(
                "unreadable", f"a lone surrogate at character {error.start}, which is not valid text"
            ) from None
    if not text or text.isspace():
        raise Unreadable("empty", "it contains nothing but white space" if text else "it is empty")
    return text


def _binary(position: int) -> str:
    return f"binary, not text: a NUL byte at position {position}"


def to_blocks(content: Content, framing: Framing = "document") -> list[dict[str, Any]]:
    """Return the content as blocks of a user message.

    The file's name is not sent: a renamed file is the same request, and copies of a file are paid for once.

    Args:
        content: what was read.
        framing: `document` for the API's document blocks, `tag` for servers that lack them.
    """
    return [_block(part, framing) for part in content.parts]


def ceiling_tokens(content: Content) -> int:
    """Return an upper bound of the input tokens of images and pages; the request itself bounds its text."""
    images = sum(part.kind == "image" for part in content.parts)
    pages = sum(pdf_ceiling_tokens(pages=part.pages, text_bytes=part.text_bytes) for part in content.parts)
    return IMAGE_TOKENS * images + pages


def pdf_ceiling_tokens(*, pages: int, text_bytes: int) -> int:
    """Return an upper bound of the input tokens of a PDF's pages: their pictures, and all that could be text.

    A token has at least one byte.
    """
    return max(PDF_PAGE_TOKENS * pages, IMAGE_TOKENS * pages + text_bytes)


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
