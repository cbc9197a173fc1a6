"""What all decorators share: a function whose result becomes an argument of an operator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.decorator import DecoratedOperator, determine_kwargs
from airflow.sdk.definitions.context import context_merge

if TYPE_CHECKING:
    from airflow.sdk import Context


class FunctionTask(DecoratedOperator):
    """Call the function, take what it returns as the argument `returns`, and do as the operator does.

    Stands before an operator among the bases. What the function returns is data, and never rendered: the
    argument is no template field.
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
        setattr(self, self.returns, self._called(context))
        return super().execute(context)

    def _called(self, context: Context) -> Any:
        context_merge(context, self.op_kwargs)
        kwargs = determine_kwargs(self.python_callable, self.op_args, context)
        return self.python_callable(*self.op_args, **kwargs)
