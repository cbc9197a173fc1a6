"""Object storage: URLs become Airflow's paths, with the connection they name."""

from __future__ import annotations

from typing import Any


def object_storage(url: str) -> Any:
    """Return the path of a URL such as `s3://conn@bucket/key`."""
    from airflow.sdk import ObjectStoragePath

    return ObjectStoragePath(url)
