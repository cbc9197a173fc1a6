"""Text out of bytes: decoded strictly, or refused with the byte that is wrong; never changed."""

from __future__ import annotations

import codecs

from airflow_llm_provider.documents.content import Unreadable

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
