"""The hook: an Airflow connection in, an engine out."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Awaitable, Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk.bases.hook import BaseHook
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSkipException,
)

from airflow_llm_provider.errors import BudgetAsks, BudgetSkips, LLMError, TerminalError
from airflow_llm_provider.hooks.alarm import BudgetAlarm
from airflow_llm_provider.hooks.connection import missing
from airflow_llm_provider.hooks.scope import scope_of
from airflow_llm_provider.hooks.settings import DEFAULT_CONNECTION, Settings

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.engine.client import AnthropicClient
    from airflow_llm_provider.engine.run import Engine
    from airflow_llm_provider.hooks.routing import Routing
    from airflow_llm_provider.ledger.records import CallScope

T = TypeVar("T")

_RETIRES_SOON = dt.timedelta(days=90)


class ClaudeHook(BaseHook):
    """Runs work on an engine that is set up from an Airflow connection.

    claude_conn_id: a connection of type `claude`: API key as password, base URL as host; the tiers, limits and
        time-outs are fields of its form. One of type `anthropic`, `http` or `generic` will do, with these in its extra.
    """

    conn_name_attr = "claude_conn_id"
    default_conn_name = DEFAULT_CONNECTION
    conn_type = "claude"
    hook_name = "Claude"

    def __init__(self, claude_conn_id: str = DEFAULT_CONNECTION, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.claude_conn_id = claude_conn_id
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False
        self._stray: BaseException | None = None

    def get_conn(self) -> AnthropicClient:
        """Return the client of the connection."""
        return self.settings.client

    @cached_property
    def settings(self) -> Settings:
        """The connection, read; raises AirflowFailException naming the field that is wrong.

        Raises AirflowNotFoundException, which is tried again, where there is none: a secrets backend may be away.
        """
        try:
            connection = self.get_connection(self.claude_conn_id)
        except AirflowNotFoundException:
            raise AirflowNotFoundException(missing(self.claude_conn_id)) from None
        return Settings.of(connection, self.claude_conn_id)

    def all_settings(self, routing: Routing) -> dict[str | None, Settings]:
        """Return the settings of this connection under None, and of others that are fallbacks under their ids."""
        others = routing.connections(self.settings)
        return {None: self.settings} | {name: ClaudeHook(name).settings for name in others}

    def run(self, work: Callable[[Engine], Awaitable[T]], *, context: Context | None = None) -> T:
        """Run `work` on an engine of its own, in a new event loop, until it ends or is cancelled.

        Raises AirflowFailException for what no retry can mend; other errors are left to Airflow's retries.
        """
        from airflow_llm_provider.approvals import spending

        async def main() -> T:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            self._loop.set_exception_handler(self._heard)
            if self._is_cancelled:
                raise asyncio.CancelledError
            engine = await asyncio.to_thread(self.settings.engine)
            alarm = BudgetAlarm(context)
            engine.ledger.on_warning = alarm.ring
            try:
                if context and _can_ask(context):
                    engine.ledger.accounts.raised = await spending.approved_raises(
                        engine, self.scope(context)
                    )
                return await work(engine)
            finally:
                await engine.close()
                await alarm.told()

        try:
            return asyncio.run(main())
        except BaseExceptionGroup as group:
            error = gravest(group)
            raise self.for_airflow(error, context) from (None if isinstance(error, LLMError) else group)
        except LLMError as error:
            # Its message says it all; the hundred lines of how it came through the loop would bury it.
            raise self.for_airflow(error, context) from None
        except asyncio.CancelledError:
            if self._stray:
                raise self._stray from None
            raise AirflowException(
                f"{_where(context)}stopped before it was done. What is paid is in the ledger; the next try "
                "continues from it."
            ) from None
        finally:
            self._loop = self._task = self._stray = None
            self._forget()

    def cancel(self) -> None:
        """Cancel what `run` is doing, from another thread or a signal handler; calls in flight are dropped."""
        self._is_cancelled = True  # also where the loop has yet to start
        if self._loop and self._task:
            self._loop.call_soon_threadsafe(self._task.cancel)

    def _heard(self, loop: asyncio.AbstractEventLoop, happened: dict[str, Any]) -> None:
        """Take an error that struck in one of the loop's callbacks, where nobody else would see it.

        Airflow's task timeout is raised by a signal handler, wherever the code happens to be just then; asyncio
        would log it there, and the task would run on.
        """
        error = happened.get("exception")
        if error is None or isinstance(error, Exception):
            loop.default_exception_handler(happened)
            return
        self._stray = error
        if self._task:
            self._task.cancel()

    def scope(self, context: Context, tags: tuple[str, ...] = ()) -> CallScope:
        """Return who asks: the task instance of `context`, with the trace id of its run."""
        return scope_of(context["ti"], context["task"], self.claude_conn_id, tags)

    def test_connection(self) -> tuple[bool, str]:
        """Ask for the list of models, which costs nothing, and say which tiers the key can use."""
        try:
            models = {model.id: model for model in asyncio.run(self._list_models())}
        except (LLMError, AirflowException) as error:  # AirflowNotFoundException, too
            return False, str(error)
        lines = []
        for tier, model in self.settings.tiers.items():
            lines.append(f"{tier}: {model} {'ok' if _listed(model, models) else 'NOT available to this key'}")
            retires_at = getattr(models.get(model), "retires_at", None)
            if retires_at and retires_at - dt.datetime.now(dt.UTC) < _RETIRES_SOON:
                lines.append(f"{model} retires on {retires_at:%Y-%m-%d}: choose another for {tier}")
        usable = all(_listed(model, models) for model in self.settings.tiers.values())
        return usable, "; ".join(lines)

    async def _list_models(self) -> list[Any]:
        client = self.settings.client
        try:
            return await client.models()
        finally:
            await client.close()
            self._forget()

    def _forget(self) -> None:
        """Let the next use read the connection anew: the client's sockets belonged to a loop that has ended."""
        self.__dict__.pop("settings", None)

    def for_airflow(self, error: BaseException, context: Context | None) -> BaseException:
        """Return the error as Airflow should see it: what no retry can mend as AirflowFailException.

        A budget that says so is asked about first: raises TaskAwaitingInput.
        """
        from airflow_llm_provider.approvals import spending

        if not isinstance(error, LLMError):
            return error
        if isinstance(error, BudgetSkips):
            return AirflowSkipException(f"{_where(context)}{error}")
        if isinstance(error, BudgetAsks) and error.budget and context and _can_ask(context):
            why = spending.ask_to_raise(error, hook=self, context=context)
            return AirflowFailException(f"{_where(context)}BudgetExceeded: {error} It is not raised: {why}")
        if isinstance(error, TerminalError):
            return AirflowFailException(f"{_where(context)}{type(error).__name__}: {error}")
        error.args = (f"{_where(context)}{error}",)
        return error


def _can_ask(context: Context) -> bool:
    return hasattr(context["task"], "budget_decided")


def _where(context: Context | None) -> str:
    return f"{context['ti'].dag_id}.{context['ti'].task_id}: " if context else ""


def _listed(model: str, models: dict[str, Any]) -> bool:
    """Tell whether the API lists a model, by its id or by the alias of a dated one."""
    return any(listed == model or listed.startswith(f"{model}-2") for listed in models)


def gravest(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended a task group, the gravest first."""
    errors = [gravest(e) if isinstance(e, BaseExceptionGroup) else e for e in group.exceptions]
    return next((error for error in errors if isinstance(error, TerminalError)), errors[0])
