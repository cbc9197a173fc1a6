"""Text as data: a block of a message in which nothing can pass for an instruction."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

Framing = Literal["document", "tag"]


def text_block(text: str, framing: Framing = "document", *, title: str | None = None) -> dict[str, Any]:
    """Return text as a block of a user message.

    framing: "document": the API's own document block with a text source. "tag": for compatible servers that
        lack those, a text block closed in a tag derived from the text's hash, which does not occur in it.
    title: what to call it.
    """
    if framing == "tag":
        tag = _tag(text)
        told = f"{title}:\n" if title else ""
        return {"type": "text", "text": f"{told}<{tag}>\n{text}\n</{tag}>"}
    block: dict[str, Any] = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": text},
    }
    if title:
        block["title"] = title
    return block


def _tag(text: str) -> str:
    """Return a tag name that the text does not contain, the same for the same text."""
    seed = hashlib.sha256(text.encode())
    while (tag := f"document-{seed.hexdigest()[:16]}") in text:
        seed.update(b"\0")
    return tag
