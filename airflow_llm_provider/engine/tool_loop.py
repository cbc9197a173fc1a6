"""The tool loop: run what the model calls, send it the results, and repeat within bounds."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import datetime as dt
import inspect
import json
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from airflow_llm_provider.engine.calls import Call
from airflow_llm_provider.engine.ceiling import ceiling_micro_usd
from airflow_llm_provider.engine.reply import Message
from airflow_llm_provider.engine.request import Request, to_json
from airflow_llm_provider.errors import EffectUnknown, KeyBusy, LedgerUnavailable, ToolLimit, without_text
from airflow_llm_provider.ledger import effects
from airflow_llm_provider.ledger.effects import Effect, Intent, Outcome
from airflow_llm_provider.ledger.ledger import BEAT_S, LEASE_S, Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.pricing import Prices, usd
from airflow_llm_provider.tools import Tool

log = logging.getLogger(__name__)

MAX_OUTPUT_CHARACTERS = (
    100_000  # the model reads a tool's output again in every later turn, and each time is paid
)
_LEASE_MS = int(LEASE_S * 1000)
_GRACE_S = 4.0  # Airflow kills a task 5 s after it asked it to stop


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A tool call that can be made.

    Attributes:
        tool: The tool.
        arguments: Its validated arguments.
        intent: The record of the call in the ledger.
    """

    tool: Tool
    arguments: Mapping[str, Any]
    intent: Intent

    @property
    def is_careful(self) -> bool:
        """Whether it must not run beside others, nor twice."""
        return self.tool.irreversible or self.tool.needs_approval

    def __str__(self) -> str:
        return f"{self.tool.name}({len(self.intent.arguments):,} bytes of arguments)"


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolVerdict:
    """What a person decided about tool calls. The model is sent the reason."""

    is_approved: bool
    reason: str = ""


APPROVED = ToolVerdict(is_approved=True)


class ApprovalNeeded(Exception):
    """Tool calls of one reply wait for a person's decision; the task has to be deferred until then.

    Attributes:
        key: 64 hex digits that identify these calls with these arguments in this task instance.
        calls: The calls.
    """

    def __init__(self, key: str, calls: Sequence[ToolCall]) -> None:
        super().__init__(f"{', '.join(map(str, calls))} must be approved first.")
        self.key, self.calls = key, calls


