"""Places that are written to: absolute paths, and URLs of object storage with the connection they name."""

from __future__ import annotations

from typing import Any


def object_storage(url: str) -> Any:
    """Return the path of a URL such as `s3://conn@bucket/key`."""
    from airflow.sdk import ObjectStoragePath

    return ObjectStoragePath(url)


def require_absolute(argument: str, place: str) -> None:
    """Raise ValueError for a relative path."""
    if "://" not in place and not place.startswith("/"):
        raise ValueError(
            f"{argument}={place!r} is relative, and a task's working directory is nobody's promise: give an absolute "
            "path or a URL."
        )
