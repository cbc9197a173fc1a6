"""A session: questions asked of Claude on the caller's own event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, Unpack, overload

from airflow_llm_provider.argument_checks import refuse_sampling
from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.hooks.question import Question
from airflow_llm_provider.options import Options

if TYPE_CHECKING:
    from airflow_llm_provider.engine.engine import Engine
    from airflow_llm_provider.engine.reply import Reply
    from airflow_llm_provider.ledger.records import CallScope
    from airflow_llm_provider.options import (
        Budget,
        LongInput,
        OnInvalid,
        RequestFields,
        Reuse,
        Route,
        ToolLimits,
    )

T = TypeVar("T")

# So many times more are begun than are in flight: one slow call does not hold up those that follow in order.
_AHEAD = 4


class AskOptions(TypedDict, total=False):
    """The arguments that `ask` and `map` take besides the prompt; ClaudeOperator and `options` describe them."""

    messages: Sequence[Mapping[str, Any]]
    system: str | None
    validators: Sequence[Any]
    tools: Sequence[Callable[..., Any]]
    sample: int
    model: str | None
    route: Route | Sequence[str] | None
    request: RequestFields | None
    on_invalid: OnInvalid | None
    long_input: LongInput | str | None
    tool_limits: ToolLimits | None
    budget: Budget | Decimal | float | str | None
    reuse: Reuse
    version: str
    tags: Sequence[str]


def known(options: AskOptions) -> AskOptions:
    """Return the options; raises TypeError for a name that is not among them, which would change nothing."""
    refuse_sampling(options)
    if unknown := sorted(options.keys() - AskOptions.__annotations__.keys()):
        raise TypeError(f"{unknown[0]}= is not an option of ask() and map(): see AskOptions.")
    return options


class Claude:
    """Asks Claude on the event loop that made it; ClaudeHook.session() gives one.

    Calls are in the ledger: what was answered before, in the scope that `reuse` names, is not paid for again.

    Args:
        engine: asks the questions; it belongs to the running event loop.
        scope_of: makes the scope of the calls from the options.
    """

    def __init__(self, engine: Engine, scope_of: Callable[[Options], CallScope]) -> None:
        self.engine = engine
        self._scope_of = scope_of

    @overload
    async def ask(
        self,
        prompt: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        output_type: None = None,
        **options: Unpack[AskOptions],
    ) -> Reply[str]: ...
    @overload
    async def ask(
        self,
        prompt: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        output_type: type[T],
        **options: Unpack[AskOptions],
    ) -> Reply[T]: ...
    @overload
    async def ask(
        self,
        prompt: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        output_type: object,
        **options: Unpack[AskOptions],
    ) -> Reply[Any]: ...
    async def ask(
        self,
        prompt: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        output_type: Any = None,
        **options: Unpack[AskOptions],
    ) -> Reply[Any]:
        """Return the valid answer to one question.

        Args:
            prompt: the instruction.
            inputs: data by name, sent as data before the prompt.
            output_type: what the answer must be; None: text.
            **options: see AskOptions.

        Raises:
            LLMError: there is no valid answer, and why.
        """
        asked = Question.of({**options, "prompt": prompt, "inputs": inputs, "output_type": output_type})
        how = Options.of(known(options))
        return await asked.ask(self.engine, how, self._scope_of(how))

    @overload
    def map(
        self,
        rows: Iterable[Any],
        prompt: str,
        *,
        output_type: None = None,
        max_in_flight: int = 256,
        **options: Unpack[AskOptions],
    ) -> AsyncGenerator[Reply[str] | LLMError, None]: ...
    @overload
    def map(
        self,
        rows: Iterable[Any],
        prompt: str,
        *,
        output_type: type[T],
        max_in_flight: int = 256,
        **options: Unpack[AskOptions],
    ) -> AsyncGenerator[Reply[T] | LLMError, None]: ...
    @overload
    def map(
        self,
        rows: Iterable[Any],
        prompt: str,
        *,
        output_type: object,
        max_in_flight: int = 256,
        **options: Unpack[AskOptions],
    ) -> AsyncGenerator[Reply[Any] | LLMError, None]: ...
    async def map(
        self,
        rows: Iterable[Any],
        prompt: str,
        *,
        output_type: Any = None,
        max_in_flight: int = 256,
        **options: Unpack[AskOptions],
    ) -> AsyncGenerator[Reply[Any] | LLMError, None]:
        """Ask the same about many rows, and yield the outcomes in the order of the rows.

        An error is yielded in the place of the answer; it costs the other rows nothing.

        Args:
            rows: texts, or anything JSON can hold; each is sent as data. It may be a generator.
            prompt: the instruction.
            output_type: what each answer must be; None: text.
            max_in_flight: how many are asked at once.
            **options: see AskOptions.
        """
        how = Options.of(known(options))
        scope = self._scope_of(how)
        base = Question.of({**options, "prompt": prompt, "output_type": output_type})
        free = asyncio.Semaphore(max_in_flight)

        async def one(row: Any) -> Reply[Any] | LLMError:
            async with free:
                try:
                    return await base.about(row).ask(self.engine, how, scope)
                except LLMError as error:
                    return error

        begun: deque[asyncio.Task[Reply[Any] | LLMError]] = deque()
        try:
            for row in rows:
                begun.append(asyncio.ensure_future(one(row)))
                # Rows are taken only as outcomes are consumed, so a generator of any length needs little memory.
                if len(begun) >= max_in_flight * _AHEAD:
                    yield await begun.popleft()
            while begun:
                yield await begun.popleft()
        finally:
            for task in begun:
                task.cancel()
            # Waited for: the caller closes the engine next, and no call may still use it then.
            await asyncio.gather(*begun, return_exceptions=True)
