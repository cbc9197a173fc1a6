"""Plain text, JSON and XML: decoded, and otherwise as they are."""

from __future__ import annotations

import codecs
import re

from airflow_llm_provider.documents.content import Part, Unreadable, byte_order_mark, decode
from airflow_llm_provider.options import Reading

_DECLARATION = re.compile(rb"\s*<\?xml[^>]{0,200}?\sencoding\s*=\s*[\"']([A-Za-z][A-Za-z0-9._:-]{0,40})[\"']")
# The first bytes of `<?xml` or `<` in encodings whose declaration is not ASCII: https://www.w3.org/TR/xml/#sec-guessing.
_UNMARKED = (
    (b"<\0?\0", "utf-16-le"),
    (b"\0<\0?", "utf-16-be"),
    (b"<\0\0\0", "utf-32-le"),
    (b"\0\0\0<", "utf-32-be"),
)


def read_text(raw: bytes, reading: Reading) -> tuple[Part, ...]:
    """Return the text exactly as it is in the file; see `decode`."""
    return (Part(kind="text", data=decode(raw, reading.encoding)),)


def read_xml(raw: bytes, reading: Reading) -> tuple[Part, ...]:
    """Return the text of an XML file exactly as it is; it is not parsed, so no entity is expanded.

    Args:
        raw: the file's bytes. A byte order mark takes precedence over the encoding that the file declares, and that
            over `reading.encoding`.
        reading: how texts are decoded.
    """
    return (Part(kind="text", data=decode(raw, declared_encoding(raw) or reading.encoding)),)


def declared_encoding(raw: bytes) -> str | None:
    """Return the encoding that an XML declaration names; None where it names none that Python knows."""
    if byte_order_mark(raw)[1] is not None:
        return None
    for start, encoding in _UNMARKED:
        if raw.startswith(start):
            return encoding
    found = _DECLARATION.match(raw)
    if found is None:
        return None
    try:
        return codecs.lookup(found[1].decode("ascii")).name
    except LookupError:
        raise Unreadable("unreadable", "XML that declares an encoding which Python does not know") from None


def read_json(raw: bytes, reading: Reading) -> tuple[Part, ...]:
    """Return the text of a JSON file exactly as it is.

    Args:
        raw: the file's bytes: UTF-8, UTF-16 or UTF-32, which JSON tells by its first bytes, else `reading.encoding`.
        reading: how texts are decoded.
    """
    import json

    found = json.detect_encoding(raw)
    # UTF-8 is what remains, for any other encoding too.
    encoding = reading.encoding if found.startswith("utf-8") else found
    return (Part(kind="text", data=decode(raw, encoding)),)
