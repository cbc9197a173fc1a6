"""The hook: an Airflow connection in, an engine out."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk.bases.hook import BaseHook
from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.errors import LLMError, TerminalError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.engine.client import AnthropicClient
    from airflow_llm_provider.engine.pace import Limits
    from airflow_llm_provider.engine.run import Engine
    from airflow_llm_provider.ledger.records import CallScope

T = TypeVar("T")

DEFAULT_CONNECTION = "claude_default"
TIERS = {"fast": "claude-haiku-5-5", "balanced": "claude-sonnet-5-5", "strong": "claude-opus-5-5"}
_RETIRES_SOON = dt.timedelta(days=90)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a connection of type `claude` says."""

    client: AnthropicClient
    limits: Limits
    tiers: dict[str, str]
    default_tier: str
    fallbacks: tuple[str, ...]
    timeout_s: float
    deadline_s: float
    ledger_url: str

    def model(self, name: str | None) -> str:
        """Return the model id of a tier; an id, and what else it may be, is returned as it is."""
        name = name or self.default_tier
        return self.tiers.get(name, name)


class ClaudeHook(BaseHook):
    """Runs work on an engine that is set up from an Airflow connection.

    claude_conn_id: a connection of type `claude`: API key as password, base URL as host; the tiers, limits and
        time-outs are fields of its form.
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

    def get_conn(self) -> AnthropicClient:
        """Return the client of the connection."""
        return self.settings.client

    @cached_property
    def settings(self) -> Settings:
        """The connection, read; raises AirflowFailException naming the field that is wrong."""
        from airflow_llm_provider.engine.client import DEFAULT_BASE_URL, AnthropicClient
        from airflow_llm_provider.engine.pace import Limits

        connection = self.get_connection(self.claude_conn_id)
        extra = connection.extra_dejson
        try:
            fallbacks = extra.get("fallbacks") or ""
            names = fallbacks.split(",") if isinstance(fallbacks, str) else fallbacks
            return Settings(
                client=AnthropicClient(
                    api_key=connection.password or "",
                    base_url=_base_url(connection) or DEFAULT_BASE_URL,
                    proxy=extra.get("proxy") or None,
                    ca_bundle=extra.get("ca_bundle") or None,
                ),
                limits=Limits(
                    **{name: int(extra[name]) for name in ("rpm", "itpm", "otpm") if extra.get(name)}
                ),
                tiers={tier: extra.get(tier) or model for tier, model in TIERS.items()},
                default_tier=extra.get("default_tier") or "balanced",
                fallbacks=tuple(name.strip() for name in names if name.strip()),
                timeout_s=float(extra.get("timeout_s") or 300),
                deadline_s=float(extra.get("deadline_s") or 900),
                ledger_url=extra.get("ledger_url") or default_ledger_url(),
            )
        except (TypeError, ValueError) as error:
            raise AirflowFailException(
                f"Connection {self.claude_conn_id!r} has a field that can't be read: {error}. "
                "Correct it under Admin, Connections."
            ) from error

    def run(self, work: Callable[[Engine], Awaitable[T]], *, context: Context | None = None) -> T:
        """Run `work` on an engine of its own, in a new event loop, until it ends or is cancelled.

        Raises AirflowFailException for what no retry can mend; other errors are left to Airflow's retries.
        """

        async def main() -> T:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            engine = await asyncio.to_thread(self.engine)
            try:
                return await work(engine)
            finally:
                await engine.close()

        try:
            return asyncio.run(main())
        except BaseExceptionGroup as group:
            raise self._for_airflow(_first(group), context) from group
        except LLMError as error:
            raise self._for_airflow(error, context) from error
        finally:
            self._loop = self._task = None

    def cancel(self) -> None:
        """Cancel what `run` is doing, from another thread or a signal handler; calls in flight are dropped."""
        if self._loop and self._task:
            self._loop.call_soon_threadsafe(self._task.cancel)

    def engine(self) -> Engine:
        """Return a new engine; make it in the process and loop that use it."""
        from airflow.sdk.configuration import conf

        from airflow_llm_provider.engine.pace import Pace
        from airflow_llm_provider.engine.run import Engine, Route
        from airflow_llm_provider.ledger.store import Ledger

        # The SDK's transport logs every request at INFO, which is Airflow's level: a line a document.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        settings = self.settings
        lease_s = conf.getfloat("llm", "lease_s", fallback=45.0)
        ledger = Ledger(
            settings.ledger_url,
            payload=conf.get("llm", "payload", fallback="errors"),
            synchronous=conf.get("llm", "synchronous", fallback="FULL"),
            lease_s=lease_s,
            beat_s=lease_s / 4.5,  # three renewals may fail or come late
        )
        return Engine(
            client=settings.client,
            ledger=ledger,
            pace=Pace(settings.limits),
            timeout_s=settings.timeout_s,
            deadline_s=settings.deadline_s,
            route=Route(fallbacks=tuple((settings.model(name), None) for name in settings.fallbacks)),
        )

    def scope(self, context: Context, tags: tuple[str, ...] = ()) -> CallScope:
        """Return who asks: the task instance of `context`, with the trace id of its run."""
        from airflow.sdk.configuration import conf

        from airflow_llm_provider.ledger.records import CallScope

        ti, task = context["ti"], context["task"]
        retries = getattr(task, "retries", 0) or 0
        deployment = conf.get("llm", "deployment", fallback="airflow")
        all_tags = sorted({*tags, *(getattr(task.dag, "tags", None) or ())})
        return CallScope(
            dag_id=ti.dag_id,
            run_id=ti.run_id,
            task_id=ti.task_id,
            map_index=-1 if ti.map_index is None else ti.map_index,
            try_number=ti.try_number,
            # Airflow raises max_tries by the retries when a task is cleared, so this counts the clears too.
            first_try=max(1, ti.max_tries - retries + 1),
            connection_id=self.claude_conn_id,
            owner=task.owner,
            tags=json.dumps(all_tags) if all_tags else None,
            trace_id=trace_id(deployment, ti.dag_id, ti.run_id),
        )

    def test_connection(self) -> tuple[bool, str]:
        """Ask for the list of models, which costs nothing, and say which tiers the key can use."""
        try:
            models = {model.id: model for model in asyncio.run(self._list_models())}
        except (LLMError, AirflowFailException) as error:
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

    def _for_airflow(self, error: BaseException, context: Context | None) -> BaseException:
        if not isinstance(error, LLMError):
            return error
        where = f"{context['ti'].dag_id}.{context['ti'].task_id}: " if context else ""
        if isinstance(error, TerminalError):
            return AirflowFailException(f"{where}{type(error).__name__}: {error}")
        error.args = (f"{where}{error}",)
        return error


def trace_id(deployment: str, dag_id: str, run_id: str) -> str:
    """Return the 32 hex digits that every call of a DAG run carries, through retries and clears."""
    return hashlib.sha256(f"{deployment}\0{dag_id}\0{run_id}".encode()).digest()[:16].hex()


def default_ledger_url() -> str:
    """Return the ledger's URL from [llm] ledger_url; by default SQLite in AIRFLOW_HOME."""
    from airflow.sdk.configuration import conf

    configured: str = conf.get("llm", "ledger_url", fallback="")
    if configured:
        return configured
    import os
    from pathlib import Path

    home = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()
    return f"sqlite:///{home / 'llm_ledger.db'}"


def _base_url(connection: Any) -> str | None:
    """Read the host field, which may be a URL or a bare host with schema and port beside it."""
    host = (connection.host or "").strip().rstrip("/")
    if not host:
        return None
    if "://" not in host:
        host = f"{connection.schema or 'https'}://{host}"
        if connection.port:
            host += f":{connection.port}"
    return host


def _listed(model: str, models: dict[str, Any]) -> bool:
    """Tell whether the API lists a model, by its id or by the alias of a dated one."""
    return any(listed == model or listed.startswith(f"{model}-2") for listed in models)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended a task group, the gravest first."""
    errors = [_first(e) if isinstance(e, BaseExceptionGroup) else e for e in group.exceptions]
    return next((error for error in errors if isinstance(error, TerminalError)), errors[0])
