"""One real Airflow for the tests of this folder, and the sum of what they did to it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from jobs import CASES, HEARTBEAT_TIMEOUT_S, KILLS, LEASE_S, SEED, SEEDS, Chaos, Job

from airflow_llm_provider.testing.standin import StandIn
from tests.support.airflow import AirflowUnderTest
from tests.support.postgres import LocalPostgres

pytest.register_assert_rewrite("workload")  # it is full of assertions, and no test module

_results: list[dict[str, Any]] = []


@pytest.fixture(scope="session")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    folder = tmp_path_factory.mktemp("chaos")
    (folder / "dags").mkdir()
    names = [f"{kind}_{seed}" for kind, seed in CASES]
    stops = ("failed", "cleared")
    servers = {name: StandIn(latency_s=1.0) for name in names} | {
        name: StandIn(latency_s=3.0) for name in stops
    }
    with LocalPostgres() as postgres:
        jobs = {}
        for name, server in servers.items():
            server.__enter__()
            is_postgres = name.startswith("postgresql")
            url = postgres.create_database(name) if is_postgres else f"sqlite:///{folder}/{name}.db"
            sizes = (
                {"documents": 200, "in_flight": 64} if name in stops else {"documents": 500, "in_flight": 8}
            )
            jobs[name] = Job(name=name, folder=folder, ledger_url=url, server=server, **sizes)
            jobs[name].write(folder / "dags")
        config = {
            "AIRFLOW__LLM__LEASE_S": str(LEASE_S),
            # A task whose supervisor was killed is missed after seconds, not after five minutes.
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT_S),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "1",
        }
        connections = {name: job.connection() for name, job in jobs.items()}
        try:
            with AirflowUnderTest(
                folder / "home", folder / "dags", config=config, connections=connections
            ) as airflow:
                yield Chaos(airflow=airflow, jobs=jobs)
        finally:
            for server in servers.values():
                server.__exit__()


@pytest.fixture
def result() -> dict[str, Any]:
    """A record of this test, added up at the end of the session."""
    _results.append({})
    return _results[-1]


def pytest_report_header() -> str:
    return f"chaos: SEED={SEED} SEEDS={SEEDS} KILLS={KILLS} LEASE_S={LEASE_S:g}"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    runs = [result for result in _results if result]
    if runs:
        totals: Counter[str] = Counter()
        for run in runs:
            totals.update(run)
        told = {"name": "chaos", "runs": len(runs), **totals, "seed": SEED, "seeds": SEEDS}
        terminalreporter.write_line(json.dumps(told | {"seconds": round(totals["seconds"], 1)}))
