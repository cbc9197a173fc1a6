"""@task.claude_documents: the function says which documents, the operator does the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk.bases.decorator import (
    DecoratedOperator,
    TaskDecorator,
    determine_kwargs,
    task_decorator_factory,
)
from airflow.sdk.definitions.context import context_merge

from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class _ClaudeDocumentsTask(DecoratedOperator, ClaudeDocumentsOperator):
    """What the function returns is the operator's `documents`; it is data, and never rendered."""

    custom_operator_name = "@task.claude_documents"
    # `documents` is not among them: it is what the function returns.
    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *(field for field in ClaudeDocumentsOperator.template_fields if field != "documents"),
    )

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, documents=None, **kwargs
        )

    def execute(self, context: Context) -> dict[str, Any]:
        """Call the function and ask about what it returns."""
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        self.documents = self.python_callable(*self.op_args, **kwargs)
        manifest: dict[str, Any] = super().execute(context)
        return manifest


def claude_documents_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that returns documents; takes the arguments of ClaudeDocumentsOperator."""
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=_ClaudeDocumentsTask, **kwargs
    )
