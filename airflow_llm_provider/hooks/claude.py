"""The hook: an Airflow connection in, answers out."""

from __future__ import annotations

import asyncio
import contextvars
import datetime as dt
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from airflow.sdk.bases.hook import BaseHook
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSkipException,
)

from airflow_llm_provider.errors import AnswerError, BudgetAsks, BudgetSkips, LLMError, TerminalError
from airflow_llm_provider.hooks.alarm import BudgetAlarm
from airflow_llm_provider.hooks.connection import DEFAULT_CONNECTION, Connection, missing
from airflow_llm_provider.hooks.scope import ad_hoc_run_id, ad_hoc_scope, scope_of
from airflow_llm_provider.options import Options, Route

if TYPE_CHECKING:
    import anthropic
    from airflow.sdk import Context

    from airflow_llm_provider.engine.client import AnthropicClient
    from airflow_llm_provider.engine.endpoint import Endpoint
    from airflow_llm_provider.engine.engine import Engine
    from airflow_llm_provider.engine.reply import Reply
    from airflow_llm_provider.hooks.question import Question
    from airflow_llm_provider.hooks.session import AskOptions, Claude
    from airflow_llm_provider.ledger.records import CallScope

T = TypeVar("T")

_RETIRES_SOON = dt.timedelta(days=90)
_DEFAULTS = Options()


class BudgetNeedsPerson(AirflowFailException):
    """A call does not fit into a budget with `on_exceeded="ask"`; the operators ask a person, others fail."""

    def __init__(self, message: str, refused: BudgetAsks) -> None:
        super().__init__(message)
        self.refused = refused


