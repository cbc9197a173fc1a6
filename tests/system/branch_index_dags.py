"""Branches in every shape, each side with one task per trigger rule; loaded by a real Airflow."""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, TaskGroup, task, task_group

from airflow_llm_provider.operators.branch import LLMBranchOperator

RULES = (
    *("all_success", "none_failed", "none_failed_min_one_success", "one_success", "none_skipped"),
    *("all_done", "one_done", "all_done_min_one_success", "all_failed", "one_failed", "all_skipped"),
)
SIDES = ["left", "right"]
NAMES = [(f"{side}_{rule}", rule) for side in SIDES for rule in RULES]
ASKED = {"task_id": "route", "prompt": "Which side?", "model": "fast", "multiple": True, "retries": 0}


def branch(side: Any) -> None:
    route = LLMBranchOperator(inputs={"side": side}, **ASKED)
    route >> [EmptyOperator(task_id=name, trigger_rule=rule) for name, rule in NAMES]


def plain() -> None:
    branch("left")


def group() -> None:
    with TaskGroup("refund"):
        branch("left")


def mapped_branch() -> None:
    route = LLMBranchOperator.partial(**ASKED).expand(inputs=[{"side": side} for side in SIDES])
    for name, rule in NAMES:

        @task(task_id=name, trigger_rule=rule)
        def pay(taken: Any = None) -> str:
            return "paid"

        pay.expand(taken=route.output)


def mapped_group() -> None:
    @task_group
    def refund(side: str) -> None:
        branch(side)

    refund.expand(side=SIDES)


def nested() -> None:
    with TaskGroup("outer"):

        @task_group
        def refund(side: str) -> None:
            with TaskGroup("inner"):
                branch(side)

        refund.expand(side=SIDES)


for shape in (plain, group, mapped_branch, mapped_group, nested):
    with DAG(shape.__name__, schedule=None, max_active_tasks=64):
        shape()
