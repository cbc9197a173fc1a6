"""Content as Messages API blocks: text goes in as data, byte for byte, and can't pass for anything else."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from airflow_llm_provider.documents.content import Content, Part

IMAGE_TOKENS = 5_000
"""More than any image costs: https://docs.claude.com/en/docs/build-with-claude/vision."""
PDF_PAGE_TOKENS = 8_000
"""More than a page costs, as text and image: https://docs.claude.com/en/docs/build-with-claude/pdf-support."""

Framing = Literal["document", "tag"]


def to_blocks(content: Content, framing: Framing = "document") -> list[dict[str, Any]]:
    """Return the content as blocks of a user message.

    A file's name is not sent: renaming it does not make it another question, and copies are paid once.

    framing: "document": the API's own document block with a text source. "tag": for compatible servers that
        lack those, a text block closed in a tag derived from the text's hash, which does not occur in it.
    """
    return [_block(part, framing) for part in content.parts]


def ceiling_tokens(content: Content) -> int:
    """Return an upper bound of the input tokens of images and pages; the request itself bounds its text."""
    images = sum(part.kind == "image" for part in content.parts)
    return IMAGE_TOKENS * images + PDF_PAGE_TOKENS * sum(part.pages for part in content.parts)


def _block(part: Part, framing: Framing) -> dict[str, Any]:
    if part.kind == "image":
        return {"type": "image", "source": _base64_source(part)}
    if part.kind == "text" and framing == "tag":
        tag = _tag(part.data)
        return {"type": "text", "text": f"<{tag}>\n{part.data}\n</{tag}>"}
    block: dict[str, Any] = {"type": "document"}
    if part.kind == "text":
        block["source"] = {"type": "text", "media_type": "text/plain", "data": part.data}
    else:
        block["source"] = _base64_source(part)
    if part.title:
        block["title"] = part.title
    return block


def _base64_source(part: Part) -> dict[str, str]:
    return {"type": "base64", "media_type": part.media_type, "data": part.data}


def _tag(text: str) -> str:
    """Return a tag name that the text does not contain, the same for the same text."""
    seed = hashlib.sha256(text.encode())
    while (tag := f"document-{seed.hexdigest()[:16]}") in text:
        seed.update(b"\0")
    return tag
