"""What the operators share: retries, the hook, templates in value objects, and budgets that a person may raise."""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseOperator
from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy
from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider import _airflow
from airflow_llm_provider.argument_checks import message_at_run_time, refuse_sampling
from airflow_llm_provider.errors import BudgetWaits, RetryableError
from airflow_llm_provider.hooks.arguments import require_arguments, require_output_type
from airflow_llm_provider.hooks.claude import BudgetNeedsPerson, ClaudeHook
from airflow_llm_provider.options import VALUE_OBJECTS, Budget, Options, RequestFields

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial

_SPREAD = 0.1  # of the delay, so that tasks with the same Retry-After do not all start together


class ClaudeRetryPolicy(RetryPolicy):
    """Delay Airflow's next attempt as long as the API's Retry-After says, or until a budget's next day or month.

    Other errors wait as the task says. Errors that no retry can help do not get here: they are AirflowFailException.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Choose the delay before the next attempt."""
        del try_number, max_tries, context  # Airflow counts the attempts
        # The documents operator raises an AirflowException, and the error that states the delay is its cause.
        error: BaseException | None = exception
        while error is not None:
            if isinstance(error, RetryableError) and error.retry_after_s:
                delay_s = error.retry_after_s * (1 + random.random() * _SPREAD)
                who = "its budget" if isinstance(error, BudgetWaits) else "the API"
                reason = f"{error.kind}: {who} asked for {error.retry_after_s:g} s"
                return RetryDecision.retry(delay=dt.timedelta(seconds=delay_s), reason=reason)
            error = error.__cause__
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Return nothing: the policy has no settings."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> ClaudeRetryPolicy:
        """Return the policy."""
        del data
        return cls()


SHARED_TEMPLATE_FIELDS = (
    *("prompt", "system", "model", "output_path", "allowed_roots", "version"),
    *("route", "on_invalid", "budget", "claude_conn_id"),
)
ATTRIBUTES = {
    "output": "output_path",  # BaseOperator.output is the XCom
    "roots": "allowed_roots",  # BaseOperator.roots are the first tasks of the DAG
    "dry_run": "is_dry_run",  # BaseOperator.dry_run is a method
}
"""The attributes of arguments whose names BaseOperator uses for something else."""


def require_enforceable(made: OperatorPartial, given: Mapping[str, Any]) -> None:
    """Raise ValueError for a partial whose output type the API would refuse; `request` may be among default_args."""
    scopes = [scope for scope in (made.kwargs.get("dag"), made.kwargs.get("task_group")) if scope]
    given = {**{name: each for scope in scopes for name, each in (scope.default_args or {}).items()}, **given}
    try:
        require_output_type(given.get("output_type"), RequestFields.of(given.get("request")))
    except ValueError:
        _airflow.drop(made)
        raise


class ClaudeTask(BaseOperator):
    """A task that asks Claude through a connection; the base of the package's operators."""

    template_fields: Sequence[str] = SHARED_TEMPLATE_FIELDS
    template_fields_renderers: ClassVar[dict[str, str]] = {"prompt": "md", "system": "md"}
    ui_color = "#f0e4d8"
    claude_conn_id: str

    def __init__(self, **kwargs: Any) -> None:
        refuse_sampling(kwargs)
        # An argument that is set here would win over the author's own policy in `default_args`.
        if "retry_policy" not in (kwargs.get("default_args") or {}):
            kwargs.setdefault("retry_policy", ClaudeRetryPolicy())
        super().__init__(**kwargs)

    @classmethod
    def require_arguments(cls, arguments: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError, when the DAG is parsed, for arguments that are not valid."""
        names = {attribute: name for name, attribute in ATTRIBUTES.items()}
        require_arguments(arguments, templated={names.get(field, field) for field in cls.template_fields})

    @classmethod
    def may_ask(cls, arguments: Mapping[str, Any]) -> bool:
        """Tell whether a person may be asked, as far as the arguments say when the DAG is parsed."""
        budget = arguments.get("budget")
        return isinstance(budget, Budget) and (
            budget.on_exceeded == "ask" or budget.confirm_above_usd is not None
        )

    @cached_property
    def hook(self) -> ClaudeHook:
        """The hook of the connection."""
        return ClaudeHook(self.claude_conn_id)

    @property
    def options(self) -> Options:
        """How Claude is asked."""
        raise NotImplementedError

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render as Airflow does, and the templates in value objects, too; they are frozen, so a new one is made."""
        if type(content) not in _VALUE_CLASSES:
            return super().render_template(content, context, jinja_env, seen_oids)
        names = getattr(content, "template_fields", ())
        rendered = {
            name: super(ClaudeTask, self).render_template(
                getattr(content, name), context, jinja_env, seen_oids
            )
            for name in names
        }
        # A value object checks itself when it is made, so this checks what the templates gave.
        with self.failing_for_good():
            return dataclasses.replace(content, **rendered)

    @contextmanager
    def failing_for_good(self) -> Iterator[None]:
        """Raise AirflowFailException for an argument that a template or another task made invalid."""
        try:
            yield
        except (TypeError, ValueError) as error:
            raise AirflowFailException(
                f"{self.task_id}: {message_at_run_time(error)} Nothing was sent."
            ) from None

    def ask_for_budget(self, needed: BudgetNeedsPerson, context: Context) -> BaseException:
        """Park the task until a person has raised the budget; return the error where nobody can be asked."""
        from airflow_llm_provider.approvals import spending

        # It raises where a person is asked, so what follows runs only where no person can be asked.
        why = spending.ask_to_raise(
            needed.refused,
            reviewers=self.options.reviewers,
            hook=self.hook,
            context=context,
            resume="resume_after_budget",
        )
        return AirflowFailException(f"{needed} It is not raised: {why}")

    def resume_after_budget(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Continue with a person's decision on a budget."""
        from airflow_llm_provider.approvals import spending

        spending.keep_raise(event, reviewers=self.options.reviewers, hook=self.hook, context=context)
        # From the start again: what was answered before is in the ledger and costs nothing.
        return self.execute(context)

    def on_kill(self) -> None:
        """Drop the calls in flight; what is settled stays in the ledger."""
        # Only cancels and does not wait: Airflow sends SIGKILL five seconds after SIGTERM.
        self.hook.cancel()


_VALUE_CLASSES: Collection[type] = frozenset(VALUE_OBJECTS.values())
