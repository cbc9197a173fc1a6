"""The DAGs of test_branch_against_airflow.py, which copies this file into the DAGs folder, beside the shapes."""

from __future__ import annotations

from typing import Any

from airflow.providers.standard.operators.python import BranchPythonOperator
from airflow.sdk import DAG
from branch_shapes import SHAPES

from airflow_llm_provider.operators.branch import LLMBranchOperator


def by_claude(task_id: str, choice: Any) -> Any:
    how = {"multiple": isinstance(choice, list), "model": "fast"}
    return LLMBranchOperator(task_id=task_id, prompt=f"Choose exactly {choice!r}.", **how)


def by_python(task_id: str, choice: Any) -> Any:
    return BranchPythonOperator(task_id=task_id, python_callable=lambda: choice)


for shape in SHAPES:
    for choose in (by_claude, by_python):
        with DAG(f"{shape.__name__}_{choose.__name__}", schedule=None):
            shape(choose)
