"""Documents in Azure Blob Storage: azurite over HTTP, Microsoft's provider, credentials from an Airflow connection."""

from __future__ import annotations

import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from azure.storage.blob import BlobServiceClient

from tests.stores.conftest import emulator

# The account that azurite knows, from its documentation.
ACCOUNT = "devstoreaccount1"
SECRET = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def test_a_thousand_blobs_are_rows_and_unchanged_ones_cost_nothing(deployment, hold_claim, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url, access_log = f"http://127.0.0.1:{port}/{ACCOUNT}", tmp_path / "azurite.log"
    command = [
        *(os.environ["AZURITE"], "--disableTelemetry", "--inMemoryPersistence", "--skipApiVersionCheck"),
        *("--blobHost", "127.0.0.1", "--blobPort", str(port)),
    ]
    with emulator(command, url, str(access_log)):
        address = (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={SECRET};BlobEndpoint={url};"
        )
        deployment.monkeypatch.setenv(
            "AIRFLOW_CONN_STORE", json.dumps({"conn_type": "wasb", "extra": {"connection_string": address}})
        )
        with BlobServiceClient.from_connection_string(address) as service:
            letters, results = service.create_container("letters"), service.create_container("results")

            def put(objects: dict[str, str]) -> None:
                with ThreadPoolExecutor(8) as pool:
                    list(pool.map(lambda each: letters.upload_blob(*each, overwrite=True), objects.items()))

            hold_claim(
                "abfs://store@",
                put,
                lambda key: results.download_blob(key).readall(),
                lambda: fetched(access_log),
            )


def fetched(access_log: Path) -> int:
    """Return how many blobs of the inbox were read."""
    return sum(f'"GET /{ACCOUNT}/letters/inbox/' in line for line in access_log.read_text().splitlines())
