"""Content as Messages API blocks: text goes in as data, byte for byte, and can't pass for anything else."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from airflow_llm_provider.documents.content import Content, Part, Unreadable
from airflow_llm_provider.documents.pdf import MAX_NATIVE_PAGES
from airflow_llm_provider.documents.pdf_process import pdf_parts_beside
from airflow_llm_provider.engine.framing import Framing, text_block

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


def ceiling_of_blocks(value: Any) -> int:
    """Return the same of messages, or of blocks within them, that are the API's already.

    What is elsewhere, or can't be counted, has as many pages as the API takes.
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
        return pdf_parts_beside(base64.b64decode(data), "native")[1]
    except (Unreadable, TypeError, ValueError):
        return MAX_NATIVE_PAGES


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
