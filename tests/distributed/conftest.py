"""Airflow on many machines, as processes of this one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose import Compose

MANY = 400  # documents
RPM, BURST = 600, 20  # what the account allows where it is asked to
DAG = """
from datetime import timedelta
from airflow.sdk import DAG, task
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.options import Reading

with DAG("shards", schedule=None, default_args={"retries": 20, "retry_delay": timedelta(seconds=1)}):

    @task
    def shards():
        return [f"{inbox}/{number}" for number in range(8)]

    ClaudeDocumentsOperator.partial(
        task_id="read",
        prompt="Which number does this note have?",
        reading=Reading(strings="path"),
        output="{output}",
        model="fast",
        max_in_flight=4,
    ).expand(documents=shards())

with DAG("paced", schedule=None):
    ClaudeDocumentsOperator.partial(
        task_id="read",
        prompt="Which day does this note have?",
        reading=Reading(strings="path"),
        output="{output}.paced.jsonl",
        model="fast",
        claude_conn_id="paced",
    ).expand(documents=[f"{inbox}/{number}" for number in range(4)])

with DAG("one_call", schedule=None):
    from airflow_llm_provider.operators.claude import ClaudeOperator

    ClaudeOperator.partial(task_id="ask", model="fast").expand(prompt=[f"How many are {n} and 1?" for n in range(16)])
"""


@pytest.fixture(scope="session", autouse=True)
def redis() -> None:
    """Install Redis where it is missing and we may."""
    if shutil.which("redis-server"):
        return
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    for command in (["apt-get", "update", "-q"], ["apt-get", "install", "-y", "-q", "redis-server"]):
        subprocess.run(command, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, check=True)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Every service of docker-compose.yaml, over documents in eight shards."""
    folder: Path = tmp_path_factory.mktemp("cluster")
    dags, documents = folder / "dags", folder / "documents"
    dags.mkdir()
    for number in range(MANY):
        shard = documents / "inbox" / str(number % 8)
        shard.mkdir(parents=True, exist_ok=True)
        (shard / f"{number:04}.txt").write_text(f"Note {number:04} says that {number} is due. " * 20)
    text = DAG.replace("{inbox}", str(documents / "inbox")).replace("{output}", str(documents / "rows.jsonl"))
    (dags / "dag.py").write_text(text)
    # Shorter than in the file, so that the loss of a worker is noticed within the test's patience.
    more = {
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "12",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "180",
        "AIRFLOW__CELERY__WORKER_CONCURRENCY": "4",
        "AIRFLOW_CONN_PACED": json.dumps(
            {
                "conn_type": "claude",
                "password": "sk-offline",
                "host": "http://stand-in:8765",
                "extra": {"rpm": RPM, "burst_s": BURST / RPM * 60},
            }
        ),
        "AIRFLOW__LLM__LEASE_S": "8",
        "AIRFLOW__API__WORKERS": "1",
    }
    with Compose(folder, dags=dags, more=more) as running:
        yield running
