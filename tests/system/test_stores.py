"""Object storage in tasks of a real Airflow, whose workers and triggerer fetch connections from their supervisor."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from airflow_llm_provider.testing.standin import StandIn
from tests.support.airflow import AirflowUnderTest
from tests.support.s3 import SECRET, s3_server

pytestmark = pytest.mark.system


def test_documents_and_answers_in_s3_work_in_a_worker_and_in_the_triggerer(
    tmp_path: Path, claude_server: StandIn
) -> None:
    (tmp_path / "dags").mkdir()
    shutil.copy(Path(__file__).with_name("stores_dag.py"), tmp_path / "dags")
    with s3_server() as s3:
        for bucket in ("letters", "results"):
            s3.client.create_bucket(Bucket=bucket)
        s3.put("letters", {f"inbox/{n}.txt": f"Letter {n}: we owe you ${n}.00." for n in range(20)})
        claude = {
            "conn_type": "claude",
            "password": "sk-test",
            "host": claude_server.url,
            "extra": {"ledger_url": f"sqlite:///{tmp_path / 'ledger.db'}"},
        }
        with AirflowUnderTest(
            tmp_path / "home",
            tmp_path / "dags",
            connections={"claude_default": claude, "store": s3.connection()},
        ) as airflow:
            run_id = airflow.trigger("stores")
            assert airflow.wait("stores", run_id, timeout_s=300) == "success", [
                (ti["task_id"], ti["state"]) for ti in airflow.task_instances("stores", run_id)
            ]
        assert s3.get("results", "rows.jsonl").count(b"\n") == 20
        assert s3.get("results", "listed/part-0.jsonl").count(b"\n") == 1
        assert s3.get("results", "answer.txt")
    logs = [path.read_text() for path in (tmp_path / "home").rglob("*.log")]
    assert logs
    assert not any(SECRET in log for log in logs)
