"""An answer within seconds after a question was shown is not lost, and nobody is asked twice."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import sqlalchemy as sa

from airflow_llm_provider.ledger.schema import review
from tests.support.airflow import AirflowUnderTest

pytestmark = pytest.mark.system

COUNT = 25  # as in quick_dag.py; so many of each kind are asked
LATEST_S = 8.0
PRELOAD = """
import sys
if "scheduler" in sys.argv:
    import airflow_llm_provider.approvals.review, airflow_llm_provider.sensors.approval
"""


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowUnderTest]:
    folder = tmp_path_factory.mktemp("quick")
    (folder / "dags").mkdir()
    shutil.copy(Path(__file__).with_name("quick_dag.py"), folder / "dags" / "quick_dag.py")
    (folder / "home" / "config").mkdir(parents=True)
    (folder / "home" / "config" / "airflow_local_settings.py").write_text(PRELOAD)
    connection = {"conn_type": "claude", "password": "sk-unused", "host": "http://127.0.0.1:9"}
    with AirflowUnderTest(
        folder / "home", folder / "dags", parallelism=4, connections={"claude_default": connection}
    ) as airflow:
        yield airflow


def looked_up(airflow: AirflowUnderTest, dag_id: str, run_id: str) -> list[dict[str, Any]]:
    """Return the task instances; none when the API server is too busy to say."""
    with suppress(httpx2.TransportError):
        return airflow.task_instances(dag_id, run_id)
    return []


def answer(airflow: AirflowUnderTest, dag_id: str, run_id: str, task_id: str, map_index: int) -> bool:
    """Answer once; return whether the API server says that it has the answer."""
    try:
        airflow.answer(dag_id, run_id, task_id, "Approve", map_index, feedback="Once.")
    except httpx2.TransportError:
        return False
    except httpx2.HTTPStatusError as error:
        return error.response.status_code == httpx2.codes.CONFLICT  # an answer before, whose reply was late
    return True


def test_fifty_answers_within_eight_seconds_are_all_taken_and_nobody_is_asked_twice(
    airflow: AirflowUnderTest,
) -> None:
    runs = {dag_id: airflow.trigger(dag_id) for dag_id in ("quick_mapped", "quick_plain")}
    due: dict[tuple[str, str, int], float] = {}
    answered: set[tuple[str, str, int]] = set()
    deadline = time.monotonic() + 900
    while len(answered) < 2 * COUNT:
        assert time.monotonic() < deadline, (len(due), len(answered))
        for dag_id, run_id in runs.items():
            for ti in looked_up(airflow, dag_id, run_id):
                key = (dag_id, ti["task_id"], ti["map_index"])
                if ti["state"] == "awaiting_input" and key not in due:
                    wait_s = len([known for known in due if known[0] == dag_id]) * LATEST_S / (COUNT - 1)
                    due[key] = time.monotonic() + wait_s
        for key in [key for key, at in due.items() if at <= time.monotonic() and key not in answered]:
            dag_id, task_id, map_index = key
            if answer(airflow, dag_id, runs[dag_id], task_id, map_index):
                answered.add(key)
        time.sleep(0.3)

    states = {dag_id: airflow.wait(dag_id, run_id, timeout_s=600) for dag_id, run_id in runs.items()}
    tis = [ti for dag_id, run_id in runs.items() for ti in airflow.task_instances(dag_id, run_id)]
    retried = [ti["try_number"] for ti in tis if ti["try_number"] > 1]
    print(
        f"\n{len(answered)} answers 0 to {LATEST_S:g} s after parking: Airflow failed {len(retried)}, tries {retried}"
    )
    assert states == {"quick_mapped": "success", "quick_plain": "success"}
    assert {ti["state"] for ti in tis} == {"success"}
    engine = sa.create_engine(f"sqlite:///{airflow.home}/llm_ledger.db", poolclass=sa.NullPool)
    with engine.connect() as connection:
        kept = list(connection.execute(sa.select(review.c.status, review.c.feedback)))
    assert [tuple(row) for row in kept] == [("approved", "Once.")] * 2 * COUNT
