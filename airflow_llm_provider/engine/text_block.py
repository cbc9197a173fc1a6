"""Text as data: a block of a message whose text can't be taken for an instruction."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

Framing = Literal["document", "tag"]


def text_block(text: str, framing: Framing = "document", *, title: str | None = None) -> dict[str, Any]:
    """Return text as a block of a user message.

    Args:
        text: The text, as it is.
        framing: "document" for the API's own document block with a text source. "tag" for compatible servers without
            those: a text block inside a tag that is derived from the text's hash and does not occur in the text.
        title: How the block is called in the prompt.
    """
    if framing == "tag":
        tag = _tag(text)
        heading = f"{title}:\n" if title else ""
        return {"type": "text", "text": f"{heading}<{tag}>\n{text}\n</{tag}>"}
    block: dict[str, Any] = {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": text},
    }
    if title:
        block["title"] = title
    return block


def _tag(text: str) -> str:
    """Return a tag name that the text does not contain; the same text gives the same name."""
    # Not a random tag: the same text must make the same request, or it would be paid for again.
    seed = hashlib.sha256(text.encode())
    while (tag := f"document-{seed.hexdigest()[:16]}") in text:
        seed.update(b"\0")
    return tag