class ClaudeHook(BaseHook):
    """Asks Claude through an Airflow connection; answers are kept in the ledger and paid for once.

    In a task, calls belong to the task instance, as an operator's do. Elsewhere (a test, a notebook) they belong to a
    run of the hook's own, which shares no answers with DAG runs.

    Args:
        claude_conn_id: a connection of type `claude`: API key as password, base URL as host; tiers, limits and timeouts
            are fields of its form. One of type `anthropic`, `http` or `generic` works too, with these in its extra.
    """

    conn_name_attr = "claude_conn_id"
    default_conn_name = DEFAULT_CONNECTION
    conn_type = "claude"
    hook_name = "Claude"

    def __init__(self, claude_conn_id: str = DEFAULT_CONNECTION, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.claude_conn_id = claude_conn_id
        self._ad_hoc_run_id = ad_hoc_run_id()
        self._running: set[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = set()
        self._is_cancelled = False
        self._stray: BaseException | None = None

    # -- questions -----------------------------------------------------------------------------------

    # Three overloads, so that a type checker derives the type of `reply.value` from `output_type`. A JSON schema gives
    # none.
    @overload
    def ask(
        self,
        prompt: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        output_type: None = None,
        **options: Unpack[AskOptions],
    ) -> Reply[str]: ...
    @overload
    def ask(
        self,
        prompt: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        output_type: type[T],
        **options: Unpack[AskOptions],
    ) -> Reply[T]: ...
    @overload
    def ask(
        self,
        prompt: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        output_type: object,
        **options: Unpack[AskOptions],
    ) -> Reply[Any]: ...
    def ask(
        self,
        prompt: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        output_type: Any = None,
        **options: Unpack[AskOptions],
    ) -> Reply[Any]:
        """Return the valid answer to one question.

        It also works where an event loop runs, as in a notebook: the call then gets a thread of its own.

        Args:
            prompt: the instruction.
            inputs: data by name, sent as data before the prompt.
            output_type: what the answer must be: a pydantic model or any type pydantic knows, or a JSON schema as a
                dict; None: text.
            **options: as ClaudeOperator takes them: `model`, `route`, `budget`, `reuse` …

        Raises:
            AirflowFailException: no retry of the task can help; its `__cause__` is the LLMError.
            LLMError: a retry of the task may help. Outside of a task, every error is one.
        """
        from airflow_llm_provider.hooks.question import Question
        from airflow_llm_provider.hooks.session import known

        question = Question.of({**options, "prompt": prompt, "inputs": inputs, "output_type": output_type})
        how, context = Options.of(known(options)), current_context()
        try:
            return self.answer(question, how, context)
        except AnswerError as error:
            raise self.for_airflow(error, context) from error

    @overload
    def map(
        self,
        rows: Iterable[Any],
        prompt: str,
        *,
        output_type: None = None,
        max_in_flight: int = 256,
        **options: Unpack[AskOptions],
    ) -> Iterator[Reply[str] | LLMError]: ...
    @overload
    def map(
        self,
        rows: Iterable[Any],
        prompt: str,
        *,
        output_type: type[T],
        max_in_flight: int = 256,
        **options: Unpack[AskOptions],
    ) -> Iterator[Reply[T] | LLMError]: ...
    @overload
    def map(
        self,
        rows: Iterable[Any],
        prompt: str,
        *,
        output_type: object,
        max_in_flight: int = 256,
        **options: Unpack[AskOptions],
    ) -> Iterator[Reply[Any] | LLMError]: ...
    def map(
        self,
        rows: Iterable[Any],
        prompt: str,
        *,
        output_type: Any = None,
        max_in_flight: int = 256,
        **options: Unpack[AskOptions],
    ) -> Iterator[Reply[Any] | LLMError]:
        """Ask the same about many rows, and yield the outcomes in the order of the rows.

        An error is yielded in the place of the answer; it costs the other rows nothing. Leaving the loop early cancels
        what is in flight.

        Args:
            rows: texts, or anything JSON can hold; each is sent as data.
            prompt: the instruction.
            output_type: what each answer must be; None: text.
            max_in_flight: how many are asked at once.
            **options: as for `ask`.
        """
        # Bounded: where the consumer is slow, asking waits for it, and answers do not fill the memory.
        outcomes: queue.Queue[Reply[Any] | LLMError | _End] = queue.Queue(maxsize=max_in_flight)
        is_left = threading.Event()
        working: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

        async def work() -> None:
            task = asyncio.current_task()
            assert task is not None, "a coroutine of asyncio.run is a task"
            working.append((asyncio.get_running_loop(), task))
            # The consumer may have left before this loop had started; then there was nothing yet that it could cancel.
            if is_left.is_set():
                return
            async with (
                self._open_session(Options.of(options), own_loop=True) as claude,
                aclosing(
                    claude.map(rows, prompt, output_type=output_type, max_in_flight=max_in_flight, **options)
                ) as answered,
            ):
                async for outcome in answered:
                    # A full queue blocks, and the calls in flight need the event loop.
                    await asyncio.to_thread(outcomes.put, outcome)

        def run() -> None:
            error: BaseException | None = None
            try:
                self.run(work(), current_context())
            except BaseException as raised:  # noqa: BLE001  # it is raised again where the rows are consumed
                error = raised
            outcomes.put(_End(error))

        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(run,), name="claude-map", daemon=True)
        thread.start()
        try:
            while not isinstance(outcome := outcomes.get(), _End):
                yield outcome
            if outcome.error is not None:
                raise outcome.error
        finally:
            # Set before the tasks are looked at, and read by the thread after it has entered its own: one of the two
            # ends it.
            is_left.set()
            for loop, task in working:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(task.cancel)
            while thread.is_alive():  # make room, so that the thread does not wait for a consumer
                with suppress(queue.Empty):
                    outcomes.get(timeout=0.05)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Claude]:
        """Give a session on the running event loop; its errors are LLMErrors.

        `async with hook.session() as claude: reply = await claude.ask(…)`
        """
        # The loop is the caller's, who may do other work in it: `cancel` must not end that.
        async with self._open_session(_DEFAULTS, own_loop=False) as claude:
            yield claude

    @asynccontextmanager
    async def _open_session(self, options: Options, *, own_loop: bool) -> AsyncIterator[Claude]:
        from airflow_llm_provider.engine.engine import other_connections
        from airflow_llm_provider.hooks.session import Claude

        context = current_context()
        async with self.open_engine(options, context, own_loop=own_loop) as engine:

            def scope_of_call(options: Options) -> CallScope:
                for name in other_connections(options.route, engine.endpoint):
                    if name not in engine.others:
                        engine.connect(ClaudeHook(name).connection.endpoint)
                return self._scope(options, context)

            yield Claude(engine, scope_of_call)

    def get_conn(self) -> anthropic.Anthropic:
        """Return the SDK's own client, with the key, host, proxy and CA bundle of the connection.

        Its calls are not in the ledger, and no budget or rate limit of this package holds them.
        """
        return self.client.sdk_client(timeout_s=self.connection.endpoint.timeout_s)

    # -- the operators' side -------------------------------------------------------------------------

    def answer(self, question: Question, options: Options, context: Context | None) -> Reply[Any]:
        """Return the answer to a question, with its cost logged and its savings kept.

        Raises:
            AnswerError: what was paid for is not a valid answer. It is left to the caller.
            AirflowFailException: no retry of the task can help.
            LLMError: a retry of the task may help.
        """
        return self.run(self._answer(question, options, context), context)

    async def _answer(self, question: Question, options: Options, context: Context | None) -> Reply[Any]:
        from airflow_llm_provider.hooks.answers import record_saving_and_log_cost

        async with self.open_engine(options, context, own_loop=True) as engine:
            scope = self._scope(options, context)
            try:
                reply = await question.ask(engine, options, scope)
            except AnswerError as error:
                # An answer that is not valid was paid for as well, and the log says what it cost.
                await record_saving_and_log_cost(engine, scope, error, options)
                raise
            await record_saving_and_log_cost(engine, scope, reply, options)
            return reply

    @asynccontextmanager
    async def open_engine(
        self, options: Options, context: Context | None, *, own_loop: bool = False
    ) -> AsyncIterator[Engine]:
        """Give an engine on the running event loop, with the endpoints that the options name; then close it.

        Args:
            options: their route names other connections, their budget the notifiers.
            context: of the task that asks, if there is one.
            own_loop: whether the loop runs for this work alone: then `cancel` ends it, and signals that strike in one
                of its callbacks are raised in the work.
        """
        entry: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if own_loop and task is not None:
            entry = (loop, task)
            self._running.add(entry)
            loop.set_exception_handler(self._on_loop_error)
            if self._is_cancelled:  # before the loop had started
                raise asyncio.CancelledError
        try:
            # A client's sockets belong to one event loop, so that each engine reads the connection for itself.
            connection = self._read_connection()
            # In a thread: it opens the ledger, which may have to be created or upgraded first.
            engine = await asyncio.to_thread(connection.engine)
            alarm = BudgetAlarm(context, options.budget.notifiers)
            engine.ledger.on_warning = alarm.warn
            try:
                for endpoint in _other_endpoints(options.route, connection.endpoint):
                    engine.connect(endpoint)
                if context is not None:  # a budget of the ledger may ask, whatever the task's own does
                    from airflow_llm_provider.approvals import spending

                    scope = self.scope(context)
                    engine.ledger.accounts.raised = await engine.ledger.read(
                        lambda connection, _: spending.find_raises(connection, scope)
                    )
                yield engine
            finally:
                # Closing commits what is left, which can still warn of a budget. So the notifiers are awaited after it.
                await engine.close()
                await alarm.wait()
        finally:
            if entry:
                self._running.discard(entry)

    def run(self, work: Coroutine[Any, Any, T], context: Context | None) -> T:
        """Run a coroutine that opens an engine, in an event loop of its own, until it ends or is cancelled.

        Errors are raised as Airflow takes them, but for AnswerError, which is left to the caller.
        """
        try:
            if _is_loop_running():
                # A notebook has a running loop, and asyncio.run refuses to start a second one in the same thread.
                return _in_a_thread(work)
            return asyncio.run(work)
        except BaseExceptionGroup as group:
            error = gravest(group)
            # An LLMError says everything by itself. Any other error needs the traceback of its group.
            raise self.for_airflow(error, context) from (None if isinstance(error, LLMError) else group)
        except AnswerError as error:
            raise error from None
        except LLMError as error:
            # Its message says everything; a traceback of a hundred lines through the event loop would hide it.
            raise self.for_airflow(error, context) from None
        except asyncio.CancelledError:
            if self._stray:
                raise self._stray from None
            raise AirflowException(
                f"{_where(context)}stopped before it was done. What is paid is in the ledger; the next attempt "
                "continues from it."
            ) from None
        finally:
            # The same hook may be used again, in a script or a notebook.
            self._is_cancelled, self._stray = False, None
            self._forget_connection()

    def cancel(self) -> None:
        """Cancel what runs in a loop of its own, from another thread or a signal handler; drop the calls in flight."""
        self._is_cancelled = True  # also where the loop has yet to start
        for loop, task in tuple(self._running):
            loop.call_soon_threadsafe(task.cancel)

    def _on_loop_error(self, loop: asyncio.AbstractEventLoop, happened: dict[str, Any]) -> None:
        """Take an error that was raised in one of the loop's callbacks, where nothing else would see it.

        Airflow's task timeout is raised by a signal handler, in whatever code runs at that moment. asyncio would log it
        there, and the task would go on.
        """
        error = happened.get("exception")
        if error is None or isinstance(error, Exception):
            loop.default_exception_handler(happened)
            return
        self._stray = error
        for _, task in tuple(self._running):
            task.cancel()

    # -- the connection ------------------------------------------------------------------------------

    @property
    def client(self) -> AnthropicClient:
        """The client that requests of this connection are sent with."""
        return self.connection.endpoint.client  # type: ignore[return-value]  # a connection makes no other

    @cached_property
    def connection(self) -> Connection:
        """The connection, read.

        Raises:
            AirflowFailException: names the field that is wrong.
            AirflowNotFoundException: there is no such connection. It is retried: a secrets backend may be away.
        """
        return self._read_connection()

    def _read_connection(self) -> Connection:
        try:
            found = self.get_connection(self.claude_conn_id)
        except AirflowNotFoundException:
            raise AirflowNotFoundException(missing(self.claude_conn_id)) from None
        return Connection.of(found, self.claude_conn_id)

    def scope(self, context: Context, options: Options = _DEFAULTS) -> CallScope:
        """Return who asks: the task instance of `context`, with the trace id of its run."""
        return scope_of(context, options, self.claude_conn_id)

    def _scope(self, options: Options, context: Context | None) -> CallScope:
        if context is None:
            return ad_hoc_scope(options, self.claude_conn_id, self._ad_hoc_run_id)
        return self.scope(context, options)

    def test_connection(self) -> tuple[bool, str]:
        """Ask for the list of models, which costs nothing, and say which tiers the key can use."""
        try:
            models = {model.id: model for model in asyncio.run(self._list_models())}
        except (LLMError, AirflowException) as error:  # AirflowNotFoundException, too
            return False, str(error)
        lines = []
        tiers = self.connection.endpoint.tiers
        for tier, model in tiers.items():
            lines.append(
                f"{tier}: {model} {'ok' if _is_listed(model, models) else 'NOT available to this key'}"
            )
            retires_at = getattr(models.get(model), "retires_at", None)
            if retires_at and retires_at - dt.datetime.now(dt.UTC) < _RETIRES_SOON:
                lines.append(f"{model} retires on {retires_at:%Y-%m-%d}: choose another for {tier}")
        return all(_is_listed(model, models) for model in tiers.values()), "; ".join(lines)

    async def _list_models(self) -> list[Any]:
        client = self.client
        try:
            return await client.models()
        finally:
            await client.close()
            self._forget_connection()

    def _forget_connection(self) -> None:
        """Let the next use read the connection again: the client's sockets belonged to a loop that has ended."""
        self.__dict__.pop("connection", None)

    def for_airflow(self, error: BaseException, context: Context | None) -> BaseException:
        """Return an error as Airflow should see it: what no retry can help as AirflowFailException."""
        if context is None or not isinstance(error, LLMError):
            return error  # outside of a task, Airflow's errors mean nothing
        where = _where(context)
        if isinstance(error, BudgetSkips):
            return AirflowSkipException(f"{where}{error}")
        if isinstance(error, BudgetAsks):
            return BudgetNeedsPerson(f"{where}BudgetExceeded: {error}", error)
        if isinstance(error, TerminalError):
            return AirflowFailException(f"{where}{type(error).__name__}: {error}")
        # Changed in place: the retry policy needs its class and the delay in it.
        error.args = (f"{where}{error}",)
        return error