@dataclass(kw_only=True)
class ToolRunner:
    """Runs the tool calls of one conversation.

    Attributes:
        tools: The tools by name.
        ledger: Where calls and their outcomes are recorded.
        scope: The task instance.
        item_id: The document or row that is asked about.
        verdict: Returns what a person decided about calls that need approval; None while there is no decision.
        until_s: On the monotonic clock, when to stop waiting for another process that makes the same call.
        sleep: How to wait.
    """

    tools: Mapping[str, Tool]
    ledger: Ledger
    scope: CallScope
    item_id: str | None
    verdict: Callable[[ApprovalNeeded], Awaitable[ToolVerdict | None]] | None
    until_s: float
    sleep: Callable[[float], Awaitable[None]]

    def read(self, block: Mapping[str, Any], call_id: str) -> ToolCall | Outcome:
        """Return the call that a block of a reply asks for, or the error for the model if it can't be made.

        Args:
            block: A block of type `tool_use`.
            call_id: The ledger's id of the reply.
        """
        given = to_json(block["input"])
        tool = self.tools.get(block["name"])
        if tool is None:
            known = ", ".join(sorted(self.tools))
            return _reject(
                "that the model named",
                "there is none of this name",
                f"There is no tool {block['name']!r}. There are: {known}.",
            )
        try:
            arguments = tool.arguments(given)
        except ValueError as error:
            return _reject(
                tool.name,
                "its arguments are invalid",
                f"The arguments are invalid, and nothing was done.\n{error}",
            )
        intent = Intent(
            scope=self.scope,
            item_id=self.item_id,
            call_id=call_id,
            tool_use_id=block["id"],
            tool=tool.name,
            is_irreversible=tool.irreversible,
            arguments=given,
        )
        return ToolCall(tool=tool, arguments=arguments, intent=intent)

    async def approve(self, calls: Sequence[ToolCall]) -> ToolVerdict:
        """Return what a person decided about all calls of a reply together.

        Calls that have begun were approved before they began.

        Raises:
            ApprovalNeeded: There is no decision yet.
        """
        asked = [call for call in calls if call.tool.needs_approval]
        # A list, because all() cannot take the async generator that this would be without brackets.
        if all([await self._has_begun(call) for call in asked]):
            return APPROVED
        needed = ApprovalNeeded(effects.digest(*(call.intent.key for call in asked)), asked)
        verdict = await self.verdict(needed) if self.verdict else None
        if verdict is None:
            raise needed
        return verdict

    async def outcome(self, call: ToolCall, verdict: ToolVerdict = APPROVED) -> Outcome:
        """Return the outcome of a call: from the ledger, or by running the tool now.

        An exception of the tool is an outcome, too: the model is sent its text.

        Args:
            call: The call.
            verdict: The decision about the calls of its reply that need approval.

        Raises:
            EffectUnknown: The tool may run once, has begun, and its end is unknown.
            KeyBusy: Another process has been running it for too long.
        """
        if call.tool.needs_approval and not verdict.is_approved and not await self._has_begun(call):
            reason = verdict.reason or "No reason was given."
            return _reject(
                call, "a person refused it", f"A person refused this call, and nothing was done. {reason}"
            )
        # Committed before the tool runs. If the process is killed meanwhile, the next attempt knows that the effect
        # may have happened.
        begun = await self._begin(call.intent)
        if begun.outcome:
            return _recorded_outcome(begun, begun.outcome, call)
        started = time.monotonic()
        outcome = await self._run(call)
        took_s = time.monotonic() - started
        log.info(
            "Tool %s %s %d characters in %.2f s",
            call,
            "failed with" if outcome.is_error else "returned",
            len(outcome.content),
            took_s,
        )
        return outcome

    async def _has_begun(self, call: ToolCall) -> bool:
        return await self.ledger.read(partial(effects.find, effect_id=call.intent.id)) is not None

    async def _begin(self, intent: Intent) -> Effect:
        """Record that the call begins; return its record, which has ended or is ours to run."""
        while True:
            begun = await self.ledger.write(partial(effects.begin, intent=intent, lease_ms=_LEASE_MS))
            if begun.outcome or begun.holder == intent.holder:
                return begun
            # Only a tool that may run once gets here: `effects.begin` takes over all other calls.
            if not begun.is_live:
                raise _effect_unknown(begun)
            # Another process of this task instance is making it.
            if time.monotonic() >= self.until_s:
                raise KeyBusy(
                    f"Another process has been running the tool {begun.tool} since "
                    f"{_format_time(begun.began_ms)}. Its result will be used by the next retry."
                )
            await self.sleep(0.2 + random.random() * 0.3)

    async def _run(self, call: ToolCall) -> Outcome:
        """Run a tool and record how it ended."""
        # A task of its own, behind a shield: when the caller is cancelled, an irreversible tool can still end and be
        # recorded.
        running = asyncio.ensure_future(self._run_and_record(call))
        beating = asyncio.ensure_future(self._renew(call.intent))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if call.tool.irreversible:  # stopped half-way, its effect would be unknown
                await asyncio.wait([running], timeout=_GRACE_S)
            running.cancel()
            raise
        finally:
            beating.cancel()

    async def _run_and_record(self, call: ToolCall) -> Outcome:
        outcome = await _call_tool(call.tool, call.arguments)
        return await self.ledger.write(partial(effects.end, effect_id=call.intent.id, outcome=outcome))

    async def _renew(self, intent: Intent) -> None:
        """Renew the lease that tells other processes that the call is running."""
        while True:
            await asyncio.sleep(BEAT_S)
            # A lease lasts for several renewals, so one of them may fail.
            with contextlib.suppress(LedgerUnavailable):
                await self.ledger.write(partial(effects.renew, intent=intent, lease_ms=_LEASE_MS))


