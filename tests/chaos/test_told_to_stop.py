"""A task that is told to stop in the UI drops its calls in flight, says so in the ledger, and leaves no orphan."""

from __future__ import annotations

import time
from typing import Any

import pytest
import sqlalchemy as sa
from jobs import Chaos, Job, runs

from airflow_llm_provider.ledger.schema import OPEN, UNPROVEN, call
from airflow_llm_provider.testing.processes import wait_until

STOP_S = 10.0  # the supervisor hears of it at its next heartbeat; five seconds after TERM it would KILL


@pytest.mark.parametrize("how", ["failed", "cleared"])
def test_a_task_told_to_stop_drops_its_calls_and_pays_only_those_again(chaos: Chaos, how: str) -> None:
    airflow, job = chaos.airflow, chaos.jobs[how]
    run = airflow.trigger(job.name)
    assert wait_until(lambda: job.settled() > 0 and job.server.in_flight == job.in_flight, 60.0)
    (task,) = airflow.task_pids()

    told = time.monotonic()
    if how == "failed":
        airflow.mark(job.name, run, "read", "failed")
    else:
        airflow.clear(job.name, run, ["read"])
    assert wait_until(lambda: not runs(task.runner), STOP_S)
    print(f"{how}: ended {time.monotonic() - told:.1f} s after it was told")
    dropped = attempts(job, UNPROVEN)
    assert 0 < len(dropped) <= job.in_flight
    assert {row.error_class for row in dropped} == {"NetworkError"}
    assert all("Cancelled" in row.error for row in dropped)
    assert not [row for row in attempts(job, OPEN) if row.try_number == 1]

    if how == "failed":
        assert airflow.wait(job.name, run, 30.0) == "failed"
        seen = job.server.seen
        time.sleep(job.server.latency_s)
        assert job.server.seen == seen  # nobody goes on asking
        assert airflow.task_pids() == []
        airflow.clear(job.name, run)
    assert airflow.wait(job.name, run, 120.0) == "success"
    assert wait_until(lambda: job.server.in_flight == 0, 10.0)

    books = job.require_complete()
    assert books.unproven == len(dropped)
    assert job.server.invoice.paid - job.documents <= len(dropped)


def attempts(job: Job, state: str) -> list[Any]:
    with job.engine.connect() as connection:
        return list(connection.execute(sa.select(call).where(call.c.state == state)))
