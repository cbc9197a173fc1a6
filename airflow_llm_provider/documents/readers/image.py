"""Images, passed on as they are."""

from __future__ import annotations

import re

from airflow_llm_provider.documents.content import Part, Unreadable, encode_base64
from airflow_llm_provider.options import Reading

MAX_IMAGE_BASE64_BYTES = 5 * 1024 * 1024
"""The API's limit for an image. It counts the base64 text, so a file may have three quarters of it (3.75 MiB)."""

_SIGNATURES = {
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/jpeg": rb"\xff\xd8\xff",
    # A text file may begin with "GIF89a" too; in an image, a NUL follows within the header.
    "image/gif": rb"GIF8[79]a.{0,25}\0",
    "image/webp": rb"RIFF.{4}WEBP",
}
SIGNATURE = re.compile(b"|".join(_SIGNATURES.values()), re.DOTALL)
"""The first bytes of the images that the API takes."""


def media_type_of(raw: bytes) -> str | None:
    """Return the media type of PNG, JPEG, GIF or WebP data; None for anything else."""
    matching = (kind for kind, start in _SIGNATURES.items() if re.match(start, raw, re.DOTALL))
    return next(matching, None)


def read_image(raw: bytes, reading: Reading) -> tuple[Part, ...]:  # noqa: ARG001 - every reader takes it
    """Return the image as a part; raise Unreadable when it is not an image, or too large for the API."""
    media_type = media_type_of(raw)
    if media_type is None:
        raise Unreadable("unreadable", "not a PNG, JPEG, GIF or WebP image, although its name ends like one")
    data = encode_base64(raw)
    if len(data) > MAX_IMAGE_BASE64_BYTES:
        raise Unreadable(
            "too_large",
            f"the image has {len(raw):,} bytes; the API takes {MAX_IMAGE_BASE64_BYTES * 3 // 4:,}. Scale it down.",
        )
    return (Part(kind="image", data=data, media_type=media_type),)