async def _call_tool(tool: Tool, arguments: Mapping[str, Any]) -> Outcome:
    """Call a tool and return the outcome for the model: what it returned or raised."""
    if inspect.iscoroutinefunction(tool.function):
        try:
            return _output_of(await tool.function(**arguments))
        except Exception as error:  # noqa: BLE001  # the model is sent it, and may find another way
            return _error_output(tool, error)

    def call() -> Outcome:
        try:
            return _output_of(tool.function(**arguments))
        except Exception as error:  # noqa: BLE001  # as above
            return _error_output(tool, error)

    return await _in_thread(call)


async def _in_thread(call: Callable[[], Outcome]) -> Outcome:
    """Run `call` in a daemon thread, so that the process can end without waiting for it."""
    done: concurrent.futures.Future[Outcome] = concurrent.futures.Future()

    def work() -> None:
        # The caller was cancelled before the thread began, so the tool does not run.
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(call())
        except BaseException as error:  # noqa: BLE001  # raised where it is awaited
            done.set_exception(error)

    # A new thread has an empty context. The tool gets the context variables of its caller.
    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="llm-tool", daemon=True).start()
    return await asyncio.wrap_future(done)


def _output_of(value: Any) -> Outcome:
    """Return a value as text for the model: text as it is, data as JSON, anything else by str()."""
    if isinstance(value, str):
        return _truncate(value)
    from pydantic_core import to_json as dumped

    try:
        return _truncate(dumped(value, fallback=str).decode())
    except ValueError:  # it contains itself, or bytes that are not text
        return _truncate(str(value))


def _error_output(tool: Tool, error: Exception) -> Outcome:
    # The text may quote the arguments, which are the model's and may be a document's. A log has no text of either.
    log.info("Tool %s raised %s", tool.name, without_text(error))
    return Outcome(content=_truncate(f"{type(error).__name__}: {error}").content, is_error=True)


def _truncate(text: str) -> Outcome:
    text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair can't be sent
    if len(text) <= MAX_OUTPUT_CHARACTERS:
        return Outcome(content=text)
    return Outcome(
        content=f"{text[:MAX_OUTPUT_CHARACTERS]}\n… cut off: these are the first {MAX_OUTPUT_CHARACTERS:,} of "
        f"{len(text):,} characters. Ask for less at a time."
    )


def _reject(call: ToolCall | str, why: str, complaint: str) -> Outcome:
    """Return the outcome of a call that is not made.

    Args:
        call: The call, or the name of its tool.
        why: For the log, without a value that the model gave.
        complaint: For the model.
    """
    log.warning("Tool %s was not run: %s", call, why)
    return Outcome(content=complaint, is_error=True)


def _recorded_outcome(found: Effect, outcome: Outcome, call: ToolCall) -> Outcome:
    """Return the recorded outcome of a call, or an error if a tool that may run once ran with other arguments."""
    # Compared as data: a model may write the same arguments in another order or with other spaces.
    if json.loads(found.arguments) == json.loads(call.intent.arguments):
        log.info("Tool %s ran before and returned %d characters", call, len(outcome.content))
        return outcome
    return _reject(
        call,
        "it may run once, and has run with other arguments",
        f"Nothing was done: {found.tool} may run once, and has run with the arguments {found.arguments.decode()}. "
        f"It returned: {outcome.content}",
    )


def _effect_unknown(found: Effect) -> EffectUnknown:
    return EffectUnknown(
        f"The tool {found.tool} may run once. It began at {_format_time(found.began_ms)}, and its process ended before "
        "the outcome was recorded, so its effect may have happened or not. It is not run again. See its arguments with "
        "`airflow-llm effects list --unknown` and find out what happened. Then run `airflow-llm effects settle "
        f"{found.id[:12]} --output '…'` with what it returned, or `… --did-not-happen` so that it may run, and clear "
        "the task. Paid answers are kept."
    )


def _format_time(ms: int) -> str:
    return f"{dt.datetime.fromtimestamp(ms / 1000, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


