"""Approvals in every shape, each with one task downstream per trigger rule; loaded by a real Airflow."""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any

from airflow.sdk import DAG, TaskGroup, task, task_group

from airflow_llm_provider.options import Reviewers
from airflow_llm_provider.sensors.approval import ApprovalSensor

RULES = (
    *("all_success", "none_failed", "none_failed_min_one_success", "one_success", "none_skipped"),
    *("all_done", "one_done", "all_done_min_one_success", "all_failed", "one_failed", "all_skipped"),
)
LETTERS = ["reject", "approve"]


def downstream(decision: Any) -> None:
    for rule in RULES:

        @task(task_id=f"pay_{rule}", trigger_rule=rule)
        def pay(decision: Any = None) -> str:
            return "paid"

        pay(decision)


def sensor(content: Any, **arguments: Any) -> Any:
    return ApprovalSensor(task_id="approval", subject="Pay?", content=content, **arguments).output


def plain(**arguments: Any) -> None:
    downstream(sensor("reject", **arguments))


def group(**arguments: Any) -> None:
    with TaskGroup("refund"):
        downstream(sensor("reject", **arguments))


def mapped_sensor(**arguments: Any) -> None:
    asked = ApprovalSensor.partial(task_id="approval", subject="Pay?", **arguments).expand(content=LETTERS)
    for rule in RULES:

        @task(task_id=f"pay_{rule}", trigger_rule=rule)
        def pay(decision: Any = None) -> str:
            return "paid"

        pay.expand(decision=asked.output)


def mapped_group(**arguments: Any) -> None:
    @task_group
    def refund(letter: str) -> None:
        downstream(sensor(letter, **arguments))

    refund.expand(letter=LETTERS)


def nested(**arguments: Any) -> None:
    with TaskGroup("outer"):

        @task_group
        def refund(letter: str) -> None:
            asked = sensor(letter, **arguments)
            with TaskGroup("inner"):
                downstream(asked)

        refund.expand(letter=LETTERS)


SHAPES = (plain, group, mapped_sensor, mapped_group, nested)
TIMEOUTS = {"answer": None, "timeout": dt.timedelta(seconds=20)}

for shape, on_reject, (name, timeout) in itertools.product(SHAPES, ("skip", "fail"), TIMEOUTS.items()):
    with DAG(f"{shape.__name__}_{on_reject}_{name}", schedule=None, max_active_tasks=64):
        shape(on_reject=on_reject, reviewers=Reviewers(timeout=timeout))
