"""ClaudeTrigger: a call that waits in the triggerer and ends its task there, with no worker at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException
from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent
from jinja2 import TemplateError

from airflow_llm_provider.engine.names import found
from airflow_llm_provider.errors import AnswerError, BudgetAsks, LLMError, TerminalError, record_of
from airflow_llm_provider.hooks.call import Call
from airflow_llm_provider.hooks.checks import checks_record
from airflow_llm_provider.hooks.scope import scope_of
from airflow_llm_provider.hooks.settings import DEFAULT_CONNECTION, Settings
from airflow_llm_provider.triggers.arguments import resolved
from airflow_llm_provider.triggers.engines import shared_engine
from airflow_llm_provider.triggers.lane import TRIGGER, NeedsWorker

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.ledger.records import CallScope

# Of ClaudeOperator's arguments, those whose strings Airflow renders.
TEMPLATES = frozenset(
    {
        *("prompt", "inputs", "messages", "system", "model", "output", "dead_letters", "version"),
        *("budget_usd", "run_budget_usd", "claude_conn_id"),
    }
)
# SQLite can hold Airflow's supervisor up for twenty seconds at its first use.
_RESOLVE_S = 60.0


class ClaudeTrigger(BaseTrigger):
    """Resolve the arguments, ask, push the XComs, end the task.

    call: JSON: `arguments` as lane.encode_arguments writes them; `push`, whether the answer is wanted as an
        XCom; and where a worker has deferred: `scope` and `is_mapped_over`, since arguments are resolved then.

    Success ends here. Failures go to a worker, which raises their real cause, so that retries, policies and
    callbacks are what they always are. A killed triggerer starts this again: the ledger knows what is paid.
    """

    def __init__(self, call: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's base class
        self.call = call
        self._context: Any = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return how Airflow makes this trigger again."""
        return TRIGGER, {"call": self.call}

    def render_template_fields(self, context: Context, jinja_env: Any = None) -> None:
        """Keep the context: `run` resolves templates together with XComs and mapped values."""
        del jinja_env
        self._context = context

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Make the call and yield one event."""
        event: TriggerEvent
        try:
            await self._finish()
            event = TaskSuccessEvent()
        # A worker meets the last two as well, such as a name that a template does not know, and says it better.
        except (NeedsWorker, TimeoutError, AirflowException, TemplateError) as reason:
            event = _event({"needs_worker": str(reason) or "Airflow did not answer in time"})
        except LLMError as error:
            event = _event(record_of(error))
        yield event

    async def _finish(self) -> None:
        call = json.loads(self.call)
        ti: Any = self.task_instance
        if ti.try_number > 1:
            await self._delete_stale_xcoms(ti)
        arguments, scope = call["arguments"], call.get("scope")
        if scope is None:
            async with asyncio.timeout(_RESOLVE_S):
                arguments = await resolved(arguments, self._context, TEMPLATES)
        conn_id = arguments.get("claude_conn_id") or DEFAULT_CONNECTION
        asked = Call.of({**arguments, "output_type": found(arguments.get("output_type"))})
        own = await _settings(conn_id)
        settings: dict[str | None, Settings] = {None: own}
        for name in asked.routing.connections(own):
            settings[name] = await _settings(name)
        who = self._scope(conn_id, arguments, scope)
        if asked.exhausted.on_exhausted != "fail":
            raise NeedsWorker("on_exhausted= is not 'fail', and only a worker does anything else")
        if asked.reuse == "never":
            raise NeedsWorker("reuse='never' tells a retry from a clear, which the triggerer can't")
        async with shared_engine(own) as engine:
            try:
                reply = await asked.ask(engine, settings, who)
            except AnswerError as error:  # the worker that raises it pushes nothing more
                await self._push("llm_usage", error.usage)
                if error.complaints:
                    await self._push("llm_checks", checks_record(error))
                raise
            except BudgetAsks as refused:
                raise NeedsWorker(f"a person is to be asked: {refused}") from refused
            engine.ledger.record_later(asked.saving(reply, who))
        answer = await asyncio.to_thread(asked.delivered, reply)
        await self._push("llm_usage", reply.usage_record())
        if reply.complaints:
            await self._push("llm_checks", checks_record(reply))
        if call["push"] and answer is not None:
            await self._push("return_value", answer, is_mapped_over=self._is_mapped_over(call))

    def _scope(
        self, conn_id: str, arguments: Mapping[str, Any], scope: Mapping[str, Any] | None
    ) -> CallScope:
        from airflow_llm_provider.ledger.records import CallScope

        if scope is not None:
            return CallScope(**scope)
        ti: Any = self.task_instance
        return scope_of(ti, ti.task, conn_id, arguments.get("tags") or (), arguments=arguments)

    def _is_mapped_over(self, call: Mapping[str, Any]) -> bool:
        """Tell whether a downstream task expands over the answer, and needs its length."""
        ti: Any = self.task_instance
        if "is_mapped_over" in call:
            return bool(call["is_mapped_over"])
        return ti.map_index < 0 and next(ti.task.iter_mapped_dependants(), None) is not None

    async def _push(self, key: str, value: Any, *, is_mapped_over: bool = False) -> None:
        from airflow.sdk.definitions.mappedoperator import is_mappable_value
        from airflow.sdk.execution_time.xcom import XCom

        ti: Any = self.task_instance
        if is_mapped_over and not is_mappable_value(value):
            raise TerminalError(
                f"A downstream task expands over the answer, which is a {type(value).__name__}."
            )
        await XCom.aset(
            key,
            value,
            dag_id=ti.dag_id,
            run_id=ti.run_id,
            task_id=ti.task_id,
            map_index=ti.map_index,
            _mapped_length=len(value) if is_mapped_over else None,
        )

    async def _delete_stale_xcoms(self, ti: Any) -> None:
        """Delete what an earlier try left: Airflow does so only when a worker starts."""
        from airflow.sdk.execution_time.comms import DeleteXCom
        from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

        for key in ("return_value", "llm_usage", "llm_checks"):
            await SUPERVISOR_COMMS.asend(
                DeleteXCom(
                    key=key, dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=ti.map_index
                )
            )


def _event(payload: dict[str, Any]) -> TriggerEvent:
    return TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow's class


async def _settings(conn_id: str) -> Settings:
    from airflow.sdk.bases.hook import BaseHook

    return Settings.of(await BaseHook.aget_connection(conn_id), conn_id)
