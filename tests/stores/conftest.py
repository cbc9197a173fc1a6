"""Stores that need a venv of their own: `make test-stores`. Airflow under test is that of tests/airflow."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# gcsfs hangs with an emulator unless this is set before it is imported.
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"

import pytest

from tests.airflow.conftest import Deployment, airflow_home, deployment

__all__ = ["airflow_home", "deployment"]

OBJECTS = 1_000


@contextmanager
def emulator(command: Sequence[str], url: str, log: str) -> Iterator[None]:
    """Run a store's emulator until the end of the block, from when it answers at `url`."""
    with open(log, "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not _answers(url):
            assert process.poll() is None, f"it ended with {process.returncode}: {Path(log).read_text()}"
            assert time.monotonic() < deadline, f"it does not answer: {Path(log).read_text()}"
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture
def hold_claim(deployment: Deployment) -> Callable[..., None]:
    """Hold what is promised of every store: 1,000 objects in, rows out, an unchanged run asks nothing."""

    def hold(
        scheme: str,
        put: Callable[[dict[str, str]], None],
        get: Callable[[str], bytes],
        fetched: Callable[[], int],
    ) -> None:
        """Hold it.

        scheme: of URLs, with the connection, such as `gs://store@`. put: writes objects of the bucket `letters` by key.
        get: returns an object of the bucket `results`. fetched: how many objects of `letters` were read so far.
        """
        documents, output = f"{scheme}letters/inbox/", f"{scheme}results/rows.jsonl"
        put({f"inbox/doc-{n:04}.txt": f"Letter {n}: we owe you ${n}.00." for n in range(OBJECTS)})
        first = deployment.ask(documents, output=output)
        assert (first.state, first.outcomes) == ("success", {"answered": OBJECTS}), first.log[-5000:]
        assert get("rows.jsonl").count(b"\n") == OBJECTS
        assert deployment.server.invoice.paid == OBJECTS
        assert len(first.log) < 50_000  # the provider's library does not log each exchange

        before = fetched()
        assert before >= OBJECTS
        assert deployment.ask(documents, output=output).outcomes == {"reused": OBJECTS}
        assert (deployment.server.invoice.paid, fetched() - before) == (OBJECTS, 0)

        put({"inbox/doc-0700.txt": "Letter 700: we owe you nothing.", "inbox/blank.txt": " "})
        third = deployment.ask(documents, output=output, max_failed=1)
        assert third.outcomes == {"reused": OBJECTS - 1, "answered": 1, "dead_letter": 1}
        assert deployment.server.invoice.paid == OBJECTS + 1
        assert b"blank.txt" in get("rows.dead_letters.jsonl")
        assert get("rows.manifest.json")

        nothing = deployment.ask(f"{scheme}letters/elsewhere/", output=output)
        assert nothing.state == "failed"
        assert get("rows.jsonl").count(b"\n") == OBJECTS

    return hold
