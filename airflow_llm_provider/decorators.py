"""The decorators: a function gives one argument, and an operator does the rest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.decorator import (
    DecoratedOperator,
    TaskDecorator,
    determine_kwargs,
    task_decorator_factory,
)
from airflow.sdk.definitions.context import context_merge
from airflow.sdk.definitions.xcom_arg import XComArg

from airflow_llm_provider.operators.branch import LLMBranchOperator
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.operators.repair import ValidationRepairOperator
from airflow_llm_provider.triggers.deferral import NeedsWorker, encode_arguments, require_plain_end

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context

    from airflow_llm_provider.documents.estimate import Estimate


class Hidden:
    """An argument that Airflow neither renders nor shows under Rendered Templates: it may hold documents."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        kind = type(self.value).__name__
        return f"<{kind} of {len(self.value)}>" if hasattr(type(self.value), "__len__") else f"<{kind}>"


def _with_function(operator: type[Any], returns: str) -> tuple[str, ...]:
    """Return the template fields of a decorated task: the function's arguments, and the operator's but one."""
    others = (field for field in operator.template_fields if field != returns)
    return (*DecoratedOperator.template_fields, *others)


class FunctionTask(DecoratedOperator):
    """Call the function, take its result as the argument `returns`, and do as the operator does.

    It stands before an operator among the bases. What the function returns is data and is never rendered: the argument
    is not a template field. Of the function's own arguments, strings typed by the DAG author are templates, as in
    `@task`; what is in lists and dicts, and what other tasks returned, is data, too.
    """

    custom_operator_name: ClassVar[str]
    returns: ClassVar[str]

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.returns in kwargs:
            raise TypeError(f"{self.custom_operator_name}: {self.returns}= is what the function returns.")
        # The operator requires this argument. What it is becomes known when the function is called, in the task.
        kwargs[self.returns] = None
        super().__init__(python_callable=python_callable, op_args=op_args, op_kwargs=op_kwargs, **kwargs)

    def execute(self, context: Context) -> Any:
        """Call the function, then the operator."""
        setattr(self, self.returns, self.called(context))
        return super().execute(context)

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render as Airflow does, but for the function's arguments."""

        def argument(value: Any) -> Any:
            # What came through `.expand()` from another task is among `seen_oids`.
            if isinstance(value, str) and id(value) not in (seen_oids or ()):
                return super(FunctionTask, self).render_template(value, context, jinja_env, seen_oids)
            if value is None or isinstance(value, (bool, int, float, Hidden)):
                return value
            return Hidden(_resolved(value, context))

        if content is self.op_kwargs:
            # By identity: only the function's arguments are data. The operator's own fields are rendered as Airflow
            # does it.
            return {name: argument(value) for name, value in content.items()}
        if content is self.op_args:
            return [argument(value) for value in content]
        return super().render_template(content, context, jinja_env, seen_oids)

    def called(self, context: Context) -> Any:
        """Return what the function returns."""
        args = [_revealed(value) for value in self.op_args]
        context_merge(context, {name: _revealed(value) for name, value in self.op_kwargs.items()})
        return self.python_callable(*args, **determine_kwargs(self.python_callable, args, context))


def _resolved(value: Any, context: Context) -> Any:
    """Put in the place of each other task's output what that task returned."""
    if isinstance(value, XComArg):
        return value.resolve(context)
    if type(value) in (list, tuple):
        return type(value)(_resolved(item, context) for item in value)
    if type(value) is dict:
        return {key: _resolved(item, context) for key, item in value.items()}
    return value


def _revealed(value: Any) -> Any:
    return value.value if isinstance(value, Hidden) else value


class _ClaudeTask(FunctionTask, ClaudeOperator):
    custom_operator_name = "@task.claude"
    returns = "prompt"
    runs_in_worker = True  # the function is Python; only the call itself may wait in the triggerer
    template_fields: Sequence[str] = _with_function(ClaudeOperator, "prompt")

    def execute(self, context: Context) -> Any:
        """Call the function; then ask here, or defer to the triggerer, where the task ends."""
        if not self.deferrable:
            return super().execute(context)
        self.prompt = self.called(context)
        try:
            require_plain_end(self)
            arguments = encode_arguments(
                {**self.arguments(), "inputs": dict(self.inputs), "messages": list(self.messages)}
            )
        except NeedsWorker as reason:
            self.log.warning("Runs in a worker although deferrable=True: %s.", reason)
            # Not `super().execute`, which would call the function a second time.
            return ClaudeOperator.execute(self, context)
        from airflow_llm_provider.triggers.claude import ClaudeTrigger

        is_one = context["ti"].map_index in (None, -1)
        is_mapped_over = is_one and next(self.iter_mapped_dependants(), None) is not None
        call = {
            "arguments": arguments,
            "push": self.do_xcom_push,
            "scope": dataclasses.asdict(self.hook.scope(context, self.options)),
            "is_mapped_over": is_mapped_over,
        }
        return self.defer(
            trigger=ClaudeTrigger(json.dumps(call)), method_name="resume", timeout=self.execution_timeout
        )

    def resume(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Continue where the trigger could not: what the function returned is no longer there."""
        if "needs_worker" in event:
            self.prompt = self.called(context)
        return super().resume(context, event)


class _ClaudeBranchTask(FunctionTask, LLMBranchOperator):
    custom_operator_name = "@task.claude_branch"
    returns = "prompt"
    template_fields: Sequence[str] = _with_function(LLMBranchOperator, "prompt")


class _ClaudeRepairTask(FunctionTask, ValidationRepairOperator):
    custom_operator_name = "@task.claude_repair"
    returns = "answer"
    answer_comes_later = True
    template_fields: Sequence[str] = _with_function(ValidationRepairOperator, "answer")


class _ClaudeDocumentsTask(FunctionTask, ClaudeDocumentsOperator):
    custom_operator_name = "@task.claude_documents"
    returns = "documents"
    template_fields: Sequence[str] = _with_function(ClaudeDocumentsOperator, "documents")

    def estimate(self, context: Context, *, paid_for: set[str] | None = None) -> Estimate:
        """Call the function, and return what `execute` would do and take, sending nothing."""
        self.documents = self.called(context)
        return super().estimate(context, paid_for=paid_for)


def claude_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that returns a prompt; takes the arguments of ClaudeOperator."""
    return _decorator(_ClaudeTask, python_callable, kwargs)


def claude_branch_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that returns what to decide; takes the arguments of LLMBranchOperator."""
    return _decorator(_ClaudeBranchTask, python_callable, kwargs)


def claude_repair_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that returns an answer; takes the arguments of ValidationRepairOperator."""
    return _decorator(_ClaudeRepairTask, python_callable, kwargs)


def claude_documents_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make a task of a function that returns documents; takes the arguments of ClaudeDocumentsOperator."""
    return _decorator(_ClaudeDocumentsTask, python_callable, kwargs)


def _decorator(
    operator: Any, python_callable: Callable[..., Any] | None, arguments: Mapping[str, Any]
) -> TaskDecorator:
    """Return what makes a task of a function, with the operator's arguments checked when the DAG is parsed."""
    # Airflow makes the operator only when the function is called in the DAG file. A decorator with wrong arguments that
    # is never called would pass.
    operator.require_arguments(arguments)
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=operator, **arguments
    )
