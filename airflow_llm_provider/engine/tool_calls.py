"""One tool call: approved where it must be, run, written down, and told to the model."""

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

from airflow_llm_provider.engine.request import to_json
from airflow_llm_provider.errors import EffectUnknown, KeyBusy, LedgerUnavailable
from airflow_llm_provider.ledger import effects
from airflow_llm_provider.ledger.effects import Effect, Intent, Outcome
from airflow_llm_provider.ledger.ledger import BEAT_S, LEASE_S, Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.tools import Tool

log = logging.getLogger(__name__)

MAX_OUTPUT_CHARACTERS = 100_000  # what a tool returns is read, and paid for, again in every turn after it
_LEASE_MS = int(LEASE_S * 1000)
_GRACE_S = 4.0  # a task told to stop is killed 5 s later


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A call that can be made: the tool, its arguments as checked, and how the ledger knows it."""

    tool: Tool
    arguments: Mapping[str, Any]
    intent: Intent

    @property
    def is_careful(self) -> bool:
        """Whether it must not be made beside others, or twice to be on the safe side."""
        return self.tool.irreversible or self.tool.needs_approval

    def __str__(self) -> str:
        return f"{self.tool.name}({_shown(self.intent.arguments.decode())})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a person said of tool calls; the reason is told to the model."""

    is_approved: bool
    reason: str = ""


APPROVED = Verdict(is_approved=True)


class ApprovalNeeded(Exception):
    """Tool calls of one reply wait for a person's verdict: the task has to be parked until there is one.

    key: 64 hex digits that name the question: these calls with these arguments, of this task instance.
    """

    def __init__(self, key: str, calls: Sequence[ToolCall]) -> None:
        super().__init__(f"{', '.join(map(str, calls))} must be approved first.")
        self.key, self.calls = key, calls


@dataclass(kw_only=True)
class Caller:
    """Makes the tool calls of one conversation.

    verdict: looks up what was said of calls that need approval; None while nobody has said anything.
    until_s: on the monotonic clock, how long to wait for another process that is making the same call.
    """

    tools: Mapping[str, Tool]
    ledger: Ledger
    scope: CallScope
    item_id: str | None
    verdict: Callable[[ApprovalNeeded], Awaitable[Verdict | None]] | None
    until_s: float
    sleep: Callable[[float], Awaitable[None]]

    def read(self, block: Mapping[str, Any], call_id: str) -> ToolCall | Outcome:
        """Return the call that a reply's block asks for, or what to tell the model where it can't be made.

        call_id: the attempt whose reply it is.
        """
        given = to_json(block["input"])
        tool = self.tools.get(block["name"])
        if tool is None:
            known = ", ".join(sorted(self.tools))
            return _refused(_shown(block["name"]), f"There is no tool {block['name']!r}. There are: {known}.")
        try:
            arguments = tool.arguments(given)
        except ValueError as error:
            return _refused(tool.name, f"The arguments are wrong, and nothing was done.\n{error}")
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

    async def approve(self, calls: Sequence[ToolCall]) -> Verdict:
        """Return what a person said of a reply's calls, all at once; raises ApprovalNeeded before that.

        What has begun was approved before it did.
        """
        asked = [call for call in calls if call.tool.needs_approval]
        if all([await self._has_begun(call) for call in asked]):
            return APPROVED
        needed = ApprovalNeeded(effects.digest(*(call.intent.key for call in asked)), asked)
        verdict = await self.verdict(needed) if self.verdict else None
        if verdict is None:
            raise needed
        return verdict

    async def outcome(self, call: ToolCall, verdict: Verdict = APPROVED) -> Outcome:
        """Make a call, or take what the ledger has of it; what the tool raises is told to the model.

        verdict: on the calls of its reply that need approval. Raises EffectUnknown, KeyBusy.
        """
        if call.tool.needs_approval and not verdict.is_approved and not await self._has_begun(call):
            reason = verdict.reason or "No reason was given."
            return _refused(call, f"A person refused this call, and nothing was done. {reason}")
        begun = await self._begin(call.intent)
        if begun.outcome:
            return _as_before(begun, begun.outcome, call)
        started = time.monotonic()
        outcome = await self._run(call)
        took_s = time.monotonic() - started
        log.info(
            "Tool %s %s in %.2f s: %s",
            call,
            "failed" if outcome.is_error else "returned",
            took_s,
            _shown(outcome.content),
        )
        return outcome

    async def _has_begun(self, call: ToolCall) -> bool:
        return await self.ledger.read(partial(effects.find, effect_id=call.intent.id)) is not None

    async def _begin(self, intent: Intent) -> Effect:
        """Write down that the call begins; return what the ledger has of it, ended or ours to make."""
        while True:
            begun = await self.ledger.write(partial(effects.begin, intent=intent, lease_ms=_LEASE_MS))
            if begun.outcome or begun.holder == intent.holder:
                return begun
            if not begun.is_live:
                raise _unknown(begun)
            # Another process of this task instance is making it.
            if time.monotonic() >= self.until_s:
                raise KeyBusy(
                    f"Another process has been running the tool {begun.tool} since {_when(begun.began_ms)}. What it "
                    "returns will serve the next try."
                )
            await self.sleep(0.2 + random.random() * 0.3)

    async def _run(self, call: ToolCall) -> Outcome:
        """Run a tool and write down how it ended."""
        running = asyncio.ensure_future(self._run_and_record(call))
        beating = asyncio.ensure_future(self._renew(call.intent))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if call.tool.irreversible:  # half done, nobody would know what has happened
                await asyncio.wait([running], timeout=_GRACE_S)
            running.cancel()
            raise
        finally:
            beating.cancel()

    async def _run_and_record(self, call: ToolCall) -> Outcome:
        outcome = await _called(call.tool, call.arguments)
        return await self.ledger.write(partial(effects.end, effect_id=call.intent.id, outcome=outcome))

    async def _renew(self, intent: Intent) -> None:
        """Keep telling other processes that the call is being made."""
        while True:
            await asyncio.sleep(BEAT_S)
            with contextlib.suppress(LedgerUnavailable):
                await self.ledger.write(partial(effects.renew, intent=intent, lease_ms=_LEASE_MS))


