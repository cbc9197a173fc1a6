"""@task.claude: the function returns the prompt, the operator asks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator, task_decorator_factory

from airflow_llm_provider.decorators.function import FunctionTask
from airflow_llm_provider.operators.claude import ClaudeOperator


class _ClaudeTask(FunctionTask, ClaudeOperator):
    custom_operator_name = "@task.claude"
    returns = "prompt"
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(field for field in ClaudeOperator.template_fields if field != "prompt"),
    )


def claude_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that returns a prompt; takes the arguments of ClaudeOperator."""
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=_ClaudeTask, **kwargs
    )