class _End:
    """Ends the outcomes of `map`; with the error that ended it, if one did."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def _other_endpoints(route: Route, own: Endpoint) -> list[Endpoint]:
    """Return the endpoints of the other connections that a route falls back on."""
    from airflow_llm_provider.engine.engine import other_connections

    return [ClaudeHook(name).connection.endpoint for name in other_connections(route, own)]


def current_context() -> Context | None:
    """Return Airflow's context of the task that runs here; None outside of a task."""
    from airflow.sdk import get_current_context

    try:
        return get_current_context()
    except RuntimeError:
        return None


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _in_a_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a thread with an event loop of its own."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="claude-ask") as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, work).result()


def _where(context: Context | None) -> str:
    return f"{context['ti'].dag_id}.{context['ti'].task_id}: " if context else ""


def _is_listed(model: str, models: dict[str, Any]) -> bool:
    """Tell whether the API lists a model, by its id or by the alias of a dated one."""
    # The id of a dated model ends in a date, whose year begins with 2.
    return any(listed == model or listed.startswith(f"{model}-2") for listed in models)


def gravest(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended a task group, the gravest first."""
    errors = [gravest(e) if isinstance(e, BaseExceptionGroup) else e for e in group.exceptions]
    # A terminal error first: while it stands, no retry of the task can help.
    return next((error for error in errors if isinstance(error, TerminalError)), errors[0])
