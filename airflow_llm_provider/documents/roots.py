"""Where files may be read: the roots, local folders and URL prefixes."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote

from airflow_llm_provider.documents.paths import PathLike, ToPath, as_written, place, uri_of, url_to_path

if TYPE_CHECKING:
    from upath import UPath

_SAME_STORE = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "https": "http"}


class OutsideRoots(ValueError):
    """The path named by the author lies below none of the roots; nothing was read."""


class Roots:
    """Hold the places files may be read from.

    roots: folders (local ones resolved through links) and URL prefixes, compared part by part;
        None allows everything, an empty sequence nothing.
    """

    def __init__(self, roots: Sequence[PathLike] | None, to_path: ToPath = url_to_path) -> None:
        self._open = roots is None
        self._names = [as_written(root) for root in roots or ()]
        self._local: list[str] = []
        self._remote: list[tuple[str, ...]] = []
        for root in roots or ():
            found = place(root, to_path)
            if isinstance(found, str):
                self._local.append(os.path.realpath(found))
            else:
                self._remote.append(_parts(found, found.path))

    def hold_file(self, real_path: str) -> bool:
        """Tell whether a local path, links already resolved, lies below a root."""
        if self._open:
            return True
        return any(real_path == r or real_path.startswith(r.rstrip("/") + "/") for r in self._local)

    def hold_key(self, store: UPath, key: str) -> bool:
        """Tell whether an object lies below a URL root, `..` resolved as a server might."""
        if self._open:
            return True
        if "::" in key or "::" in store.protocol:  # chained file systems open something else underneath
            return False
        parts = _parts(store, key)
        return any(parts[: len(root)] == root for root in self._remote)

    def require(self, path: str, shown: str, store: UPath | None = None) -> None:
        """Raise OutsideRoots unless the local path, or the key in `store`, lies below a root."""
        if not (self.hold_file(os.path.realpath(path)) if store is None else self.hold_key(store, path)):
            known = ", ".join(repr(name) for name in self._names) or "none"
            raise OutsideRoots(
                f"{shown!r} lies below none of the roots ({known}), so nothing was read. "
                "Add its folder to the task's `roots=`, or to `roots` in the configuration's `[llm]` section."
            )


def _parts(store: UPath, key: str) -> tuple[str, ...]:
    """Return (protocol, bucket or host, part, …), normalised for comparison."""
    protocol, _, rest = uri_of(store, key).partition("://")
    protocol = _SAME_STORE.get(protocol, protocol)
    if protocol == "http":
        rest = unquote(rest)
    host, _, path = rest.lstrip("/").partition("/")
    inside = posixpath.normpath("/" + path).strip("/")
    return (protocol, host, *(part for part in inside.split("/") if part))
