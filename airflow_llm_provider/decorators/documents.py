"""@task.claude_documents: the function says which documents, the operator does the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.decorator import DecoratedOperator, TaskDecorator

from airflow_llm_provider.decorators.function import FunctionTask, decorator
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.documents.estimate import Estimate


class _ClaudeDocumentsTask(FunctionTask, ClaudeDocumentsOperator):
    custom_operator_name = "@task.claude_documents"
    returns = "documents"
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(field for field in ClaudeDocumentsOperator.template_fields if field != "documents"),
    )

    def estimate(self, context: Context, *, paid_for: set[str] | None = None) -> Estimate:
        """Call the function, and return what `execute` would do and take, sending nothing."""
        self.documents = self.called(context)
        return super().estimate(context, paid_for=paid_for)


def claude_documents_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that returns documents; takes the arguments of ClaudeDocumentsOperator."""
    return decorator(_ClaudeDocumentsTask, python_callable, kwargs)
