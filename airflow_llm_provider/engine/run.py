"""The engine: one request bought at most once, and many of them at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_llm_provider.engine.client import Client
from airflow_llm_provider.engine.flow import for_each
from airflow_llm_provider.engine.pace import Pace
from airflow_llm_provider.engine.purchase import Purchase, Tally, add_up
from airflow_llm_provider.engine.reply import Message, Reply, require_complete
from airflow_llm_provider.engine.request import Request, ceiling_micro_usd
from airflow_llm_provider.engine.retry import POLICIES, RetryPolicy, retrying
from airflow_llm_provider.engine.validate import OutputType
from airflow_llm_provider.engine.warm import Warmth
from airflow_llm_provider.errors import (
    AnswerError,
    InvalidOutput,
    LLMError,
    NetworkError,
    Overloaded,
    RetryableError,
    ServerError,
)
from airflow_llm_provider.ledger.records import (
    Answer,
    Busy,
    CallScope,
    Entry,
    Failure,
    KeptPrompt,
    Reopening,
    Reuse,
    Settlement,
    Sighting,
)
from airflow_llm_provider.ledger.store import Ledger
from airflow_llm_provider.pricing import rate_card

TEXT = OutputType()


@dataclass(kw_only=True)
class Engine:
    """Asks, pays once, remembers.

    client: the wire. ledger: what was paid. pace: when to send.
    timeout_s: for one send; deadline_s: for a request with all its retries, from its first send.
    fallbacks: model ids asked in turn when a model stays overloaded or down for all its retries.

    Belongs to one event loop; never make one before a fork.
    """

    client: Client
    ledger: Ledger
    pace: Pace = field(default_factory=Pace)
    timeout_s: float = 300.0
    deadline_s: float = 900.0
    fallbacks: Sequence[str] = ()
    policies: Mapping[type[RetryableError], RetryPolicy] = field(default_factory=lambda: POLICIES)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    tally: Tally = field(default_factory=Tally)
    warmth: Warmth = field(default_factory=Warmth, repr=False)

    async def ask(
        self,
        request: Request,
        *,
        scope: CallScope,
        reuse: Reuse = "run",
        output: OutputType = TEXT,
        max_repairs: int = 0,
        item_id: str | None = None,
        retry_dead: bool = False,
    ) -> Reply:
        """Return a valid answer to `request`, buying each of its calls at most once.

        An answer of the wrong shape is sent back with what is wrong, up to `max_repairs` times; every
        repair is a request like any other, so a retry replays the chain from the ledger. With `retry_dead`
        a chain that ended badly in an earlier run is asked anew.

        Raises AnswerError when what was paid is no answer, and what sending raised when nothing was.
        """
        try:
            return await self._ask_or_fall_back(request, scope, reuse, output, max_repairs, item_id)
        except AnswerError as error:
            if not (retry_dead and error.reused):
                raise
            for fingerprint in error.fingerprints:
                await self.ledger.record(Reopening(fingerprint, scope))
        return await self._ask_or_fall_back(request, scope, reuse, output, max_repairs, item_id)

    async def recall(
        self, sighting: str, *, scope: CallScope, reuse: Reuse, output: OutputType = TEXT, final: bool
    ) -> Reply | None:
        """Return the valid answer an unchanged document got, without reading it; None when there is none.

        final: raise AnswerError when what it got is no answer, rather than None; for when nothing would be
        done about it anyway.
        """
        answer = await self.ledger.recall(sighting, scope, reuse)
        if answer is None:
            return None
        bought = Purchase.from_ledger(answer)
        try:
            value = _check(bought.message, output)
        except AnswerError as error:
            if final:
                error.fingerprints, error.reused = (answer.fingerprint,), True
                raise
            return None
        return add_up(value, [bought], trace_id=scope.trace_id)

    def sight(self, sighting: str, request: Request) -> None:
        """Remember what a document in this state is asked."""
        self.ledger.note(Sighting(sighting, request.fingerprint))

    async def map(
        self,
        requests: Iterable[Request],
        done: Callable[[int, Reply | LLMError], None],
        *,
        max_in_flight: int = 256,
        **asking: Any,
    ) -> None:
        """Ask many, `max_in_flight` at a time, and hand each outcome to `done(index, outcome)` as it comes.

        `requests` may be a generator: it is drawn from as there is room. One failure costs the others
        nothing. `asking` goes to `ask`.
        """

        async def one(numbered: tuple[int, Request]) -> None:
            index, request = numbered
            outcome: Reply | LLMError
            try:
                outcome = await self.ask(request, **asking)
            except LLMError as error:
                outcome = error
            done(index, outcome)

        await for_each(enumerate(requests), one, limit=max_in_flight)

    async def close(self) -> None:
        """Commit what is pending and close the connections."""
        try:
            await self.client.close()
        finally:
            await asyncio.to_thread(self.ledger.close)

    async def _ask_or_fall_back(self, request: Request, *asking: Any) -> Reply:
        for model in self.fallbacks:
            try:
                return await self._ask(request, *asking)
            except (Overloaded, ServerError, NetworkError):
                request = dataclasses.replace(request, model=model)
        return await self._ask(request, *asking)

    async def _ask(
        self,
        request: Request,
        scope: CallScope,
        reuse: Reuse,
        output: OutputType,
        max_repairs: int,
        item_id: str | None,
    ) -> Reply:
        chain: list[Purchase] = []
        fingerprints: list[str] = []
        while True:
            fingerprints.append(request.fingerprint)
            parent = chain[-1].attempt_id if chain else None
            bought = await self._obtain(request, scope, reuse, item_id, parent)
            chain.append(bought)
            try:
                return add_up(_check(bought.message, output), chain, trace_id=scope.trace_id)
            except AnswerError as error:
                self._keep_prompt(request, bought)
                if not isinstance(error, InvalidOutput) or len(chain) > max_repairs:
                    error.fingerprints = tuple(fingerprints)
                    error.reused = not any(bought.sends for bought in chain)
                    raise
                request = request.followed_by(
                    {"role": "assistant", "content": bought.message.text or "(nothing)"},
                    {"role": "user", "content": _REPAIR.format(complaint=error)},
                )

    async def _obtain(
        self, request: Request, scope: CallScope, reuse: Reuse, item_id: str | None, parent: str | None
    ) -> Purchase:
        """Return the settled reply to one request: from the ledger, or bought now."""
        if answer := await self.ledger.answered(request.fingerprint, scope, reuse):
            return Purchase.from_ledger(answer)
        entry = Entry(
            fingerprint=request.fingerprint,
            scope=scope,
            reuse=reuse,
            model=request.model,
            purpose="repair" if parent else "answer",
            parent=parent,
            item_id=item_id,
            ceiling_micro_usd=ceiling_micro_usd(request),
        )
        async with self.warmth.of(request):
            return await retrying(deadline_s=self.deadline_s, policies=self.policies, sleep=self.sleep)(
                self._send, request, entry, _Sends()
            )

    async def _send(self, request: Request, entry: Entry, sends: _Sends) -> Purchase:
        """Open an attempt, send it, settle it."""
        opened: Any
        patience_s = self.deadline_s
        while True:
            await self.pace.permit(request)
            entry = dataclasses.replace(entry, id=uuid.uuid4().hex)
            opened = await self.ledger.open(entry)
            if isinstance(opened, Answer):
                return Purchase.from_ledger(opened)
            if not isinstance(opened, Busy):
                break
            # Somebody else is asking the same. Its answer, or the end of its lease, is worth waiting for.
            wait_s = 0.2 + random.random() * 0.3
            patience_s -= wait_s
            if patience_s < 0:
                raise NetworkError("Another task has been asking the same for longer than the deadline.")
            await self.sleep(wait_s)
        sends.count += 1
        started = time.monotonic()
        try:
            raw = await self.client.send(request, timeout_s=self.timeout_s)
            message = Message.parse(raw)
        except LLMError as error:
            if isinstance(error, RetryableError) and error.retry_after_s:
                self.pace.heard(error.retry_after_s)
            await self.ledger.record(self._failure(request, entry, error))
            raise
        except asyncio.CancelledError:
            self.ledger.note(self._failure(request, entry, NetworkError("Cancelled in flight.", billed=True)))
            raise
        latency_s = time.monotonic() - started
        card = rate_card(request.model)
        cost = card.price_micro_usd(message.usage) if card else None
        await self.ledger.record(
            Settlement(
                attempt_id=entry.id,
                fingerprint=request.fingerprint,
                reply=raw,
                prompt=_prompt(request),
                stop_reason=message.stop_reason,
                usage=message.usage,
                cost_micro_usd=cost,
                latency_ms=round(latency_s * 1000),
            )
        )
        self.pace.learn(message.usage)
        self.tally.add(message.usage, cost)
        return Purchase(
            message=message, attempt_id=entry.id, cost_micro_usd=cost, latency_s=latency_s, sends=sends.count
        )

    def _failure(self, request: Request, entry: Entry, error: LLMError) -> Failure:
        billed = isinstance(error, RetryableError) and error.billed
        self.tally.unproven += billed
        return Failure(
            attempt_id=entry.id,
            fingerprint=request.fingerprint,
            billed=billed,
            error_class=type(error).__name__,
            error=str(error),
            prompt=_prompt(request),
        )

    def _keep_prompt(self, request: Request, bought: Purchase) -> None:
        if bought.sends:
            self.ledger.note(KeptPrompt(bought.attempt_id, request.fingerprint, _prompt(request)))


_REPAIR = """Your answer was not valid:

{complaint}

Answer again, in full, with this put right and everything else kept."""


@dataclass(slots=True)
class _Sends:
    """How often a request was sent."""

    count: int = 0


def _check(message: Message, output: OutputType) -> Any:
    require_complete(message)
    return output.parse(message.text)


def _prompt(request: Request) -> Callable[[], bytes]:
    return lambda: request.body(request.schema)