async def _called(tool: Tool, arguments: Mapping[str, Any]) -> Outcome:
    """Call a tool, and return what the model is told: what it returned, or what it raised."""
    if inspect.iscoroutinefunction(tool.function):
        try:
            return _told(await tool.function(**arguments))
        except Exception as error:  # noqa: BLE001  # the model is told, and may find another way
            return _raised(error)

    def call() -> Outcome:
        try:
            return _told(tool.function(**arguments))
        except Exception as error:  # noqa: BLE001  # as above
            return _raised(error)

    return await _in_thread(call)


async def _in_thread(call: Callable[[], Outcome]) -> Outcome:
    """Return what `call` returns in a thread that the process does not wait for when it ends."""
    done: concurrent.futures.Future[Outcome] = concurrent.futures.Future()

    def work() -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(call())
        except BaseException as error:  # noqa: BLE001  # raised where it is awaited
            done.set_exception(error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="llm-tool", daemon=True).start()
    return await asyncio.wrap_future(done)


def _told(value: Any) -> Outcome:
    """Return what the model is told of a value: text as it is, data as JSON, anything else as str() has it."""
    if isinstance(value, str):
        return _cut(value)
    from pydantic_core import to_json as dumped

    try:
        return _cut(dumped(value, fallback=str).decode())
    except ValueError:  # it holds itself, or bytes that are no text
        return _cut(str(value))


def _raised(error: Exception) -> Outcome:
    return Outcome(content=_cut(f"{type(error).__name__}: {error}").content, is_error=True)


def _cut(text: str) -> Outcome:
    text = text.encode("utf-8", "replace").decode()  # half a character can't be sent
    if len(text) <= MAX_OUTPUT_CHARACTERS:
        return Outcome(content=text)
    return Outcome(
        content=f"{text[:MAX_OUTPUT_CHARACTERS]}\n… cut off: these are the first {MAX_OUTPUT_CHARACTERS:,} of "
        f"{len(text):,} characters. Ask for less at a time."
    )


def _refused(call: ToolCall | str, complaint: str) -> Outcome:
    log.warning("Tool %s was not run: %s", call, _shown(complaint))
    return Outcome(content=complaint, is_error=True)


def _as_before(found: Effect, outcome: Outcome, call: ToolCall) -> Outcome:
    """Return what the ledger has of a call; what may happen once may have happened with other arguments."""
    if json.loads(found.arguments) == json.loads(call.intent.arguments):
        log.info("Tool %s ran before and returned: %s", call, _shown(outcome.content))
        return outcome
    return _refused(
        call,
        f"Nothing was done: {found.tool} may run once, and has run with the arguments {found.arguments.decode()}. "
        f"It returned: {outcome.content}",
    )


def _unknown(found: Effect) -> EffectUnknown:
    return EffectUnknown(
        f"The tool {found.tool} may run once. It began at {_when(found.began_ms)} with the arguments "
        f"{_shown(found.arguments.decode())}, and its process ended before it could say how it went, so it may have "
        "happened or not. It is not run again. Find out, and say so: `airflow-llm effects settle "
        f"{found.id[:12]} --output '…'` with what it returned, or `… --did-not-happen`, so that it may run. Then "
        "clear the task: what was paid is kept."
    )


def _when(ms: int) -> str:
    return f"{dt.datetime.fromtimestamp(ms / 1000, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


def _shown(text: str, most: int = 200) -> str:
    """Return a text for the log: one line, shortened."""
    line = json.dumps(text[: most + 1], ensure_ascii=False)[1:-1].replace('\\"', '"')
    return line if len(text) <= most else f"{line[:most]}…"
