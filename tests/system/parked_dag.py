"""The DAGs of test_parked.py; the test copies this file into the DAGs folder."""

from __future__ import annotations

from airflow.sdk import DAG, task

from airflow_llm_provider.sensors.approval import ApprovalSensor

COUNT = 200

with DAG("parked", schedule=None):

    @task
    def letters():
        return [f"Letter {number}: you owe us ${number}.00." for number in range(COUNT)]

    ApprovalSensor.partial(
        task_id="approval", subject="Send letter {{ ti.map_index }}?", reviewers="ada"
    ).expand(content=letters())

with DAG("beside", schedule=None):

    @task
    def work():
        return "done"

    work()
