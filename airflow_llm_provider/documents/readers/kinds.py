"""The table of formats: how each is recognised, and which function reads it, in the sandbox where it parses."""

from __future__ import annotations

import dataclasses
import importlib
import io
import re
import zipfile
from dataclasses import dataclass
from typing import Any, cast

from airflow_llm_provider.documents import sandbox
from airflow_llm_provider.documents.content import Part
from airflow_llm_provider.documents.readers import image
from airflow_llm_provider.options import Reading


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of format.

    Attributes:
        name: in messages, such as `PDF`.
        reader: `module:function` in this package, imported when the first such file is read.
        suffixes: of file names, in lower case, without the dot.
        signature: a pattern for the first bytes; None: only the name tells.
        member: the name of a file that only such a zip archive has in it; None: not a zip archive.
        is_parsed: whether the bytes are parsed, which is done in the sandbox and nowhere else.
    """

    name: str
    reader: str
    suffixes: frozenset[str]
    signature: re.Pattern[bytes] | None = None
    member: str | None = None
    is_parsed: bool = True

    def read(self, raw: bytes, reading: Reading) -> tuple[Part, ...]:
        """Call the reader, here and now."""
        module, _, name = self.reader.partition(":")
        function = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        return cast("tuple[Part, ...]", function(raw, reading))


TEXT = Kind(
    name="text",
    reader="text:read_text",
    suffixes=frozenset({"txt", "text", "md", "markdown"}),
    is_parsed=False,
)
KINDS = (
    TEXT,
    Kind(
        name="image",
        reader="image:read_image",
        suffixes=frozenset({"png", "jpg", "jpeg", "gif", "webp"}),
        signature=image.SIGNATURE,
        is_parsed=False,
    ),
    Kind(
        name="PDF",
        reader="pdf:read_pdf",
        suffixes=frozenset({"pdf"}),
        signature=re.compile(rb"%PDF-"),
    ),
    Kind(
        name="Word document",
        reader="docx:read_docx",
        suffixes=frozenset({"docx"}),
        member="word/document.xml",
    ),
    Kind(name="HTML", reader="html:read_html", suffixes=frozenset({"html", "htm", "xhtml"})),
)
SUFFIXES = frozenset(suffix for kind in KINDS for suffix in kind.suffixes)
"""The suffixes of files that are read as one document."""

_ZIP = b"PK\x03\x04"


def read_parts(raw: bytes, name: str, reading: Reading) -> tuple[Part, ...]:
    """Return the parts of a file: recognised by its first bytes, else by its name, and parsed in the sandbox.

    Args:
        raw: the file's bytes.
        name: the file's name; only its suffix counts.
        reading: how it is read.

    Raises:
        Unreadable: the file cannot be read, and why.
        OSError: the sandbox cannot be started.
    """
    suffix = name.rpartition(".")[2].lower()
    kind = kind_of(raw, suffix)
    # What is in a zip archive is looked up in the sandbox: its list of files may be made to fill the memory.
    if not kind.is_parsed and not raw.startswith(_ZIP):
        return kind.read(raw, reading)
    found = sandbox.run(f"{__name__}:parse", raw, {"suffix": suffix, "reading": as_json(reading)})
    return tuple(Part(**part) for part in found)


def parse(raw: bytes, suffix: str, reading: dict[str, Any]) -> tuple[Part, ...]:
    """Return the parts of a file that has to be parsed: what the child process of the sandbox calls."""
    kind = _kind_of_zip(raw, suffix) if raw.startswith(_ZIP) else kind_of(raw, suffix)
    return kind.read(raw, Reading(**reading))


def kind_of(raw: bytes, suffix: str) -> Kind:
    """Return the kind that the first bytes show, else the one of the suffix, else text."""
    shown = (kind for kind in KINDS if kind.signature is not None and kind.signature.match(raw))
    return next(shown, None) or next((kind for kind in KINDS if suffix in kind.suffixes), TEXT)


def as_json(reading: Reading) -> dict[str, Any]:
    """Return `reading` as plain JSON data, from which the child process makes it again."""
    return dataclasses.asdict(reading)


def _kind_of_zip(raw: bytes, suffix: str) -> Kind:
    """Return the kind whose member the archive has; one that cannot be opened is told by its suffix."""
    named = kind_of(raw, suffix)
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            return next((kind for kind in KINDS if kind.member in archive.NameToInfo), named)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return named
