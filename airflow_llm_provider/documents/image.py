"""Images, told by their first bytes and sent as they are."""

from __future__ import annotations

from airflow_llm_provider.documents.content import Part, Unreadable, encode_base64

MAX_BASE64_BYTES = 5 * 1024 * 1024
"""The API counts an image's base64 text, so a file may have three quarters of this (3.75 MiB)."""


def image_type(raw: bytes) -> str | None:
    """Return the media type of PNG, JPEG, GIF and WebP data; None for anything else."""
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if raw.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    # A text may begin with "GIF89a" too; the header of an image holds a NUL.
    if raw.startswith((b"GIF87a", b"GIF89a")) and b"\0" in raw[6:32]:
        return "image/gif"
    if raw.startswith(b"RIFF") and raw[8:12] == b"WEBP":
        return "image/webp"
    return None


def image_part(raw: bytes) -> Part:
    """Return the image as a part; raise Unreadable when it is none, or too large for the API."""
    media_type = image_type(raw)
    if media_type is None:
        raise Unreadable("unreadable", "not a PNG, JPEG, GIF or WebP image, whatever its name says")
    data = encode_base64(raw)
    if len(data) > MAX_BASE64_BYTES:
        raise Unreadable(
            "too_large",
            f"the image has {len(raw):,} bytes; the API takes {MAX_BASE64_BYTES * 3 // 4:,}. Scale it down.",
        )
    return Part(kind="image", data=data, media_type=media_type)
