"""Readers of the DAG author's own, and of installed packages: functions that read what is given to them by suffix."""

from __future__ import annotations

import base64
import importlib
import inspect
import mimetypes
import os
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from airflow_llm_provider.documents.content import Part, Unreadable, checked
from airflow_llm_provider.documents.document import suffix_of
from airflow_llm_provider.documents.sandbox import Limits
from airflow_llm_provider.options import Reading, reader_name

GROUP = "airflow_llm_provider.readers"
"""The group of entry points: their name is a suffix or a media type, their value a `module:function`."""
LIMITS = Limits(cpu_s=300, wall_s=900)
"""What a function may take for one file; memory is limited as for every reader."""


def reader_of(name: str, reading: Reading) -> str | None:
    """Return the `module:function` that reads a file, or None: it is read as its format.

    A suffix comes before a media type; for the same, what the author gave comes before what packages bring.

    Args:
        name: the file's name. Its media type is what Python's `mimetypes` makes of it.
        reading: has the author's readers.
    """
    readers = readers_by_key(reading)
    if not readers or not (suffix := suffix_of(name)):
        return None
    media_type = mimetypes.guess_type(f"file.{suffix}")[0] or suffix
    return readers.get(suffix) or readers.get(media_type)


def readers_by_key(reading: Reading) -> Mapping[str, str]:
    """Return all readers that are not built in, as `module:function`, by suffix or media type."""
    own = {key.lower().removeprefix("."): reader_name(reader) for key, reader in reading.readers.items()}
    return {**_installed(), **own}


@cache
def _installed() -> Mapping[str, str]:
    return {point.name.lower().removeprefix("."): point.value for point in entry_points(group=GROUP)}


def read(function: str, raw: bytes, name: str) -> tuple[Part, ...]:
    """Return the parts that a function makes of a file; it is called here and now.

    Args:
        function: `module:function`. Its first parameter is the bytes; one named `path` gets the path of a file.
        raw: the file's bytes.
        name: the file's name.

    Raises:
        Unreadable: the function raised it, or another error, or returned something else than text or content blocks.
    """
    module, _, qualified = function.partition(":")
    try:
        called: Any = importlib.import_module(module)
        for step in qualified.split("."):
            called = getattr(called, step)
        made = _call(called, raw, name)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        # Its text may hold the document's; type and line are enough to find it.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(frame.filename)}, line {frame.lineno}"  # noqa: PTH119 - a name, not a file
        raise Unreadable(
            "unreadable", f"the reader {function} raised {type(error).__name__} ({where})"
        ) from error
    blocks = [made] if isinstance(made, (str, Mapping)) else made
    if not isinstance(blocks, Sequence) or isinstance(blocks, bytes) or not blocks:
        raise Unreadable("unreadable", f"the reader {function} returned {_kind(made)}; {_WANTED}")
    return tuple(part for block in blocks for part in _parts(block, function))


_WANTED = (
    "it has to return a text, or a list of texts and of content blocks of the Messages API, at least one"
)


def _call(called: Any, raw: bytes, name: str) -> Any:
    if next(iter(inspect.signature(called).parameters), "") != "path":
        return called(raw)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"file.{suffix_of(name) or 'bin'}")  # noqa: PTH118 - given on as a text
        with open(path, "wb") as file:
            file.write(raw)
        return called(path)


def _parts(block: Any, function: str) -> tuple[Part, ...]:
    """Return a text or a content block as parts; a PDF may have more pages than one request takes."""
    if isinstance(block, str):
        return (Part(kind="text", data=checked(block)),)
    kind = block.get("type") if isinstance(block, Mapping) else None
    if kind == "text" and isinstance(block.get("text"), str):
        return (Part(kind="text", data=checked(block["text"])),)
    source = block.get("source") if kind in ("image", "document") else None
    if isinstance(source, Mapping) and isinstance(source.get("data"), str):
        if source.get("type") == "text":
            return (Part(kind="text", data=checked(source["data"])),)
        if source.get("type") == "base64":
            from airflow_llm_provider.documents.readers.image import read_image
            from airflow_llm_provider.documents.readers.pdf import read_pdf

            raw = base64.b64decode(source["data"])
            return read_image(raw, Reading()) if kind == "image" else read_pdf(raw, Reading(pdf="native"))
    raise Unreadable("unreadable", f"the reader {function} returned a block of {_kind(block)}; {_WANTED}")


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"the type {type(value).__name__}"
