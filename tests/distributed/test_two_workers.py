"""Two workers with one ledger share the work, and the death of one costs the calls it had in flight, no more."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa
from compose import Compose
from conftest import BURST, MANY, RPM

from airflow_llm_provider.ledger.schema import OPEN, SETTLED, call
from airflow_llm_provider.testing.invoice import InvoiceLine
from airflow_llm_provider.testing.processes import wait_until
from tests.support.books import balance

TIMEOUT_S = 300.0
pytestmark = pytest.mark.system


def test_single_calls_go_to_both_workers(cluster: Compose) -> None:
    run = cluster.trigger("one_call")
    assert cluster.wait("one_call", run, TIMEOUT_S) == "success"
    assert min(tasks_done(cluster)) > 0
    assert_books(cluster)


def test_both_workers_keep_one_limit_together(cluster: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    steer(cluster, limits={"rpm": RPM, "burst": BURST})
    before = counted(cluster)
    run = cluster.trigger("paced")
    assert cluster.wait("paced", run, TIMEOUT_S) == "success"
    steer(cluster, limits={})
    after = counted(cluster)
    paid, refused = (after["paid"] - before["paid"], after["seen"] - before["seen"] - MANY // 2)
    with capsys.disabled():
        print("\n" + json.dumps({"name": "one limit", "paid": paid, "refused": refused}))
    assert paid == MANY // 2
    assert refused <= 0.01 * paid
    assert_books(cluster)


def test_a_worker_is_killed_and_the_other_finishes_its_documents(
    cluster: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    steer(cluster, latency_s=1.0)
    before = len(invoice(cluster))
    started = time.monotonic()
    run = cluster.trigger("shards")
    assert wait_until(lambda: len(attempts(cluster, SETTLED)) >= MANY // 4, TIMEOUT_S)
    cluster.kill("worker-2")
    # What the dead worker had in flight is among what the ledger now holds as in flight.
    in_flight = len(attempts(cluster, OPEN))
    assert cluster.wait("shards", run, TIMEOUT_S) == "success"
    seconds = time.monotonic() - started

    tries = Counter(t["try_number"] for t in cluster.task_instances("shards", run) if t["task_id"] == "read")
    assert len(tries) > 1, f"the killed worker had nothing to do: {tries}"
    assert sorted(row["document_id"] for row in rows(cluster)) == [f"{n:04}.txt" for n in range(MANY)]
    assert [row for row in rows(cluster) if row["document_id"][:4] not in row["data"]] == []
    extra = len(invoice(cluster)) - before - MANY
    with capsys.disabled():
        figures = {"name": "two workers", "documents": MANY, "tries": dict(tries), "paid_again": extra}
        print("\n" + json.dumps(figures | {"in_flight_at_the_kill": in_flight, "seconds": round(seconds, 1)}))
    assert 0 <= extra <= in_flight
    assert_books(cluster)


def steer(cluster: Compose, **settings: Any) -> None:
    httpx2.post(f"{cluster.stand_in_url}/stand-in/settings", json=settings).raise_for_status()


def counted(cluster: Compose) -> dict[str, int]:
    return dict(httpx2.get(f"{cluster.stand_in_url}/stand-in/invoice").json())


def tasks_done(cluster: Compose) -> list[int]:
    """Return how many tasks each worker has ended."""
    return [
        (cluster.folder / f"{worker}.log").read_text().count(" succeeded in ") for worker in cluster.workers
    ]


def rows(cluster: Compose) -> list[dict[str, Any]]:
    files = sorted((cluster.folder / "documents").glob("rows.part-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def attempts(cluster: Compose, state: str) -> list[Any]:
    engine = sa.create_engine(cluster.ledger_url, poolclass=sa.NullPool)
    if not sa.inspect(engine).has_table(call.name):
        return []
    with engine.connect() as connection:
        return list(
            connection.execute(sa.select(call.c.id).where(call.c.state == state, call.c.dag_id == "shards"))
        )


def invoice(cluster: Compose) -> list[InvoiceLine]:
    answer = httpx2.get(f"{cluster.stand_in_url}/stand-in/invoice", params={"lines": 1}).json()
    names = {field.name for field in dataclasses.fields(InvoiceLine)}
    return [InvoiceLine(**{k: v for k, v in line.items() if k in names}) for line in answer["lines"]]


def assert_books(cluster: Compose) -> None:
    """Assert that ledger and invoice agree, to the token and micro-USD."""
    print(balance(cluster.ledger_url, invoice(cluster)))
