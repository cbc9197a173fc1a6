"""What listing yields: a document to ask about, or the reason why it cannot be asked about."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from upath import UPath

Reason: TypeAlias = Literal["unreadable", "empty", "too_large", "too_long", "duplicate_id", "outside_root"]
"""Why a document that was found cannot be asked about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A document that was found and has not been read; of a row, the text is already there.

    Attributes:
        id: the same from run to run. A file in a folder: its path below the folder, or below the fixed part of a
            glob, with forward slashes. A single file: its name. A file in a list: the path as given. A file in an
            archive: `ARCHIVE!FILE`. A row: its `id_field`, else 32 hex digits of its hash; of a table in a folder, a
            list or an archive, behind the table's id, as in `rows.csv#17`.
        uri: where it is, for attribution; None for rows given in memory.
        stamp: changes when the content may have changed (`size:mtime_ns:ctime_ns`, or an etag); None: only reading
            tells.
        size: in bytes, when the listing knew it.
        path: of a local file, its real path; of a stored object, its key in `store`; None for rows and in archives.
        store: any path in the object store that holds `path`; None for local files and rows.
        raw: of a file in an archive, its bytes.
        text: of a row, its `text_field`, or the row as canonical JSON (keys sorted).
    """

    id: str
    uri: str | None = None
    stamp: str | None = None
    size: int | None = None
    path: str | None = None
    store: UPath | None = None
    raw: bytes | None = field(default=None, repr=False)
    text: str | None = None

    @property
    def name(self) -> str:
        """Return the last part of the id: a file's name."""
        return self.id.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """Something that was found and cannot be asked about; it becomes a dead letter.

    Attributes:
        id: see `Document.id`; of a broken row, the place where it stands.
        uri: where it is; None for rows given in memory.
        reason: the dead letter's reason.
        message: what is wrong, and what to do about it.
    """

    id: str
    uri: str | None
    reason: Reason
    message: str


_SUFFIX = re.compile(r"[^/]\.([A-Za-z0-9]{1,10})\Z")


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in lower case, without the dot; empty where the name has none."""
    found = _SUFFIX.search(name)
    return found[1].lower() if found else ""