Block = Mapping[str, Any]
Buy = Callable[[Request], Awaitable[Call]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Toolbox:
    """The tools of a question, and the limits of the conversation in which they are used.

    Attributes:
        tools: The tools by name.
        max_turns: How many replies of the model may call tools.
        max_s: Seconds that the conversation may take. A request in flight or an irreversible tool is not cut off.
        max_micro_usd: What the whole answer may cost; the next turn counts with its highest price. None: no limit.
        verdict: Returns what a person decided about calls that need approval; None while there is no decision.
    """

    tools: Mapping[str, Tool]
    max_turns: int = 10
    max_s: float = 600.0
    max_micro_usd: int | None = None
    verdict: Callable[[ApprovalNeeded], Awaitable[ToolVerdict | None]] | None = None

    def conversation(
        self,
        *,
        ledger: Ledger,
        scope: CallScope,
        item_id: str | None,
        sleep: Callable[[float], Awaitable[None]],
        buy: Buy,
        spent: Sequence[Call],
        prices: Prices,
    ) -> Conversation:
        """Begin a conversation; its time starts now.

        Args:
            ledger: Where tool calls are recorded.
            scope: The task instance.
            item_id: The document or row that is asked about.
            sleep: How to wait.
            buy: Obtains the model's next turn.
            spent: Every call that was made for the answer, those of `buy` included.
            prices: The connection's prices.
        """
        runner = ToolRunner(
            tools=self.tools,
            verdict=self.verdict,
            ledger=ledger,
            scope=scope,
            item_id=item_id,
            until_s=time.monotonic() + self.max_s,
            sleep=sleep,
        )
        return Conversation(toolbox=self, runner=runner, buy=buy, spent=spent, prices=prices)

    def require_price(self, request: Request, prices: Prices) -> None:
        """Raise ToolLimit if the cost limit can't be kept because the model has no price."""
        if self.max_micro_usd is not None and prices.card(request.model) is None:
            raise ToolLimit(
                f"tool_limits.max_usd cannot be kept: {request.model} has no known price. Nothing was sent. Choose a "
                "model with a price, or leave tool_limits.max_usd out and limit the turns."
            )


@dataclass(kw_only=True)
class Conversation:
    """A model's conversation with tools, from the question to the answer, repairs included."""

    toolbox: Toolbox
    runner: ToolRunner
    buy: Buy
    spent: Sequence[Call]
    prices: Prices
    turns: int = 0

    async def finish(self, request: Request, bought: Call) -> tuple[Request, Call]:
        """Run the tools that replies call, until a reply calls none; return that reply with its request.

        Every turn is a request like any other, and every tool call is in the ledger. A retry replays the conversation
        and neither pays nor runs anything twice.

        Args:
            request: The request that was answered.
            bought: Its reply.

        Raises:
            ToolLimit: The turns, time or money are used up.
            EffectUnknown: A tool that may run once has begun, and its end is unknown.
            ApprovalNeeded: A person has to decide about calls first.
        """
        while blocks := _tool_blocks(bought.message):
            self._require_turns(blocks)
            results = await self._results(blocks, bought)
            request = request.followed_by(
                {"role": "assistant", "content": bought.message.content},
                {"role": "user", "content": results},
            )
            bought = await self.buy(request)
        return request, bought

    # -- limits --------------------------------------------------------------------------------------

    def _require_turns(self, blocks: Sequence[Block]) -> None:
        if self.turns >= self.toolbox.max_turns:
            called = sorted({block["name"] for block in blocks} & self.toolbox.tools.keys())
            raise ToolLimit(
                f"The model still calls tools ({', '.join(called)}) after {self.turns} turns with them. "
                f"Raise tool_limits.max_turns, or say in the prompt when it is done. {_KEPT}"
            )
        self.turns += 1
        if self._left_s <= 0:
            raise self._out_of_time("before it could run the tools that the model calls")

    def require_money(self, request: Request) -> None:
        """Raise ToolLimit if the next request of the conversation could cost more than is left."""
        bound = self.toolbox.max_micro_usd
        if bound is None:
            return
        ceiling = ceiling_micro_usd(request, self.prices)
        costs = [ceiling, *(purchase.cost_micro_usd for purchase in self.spent)]
        known = [cost for cost in costs if cost is not None]
        if ceiling is None or len(known) < len(costs):
            raise ToolLimit(
                f"tool_limits.max_usd can't be kept: some of what was asked has no known price. {_KEPT}"
            )
        if sum(known) > bound:
            raise ToolLimit(
                f"${usd(sum(known) - ceiling)} is spent, and the next turn can cost up to ${usd(ceiling)}: more than "
                f"tool_limits.max_usd, ${usd(bound)}. Raise it. {_KEPT}"
            )

    @property
    def _left_s(self) -> float:
        return self.runner.until_s - time.monotonic()

    def _out_of_time(self, when: str) -> ToolLimit:
        return ToolLimit(
            f"The conversation has taken {self.toolbox.max_s:g} s {when}. Raise tool_limits.max_s. {_KEPT}"
        )

    # -- tool calls ----------------------------------------------------------------------------------

    async def _results(self, blocks: Sequence[Block], bought: Call) -> list[Block]:
        """Return the results of a reply's calls: repeatable ones first and together, then the others in order."""
        if bought.message.is_damaged:  # an argument may not say what the model meant
            rejected = _reject("of a reply", "its arguments are not Unicode", _DAMAGED)
            return [_result_block(block["id"], rejected) for block in blocks]
        read = {block["id"]: self.runner.read(block, bought.attempt_id) for block in blocks}
        outcomes = {id_: outcome for id_, outcome in read.items() if isinstance(outcome, Outcome)}
        calls = {id_: call for id_, call in read.items() if isinstance(call, ToolCall)}
        careful = {id_: call for id_, call in calls.items() if call.is_careful}
        # These run before a person is asked. When the task parks for the decision, their results are in the ledger
        # already.
        outcomes |= await self._at_once({id_: call for id_, call in calls.items() if id_ not in careful})
        verdict = await self.runner.approve(list(careful.values()))
        for id_, call in careful.items():
            # Without a timeout, because its effect would be unknown if it was cut off.
            if call.tool.irreversible:
                outcomes[id_] = await self.runner.outcome(call, verdict)
            else:
                outcomes |= await self._at_once({id_: call}, verdict)
        return [_result_block(block["id"], outcomes[block["id"]]) for block in blocks]

    async def _at_once(
        self, calls: Mapping[str, ToolCall], verdict: ToolVerdict = APPROVED
    ) -> dict[str, Outcome]:
        made = [self.runner.outcome(call, verdict) for call in calls.values()]
        try:
            async with asyncio.timeout(self._left_s):
                # All are awaited to their end, so that no tool still runs when the error of another one is raised.
                done = await asyncio.gather(*made, return_exceptions=True)
        except TimeoutError:
            raise self._out_of_time(f"while {', '.join(map(str, calls.values()))} ran") from None
        outcomes: dict[str, Outcome] = {}
        for id_, outcome in zip(calls, done, strict=True):
            if isinstance(outcome, BaseException):
                raise outcome
            outcomes[id_] = outcome
        return outcomes


_DAMAGED = (
    "Nothing was done: the arguments have characters that are not Unicode, such as half of a surrogate pair. Call the "
    "tool again, in whole characters."
)
_KEPT = "Paid answers and tool results are in the ledger. Clear the task, and it continues from there."


def _tool_blocks(message: Message) -> list[Block]:
    """Return the tool calls of a reply that stopped for them."""
    # A reply that was cut off may end with a tool call that has only part of its arguments.
    if message.stop_reason != "tool_use":
        return []
    return [block for block in message.content if block["type"] == "tool_use"]


def _result_block(tool_use_id: str, outcome: Outcome) -> Block:
    error = {"is_error": True} if outcome.is_error else {}
    return {"type": "tool_result", "tool_use_id": tool_use_id, "content": outcome.content, **error}
