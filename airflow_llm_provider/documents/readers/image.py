"""Images: what the API takes is passed on as it is, TIFF and BMP are converted."""

from __future__ import annotations

import io
import re

from airflow_llm_provider.documents.content import Part, Unreadable, encode_base64
from airflow_llm_provider.options import Reading

MAX_IMAGE_BASE64_BYTES = 5 * 1024 * 1024
"""The API's limit for an image. It counts the base64 text, so a file may have three quarters of it (3.75 MiB)."""
MAX_IMAGE_PIXELS = 8_000
"""The API's limit for each side of an image: https://docs.claude.com/en/docs/build-with-claude/vision."""
MAX_IMAGES = 100
"""The API's limit for the images of one request."""

_SIGNATURES = {
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/jpeg": rb"\xff\xd8\xff",
    # A text file may begin with "GIF89a" too; in an image, a NUL follows within the header.
    "image/gif": rb"GIF8[79]a.{0,25}\0",
    "image/webp": rb"RIFF.{4}WEBP",
}
SIGNATURE = re.compile(b"|".join(_SIGNATURES.values()), re.DOTALL)
"""The first bytes of the images that the API takes."""
_SHADES_AND_COLOURS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


def media_type_of(raw: bytes) -> str | None:
    """Return the media type of PNG, JPEG, GIF or WebP data; None for anything else."""
    matching = (kind for kind, start in _SIGNATURES.items() if re.match(start, raw, re.DOTALL))
    return next(matching, None)


def read_image(raw: bytes, reading: Reading) -> tuple[Part, ...]:  # noqa: ARG001 - every reader takes it
    """Return the image as it is; raise Unreadable when it is not an image, or too large for the API."""
    return (image_part(raw),)


def image_part(raw: bytes) -> Part:
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
    return Part(kind="image", data=data, media_type=media_type)


def read_bitmap(raw: bytes, reading: Reading) -> tuple[Part, ...]:  # noqa: ARG001 - every reader takes it
    """Return each page of a TIFF, or a BMP, as an image that the API takes: PNG, or JPEG where PNG is too large.

    An image that is wider or higher than the API takes is scaled down.

    Raises:
        Unreadable: it is broken, or it has more pages than one request may have images.
        ImportError: the extra `office` is not installed.
    """
    from PIL import Image, ImageSequence

    # The sandbox bounds what a picture may take; Pillow's own bound is a warning.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(io.BytesIO(raw), formats=("TIFF", "BMP")) as image:
            pages = getattr(image, "n_frames", 1)
            if pages > MAX_IMAGES:
                raise Unreadable(
                    "too_large", f"{pages} pages; the API takes {MAX_IMAGES} images. Split the file."
                )
            return tuple(_converted(page) for page in ImageSequence.Iterator(image))
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - Pillow passes on errors of struct and of libtiff
        raise Unreadable(
            "unreadable", f"a TIFF or BMP image that is broken ({type(error).__name__})"
        ) from None


def _converted(page: object) -> Part:
    from PIL import Image, ImageOps

    assert isinstance(page, Image.Image)
    # A photo says in a note which way is up.
    picture = ImageOps.exif_transpose(page)
    if picture.mode not in _SHADES_AND_COLOURS:
        picture = picture.convert("RGB")
    picture.thumbnail((MAX_IMAGE_PIXELS, MAX_IMAGE_PIXELS))
    data = _encoded(picture, "PNG")
    if len(data) <= MAX_IMAGE_BASE64_BYTES:
        return Part(kind="image", data=data, media_type="image/png")
    while len(data := _encoded(picture.convert("RGB"), "JPEG")) > MAX_IMAGE_BASE64_BYTES:
        picture = picture.resize((picture.width // 2, picture.height // 2))
    return Part(kind="image", data=data, media_type="image/jpeg")


def _encoded(picture: object, to: str) -> str:
    from PIL import Image

    assert isinstance(picture, Image.Image)
    out = io.BytesIO()
    picture.save(out, to)
    return encode_base64(out.getvalue())
