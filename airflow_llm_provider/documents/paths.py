"""Tells local paths from object storage: local ones are `str`, others keep their UPath."""

# ruff: noqa: PTH100 - local paths stay strings: a Path object costs more than all else about a file

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from upath import UPath

PathLike: TypeAlias = "str | os.PathLike[str] | UPath"
ToPath: TypeAlias = "Callable[[str], UPath]"

LOCAL_PROTOCOLS = frozenset({"", "file", "local"})


def url_to_path(url: str) -> UPath:
    """Open `url` with universal_pathlib; operators pass Airflow's ObjectStoragePath instead."""
    from upath import UPath

    return UPath(url)


def place(path: PathLike, to_path: ToPath = url_to_path) -> str | UPath:
    """Return a local path as an absolute `str` (links not resolved), any other as its UPath."""
    if isinstance(path, str):
        if "://" not in path:
            return os.path.abspath(path)
        path = to_path(path)
    protocol = getattr(path, "protocol", None)
    if protocol is None or protocol in LOCAL_PROTOCOLS:
        return os.path.abspath(str(getattr(path, "path", None) or os.fspath(path)))  # type: ignore[arg-type]
    return path  # type: ignore[return-value]


def is_path(value: object) -> bool:
    """Tell whether `value` is a path object (not a `str`): pathlib, UPath or ObjectStoragePath."""
    # On the type: asking an instance for its `fs` would connect.
    return isinstance(value, os.PathLike) or (hasattr(type(value), "protocol") and hasattr(type(value), "fs"))


def as_written(path: PathLike) -> str:
    """Return `path` as its author wrote it, with forward slashes and without `.` parts."""
    text = path if isinstance(path, str) else path.as_posix() if hasattr(path, "as_posix") else str(path)
    if "://" in text:
        return text
    return os.path.normpath(text).replace(os.sep, "/")


def uri_of(store: UPath, key: str) -> str:
    """Return the URL of `key` in `store`, without connection ids or credentials."""
    return key if "://" in key else f"{store.protocol}://{key.lstrip('/')}"
