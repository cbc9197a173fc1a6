"""@task.claude_repair: the function returns an answer, the operator checks it and has it put right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator

from airflow_llm_provider.decorators.function import FunctionTask, decorator
from airflow_llm_provider.operators.repair import ValidationRepairOperator


class _RepairTask(FunctionTask, ValidationRepairOperator):
    custom_operator_name = "@task.claude_repair"
    returns = "answer"
    answer_comes_later = True
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *ValidationRepairOperator.template_fields,
    )


def claude_repair_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that returns an answer; takes the arguments of ValidationRepairOperator."""
    return decorator(_RepairTask, python_callable, kwargs)
