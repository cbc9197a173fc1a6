"""While people think, nothing is held: no worker, no pool slot, no trigger."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from airflow_llm_provider.ledger.schema import review
from airflow_llm_provider.testing.processes import wait_until
from tests.support.airflow import AirflowUnderTest

pytestmark = pytest.mark.system

COUNT = 200
# A worker's start in a fraction of the time: what a task imports is there when it is forked.
PRELOAD = """
import sys
if "scheduler" in sys.argv:
    import airflow_llm_provider.engine.engine, airflow_llm_provider.approvals.review, airflow_llm_provider.ledger.ledger
"""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowUnderTest]:
    folder = tmp_path_factory.mktemp("parked")
    (folder / "dags").mkdir()
    shutil.copy(Path(__file__).with_name("parked_dag.py"), folder / "dags" / "parked.py")
    (folder / "home" / "config").mkdir(parents=True)
    (folder / "home" / "config" / "airflow_local_settings.py").write_text(PRELOAD)
    with AirflowUnderTest(
        folder / "home",
        folder / "dags",
        parallelism=4,
        components=("api-server", "scheduler", "dag-processor"),  # there is no triggerer that could help
        connections={
            "claude_default": {"conn_type": "claude", "password": "sk-unused", "host": "http://127.0.0.1:9"}
        },
    ) as airflow:
        yield airflow


def states(airflow: AirflowUnderTest, run: str) -> Counter[str]:
    tis = airflow.task_instances("parked", run)
    return Counter(str(ti["state"]) for ti in tis if ti["task_id"] == "approval")


def count(url: str, query: str) -> int:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return int(connection.scalar(sa.text(query)) or 0)


def test_two_hundred_open_approvals_hold_no_worker_slot_and_no_trigger(airflow: AirflowUnderTest) -> None:
    run = airflow.trigger("parked")
    assert wait_until(lambda: states(airflow, run) == {"awaiting_input": COUNT}, 480), states(airflow, run)

    assert wait_until(lambda: not airflow.task_pids(), 10)
    pool = airflow.get("pools/default_pool")
    held = {name: pool[f"{name}_slots"] for name in ("running", "queued", "occupied", "deferred")}
    database, ledger = f"sqlite:///{airflow.home}/airflow.db", f"sqlite:///{airflow.home}/llm_ledger.db"
    triggers = count(database, "SELECT count(*) FROM trigger")
    print(
        f"\n{COUNT} approvals open: worker processes {len(airflow.task_pids())}, slots {held}, triggers {triggers}"
    )
    assert held == dict.fromkeys(held, 0)
    assert triggers == 0
    assert airflow.wait("beside", airflow.trigger("beside"), timeout_s=60) == "success"  # there is room
    assert count(ledger, f"SELECT count(*) FROM {review.name} WHERE status = 'pending'") == COUNT

    # Each question is its own, and an answer resumes the one it was given to.
    shown = {index: airflow.question("parked", run, "approval", index) for index in (0, 17, 199)}
    for index, question in shown.items():
        assert question["subject"] == f"Send letter {index}?"
        assert f"Letter {index}: you owe us ${index}.00." in question["body"]
    airflow.answer("parked", run, "approval", "Approve", 17, feedback="Yes.")
    assert wait_until(lambda: states(airflow, run) == {"awaiting_input": COUNT - 1, "success": 1}, 60)
    decision = airflow.xcom("parked", run, "approval", map_index=17)
    assert decision["content"] == airflow.xcom("parked", run, "approval", "content", 17)
    assert (decision["content"], decision["feedback"]) == ("Letter 17: you owe us $17.00.", "Yes.")
