"""@task.claude_branch: the function returns the prompt, the operator chooses the branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator

from airflow_llm_provider.decorators.function import FunctionTask, decorator
from airflow_llm_provider.operators.branch import LLMBranchOperator


class _ClaudeBranchTask(FunctionTask, LLMBranchOperator):
    custom_operator_name = "@task.claude_branch"
    returns = "prompt"
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(field for field in LLMBranchOperator.template_fields if field != "prompt"),
    )


def claude_branch_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that returns what to decide; takes the arguments of LLMBranchOperator."""
    return decorator(_ClaudeBranchTask, python_callable, kwargs)
