"""What listing yields: a document to ask about, or the reason why it can't be asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from upath import UPath

Reason: TypeAlias = Literal["unreadable", "empty", "too_large", "too_long", "duplicate_id", "outside_root"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """Name one document without having read it (rows excepted: their text is at hand).

    id: stable from run to run. Files: posix path below the folder or the glob's fixed part; single files:
        their name; files in a list: the path as given. Rows: `id_field`, else 32 hex of the row's hash.
    uri: where it is, for attribution; None for rows given in memory.
    stamp: changes when the content may have changed (`size:mtime_ns:ctime_ns`, or an etag); None: only reading tells.
    size: bytes, when the listing knew.
    path: a local file's real path, or its key in `store`; None for rows.
    store: any path in the object store that holds `path`; None for local files and rows.
    text: a row's text: its `text_field`, or the row as canonical JSON (keys sorted).
    """

    id: str
    uri: str | None = None
    stamp: str | None = None
    size: int | None = None
    path: str | None = None
    store: UPath | None = None
    text: str | None = None

    @property
    def name(self) -> str:
        """Return the last part of the id: a file's name."""
        return self.id.rpartition("/")[2]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """Say why something found can't be asked about; becomes a dead letter."""

    id: str
    uri: str | None
    reason: Reason
    message: str
