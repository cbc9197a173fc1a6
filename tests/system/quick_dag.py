"""Approvals that are answered within seconds, as one mapped task and as many plain ones; loaded by a real Airflow."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_llm_provider.sensors.approval import ApprovalSensor

COUNT = 25

with DAG("quick_mapped", schedule=None, max_active_tasks=64):
    ApprovalSensor.partial(task_id="approval", subject="Send it?").expand(
        content=[f"Letter {number}" for number in range(COUNT)]
    )

with DAG("quick_plain", schedule=None, max_active_tasks=64):
    for number in range(COUNT):
        ApprovalSensor(task_id=f"approval_{number}", subject="Send it?", content=f"Letter {number}")
