"""Places that are written to: absolute paths, and URLs of object storage with the connection they name."""

from __future__ import annotations

from typing import Any


def object_storage(url: str) -> Any:
    """Return the path of a URL such as `s3://conn@bucket/key`."""
    from airflow.sdk import ObjectStoragePath

    return ObjectStoragePath(url)


def require_absolute(argument: str, place: str | None) -> None:
    """Raise ValueError for a relative path; None is fine."""
    if place and "://" not in place and not place.startswith("/"):
        raise ValueError(
            f"{argument}={place!r} is relative, and a task may run in any working directory: give an absolute "
            "path or a URL."
        )


def write(location: str, value: Any) -> str:
    """Write text as it is and other data as JSON to an absolute path or a URL; return the location."""
    from upath import UPath

    from airflow_llm_provider.engine.request import to_json

    path = object_storage(location) if "://" in location else UPath(location)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(value.encode() if isinstance(value, str) else to_json(value))
    return location
