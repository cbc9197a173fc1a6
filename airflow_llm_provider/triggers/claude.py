"""ClaudeTrigger: a call that waits in the triggerer and ends its task there, without a worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent
from jinja2 import TemplateError

from airflow_llm_provider import _airflow
from airflow_llm_provider.argument_checks import message_at_run_time
from airflow_llm_provider.engine.engine import other_connections
from airflow_llm_provider.engine.output_type import type_from_name
from airflow_llm_provider.errors import AnswerError, BudgetAsks, LLMError, TerminalError, record_of
from airflow_llm_provider.hooks.answers import CHECKS, USAGE, returned, saving_of, xcoms
from airflow_llm_provider.hooks.connection import DEFAULT_CONNECTION, Connection
from airflow_llm_provider.hooks.question import Question
from airflow_llm_provider.hooks.scope import scope_of
from airflow_llm_provider.options import Options
from airflow_llm_provider.triggers.arguments import resolved
from airflow_llm_provider.triggers.deferral import TRIGGER, NeedsWorker, decoded, require_plain_end_of_call
from airflow_llm_provider.triggers.engines import shared_engine

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.ledger.records import CallScope

TEMPLATES = (
    *("prompt", "inputs", "messages", "system", "model", "output", "version"),
    *("route", "on_invalid", "budget", "claude_conn_id"),
)
"""The arguments of ClaudeOperator whose strings Airflow renders; value objects say it of their own fields."""
# SQLite can make Airflow's supervisor wait for twenty seconds at its first use.
_RESOLVE_S = 60.0


class ClaudeTrigger(BaseTrigger):
    """Resolve the arguments, ask, push the XComs, end the task.

    A success ends here. A failure goes to a worker, which raises its cause, so that retries, retry policies and
    callbacks work as usual. A killed triggerer starts this again: the ledger knows what is paid.

    Args:
        call: JSON: `arguments` as `deferral.encode_arguments` writes them; `push`, whether the answer is wanted as an
            XCom; and where a worker has deferred, `scope` and `is_mapped_over`, since its arguments are rendered.
    """

    def __init__(self, call: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's base class
        self.call = call
        self._context: Any = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return how Airflow makes this trigger again."""
        return TRIGGER, {"call": self.call}

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """Keep the context: `run` renders templates together with XComs and mapped values."""
        del jinja_env
        self._context = context

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Make the call and yield one event."""
        event: TriggerEvent
        try:
            await self._finish()
            event = TaskSuccessEvent()
        # A worker meets the last two as well, such as an undefined name in a template, and its message is better.
        except (NeedsWorker, TimeoutError, AirflowException, TemplateError) as reason:
            event = _event({"needs_worker": str(reason) or "Airflow did not answer in time"})
        except LLMError as error:
            event = _event(record_of(error))
        yield event

    async def _finish(self) -> None:
        call = json.loads(self.call)
        ti: Any = self.task_instance
        if ti is None:
            raise NeedsWorker("dag.test() gives a trigger no task instance")
        # No worker has started for this attempt, so the XComs of the attempt before are still there. A task that fails
        # now must not seem to have an answer.
        if ti.try_number > 1:
            for key in ("return_value", USAGE, CHECKS):
                await _airflow.delete_xcom(ti, key)
        if "scope" in call:  # a worker has resolved them, and what they hold is data
            given = decoded(call["arguments"])
        else:
            # A trigger never gets an answer to some requests to the supervisor, such as a pull without map_indexes.
            async with asyncio.timeout(_RESOLVE_S):
                given = await resolved(call["arguments"], self._context, TEMPLATES)
        question = Question.of({**given, "output_type": type_from_name(given.get("output_type"))})
        options = _options(given)
        require_plain_end_of_call(options.on_invalid, options.budget, options.reuse)
        connection_id = given.get("claude_conn_id") or DEFAULT_CONNECTION
        connection = await _connection(connection_id)
        others = [
            (await _connection(name)).endpoint
            for name in other_connections(options.route, connection.endpoint)
        ]
        scope = self._scope(call, options, connection_id)
        async with shared_engine(connection) as engine:
            for endpoint in others:
                engine.connect(endpoint)
            try:
                reply = await question.ask(engine, options, scope)
            except AnswerError as error:  # the worker that raises it pushes nothing more
                await self._push_all(xcoms(error))
                raise
            # The task's own budget cannot say `ask` here. One of the ledger can, and only a worker can park the task.
            except BudgetAsks as refused:
                raise NeedsWorker(f"a person is asked: {refused}") from refused
            engine.ledger.record_later(saving_of(reply, scope, options))
        # In a thread: it may write to a disk or an object store, and all triggers of the process share this event loop.
        answer = await asyncio.to_thread(returned, reply, question, options)
        await self._push_all(xcoms(reply))
        if call["push"] and answer is not None:
            await self._push_answer(answer, is_mapped_over=self._is_mapped_over(call))

    def _scope(self, call: Mapping[str, Any], options: Options, connection_id: str) -> CallScope:
        from airflow_llm_provider.ledger.records import CallScope

        if "scope" in call:
            return CallScope(**call["scope"])
        ti: Any = self.task_instance
        return scope_of({"ti": ti, "task": ti.task}, options, connection_id)

    def _is_mapped_over(self, call: Mapping[str, Any]) -> bool:
        """Tell whether a downstream task expands over the answer, and needs its length."""
        ti: Any = self.task_instance
        if "is_mapped_over" in call:
            return bool(call["is_mapped_over"])
        return ti.map_index < 0 and next(ti.task.iter_mapped_dependants(), None) is not None

    async def _push_all(self, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            await _airflow.push_xcom(self.task_instance, key, value)

    async def _push_answer(self, answer: Any, *, is_mapped_over: bool) -> None:
        from airflow.sdk.definitions.mappedoperator import is_mappable_value

        if is_mapped_over and not is_mappable_value(answer):
            raise TerminalError(
                f"A downstream task expands over the answer, which is a {type(answer).__name__}."
            )
        length = len(answer) if is_mapped_over else None
        # Pushed here and not within TaskSuccessEvent, which would encode it twice: downstream would get a JSON string.
        await _airflow.push_xcom(self.task_instance, "return_value", answer, mapped_length=length)


def _options(given: Mapping[str, Any]) -> Options:
    """Return the options among resolved arguments; raises TerminalError for what a template made invalid."""
    try:
        return Options.of(given)
    except (TypeError, ValueError) as error:
        raise TerminalError(f"{message_at_run_time(error)} Nothing was sent.") from None


def _event(payload: dict[str, Any]) -> TriggerEvent:
    # Airflow logs the payload of an event, so an event never carries an answer.
    return TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow's class


async def _connection(conn_id: str) -> Connection:
    from airflow.sdk.bases.hook import BaseHook

    return Connection.of(await BaseHook.aget_connection(conn_id), conn_id)
