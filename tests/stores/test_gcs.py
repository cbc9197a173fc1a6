"""Documents in Google Cloud Storage: an emulator over HTTP, Google's provider, settings from an Airflow connection."""

from __future__ import annotations

import json
import socket
import sys
import urllib.parse
import urllib.request
from pathlib import Path

from tests.stores.conftest import emulator


def test_a_thousand_objects_are_rows_and_unchanged_ones_cost_nothing(deployment, hold_claim, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url, access_log = f"http://127.0.0.1:{port}", tmp_path / "emulator.log"
    command = [
        *(str(Path(sys.executable).with_name("gcp-storage-emulator")), "start", "--in-memory"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    with emulator(command, url, str(access_log)):
        extra = {"is_anonymous": True, "project": "test", "gcs.endpoint": url}
        deployment.monkeypatch.setenv(
            "AIRFLOW_CONN_STORE", json.dumps({"conn_type": "google_cloud_platform", "extra": extra})
        )
        for bucket in ("letters", "results"):
            post(
                f"{url}/storage/v1/b?project=test", json.dumps({"name": bucket}).encode(), "application/json"
            )

        def put(objects: dict[str, str]) -> None:
            for key, text in objects.items():
                name = urllib.parse.quote(key, safe="")
                post(f"{url}/upload/storage/v1/b/letters/o?uploadType=media&name={name}", text.encode())

        def get(key: str) -> bytes:
            with urllib.request.urlopen(f"{url}/storage/v1/b/results/o/{key}?alt=media") as answer:
                return answer.read()

        hold_claim("gs://store@", put, get, lambda: fetched(access_log))


def post(url: str, body: bytes, media_type: str = "text/plain") -> None:
    """Send a POST."""
    request = urllib.request.Request(url, body, {"Content-Type": media_type})
    urllib.request.urlopen(request).close()


def fetched(access_log: Path) -> int:
    """Return how many objects of the inbox were read."""
    return sum(
        "/b/letters/o/inbox" in line and "alt=media" in line for line in access_log.read_text().splitlines()
    )
