"""What all decorators share: a function whose result becomes an argument of an operator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.decorator import (
    DecoratedOperator,
    TaskDecorator,
    determine_kwargs,
    task_decorator_factory,
)
from airflow.sdk.definitions.context import context_merge
from airflow.sdk.definitions.xcom_arg import XComArg

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context


class Unshown:
    """An argument that Airflow neither renders nor shows under Rendered Templates: it may hold documents."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        kind = type(self.value).__name__
        return f"<{kind} of {len(self.value)}>" if hasattr(type(self.value), "__len__") else f"<{kind}>"


class FunctionTask(DecoratedOperator):
    """Call the function, take what it returns as the argument `returns`, and do as the operator does.

    Stands before an operator among the bases. What the function returns is data, and never rendered: the
    argument is no template field. Of the function's own arguments, strings typed by the DAG author are
    templates, as in `@task`; what is in lists and dicts, and what other tasks returned, is data too.
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
            if value is None or isinstance(value, (bool, int, float, Unshown)):
                return value
            return Unshown(_resolved(value, context))

        if content is self.op_kwargs:
            return {name: argument(value) for name, value in content.items()}
        if content is self.op_args:
            return [argument(value) for value in content]
        return super().render_template(content, context, jinja_env, seen_oids)

    def called(self, context: Context) -> Any:
        """Return what the function returns."""
        args = [_shown(value) for value in self.op_args]
        context_merge(context, {name: _shown(value) for name, value in self.op_kwargs.items()})
        return self.python_callable(*args, **determine_kwargs(self.python_callable, args, context))


def decorator(
    operator: Any, python_callable: Callable[..., Any] | None, arguments: Mapping[str, Any]
) -> TaskDecorator:
    """Return what makes a task of a function, with the operator's arguments checked when the DAG is parsed."""
    operator.require_sound(arguments)
    return task_decorator_factory(
        python_callable=python_callable, decorated_operator_class=operator, **arguments
    )


def _resolved(value: Any, context: Context) -> Any:
    """Put in the place of each other task's output what that task returned."""
    if isinstance(value, XComArg):
        return value.resolve(context)
    if type(value) in (list, tuple):
        return type(value)(_resolved(item, context) for item in value)
    if type(value) is dict:
        return {key: _resolved(item, context) for key, item in value.items()}
    return value


def _shown(value: Any) -> Any:
    return value.value if isinstance(value, Unshown) else value
