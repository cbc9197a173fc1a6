"""Calls: one request, looked up in the ledger or sent, and paid at most once."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from airflow_llm_provider.billing import Billed
from airflow_llm_provider.engine.ceiling import ceiling_micro_usd
from airflow_llm_provider.engine.cost_booking import CostBooking
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.rate_limiter import Permit, RateLimiter
from airflow_llm_provider.engine.reply import Message, Reply
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.retry import DEFAULT_POLICIES, Policies, retrying
from airflow_llm_provider.errors import AnswerError, KeyBusy, LLMError, NetworkError
from airflow_llm_provider.ledger.budgets import BudgetRefusal, budget_error
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import (
    CallScope,
    Failure,
    InvalidAnswer,
    NewAttempt,
    OpenedAttempt,
    PromptToKeep,
    Reuse,
    SettledReply,
    Settlement,
)
from airflow_llm_provider.pricing import Prices, Usage


@dataclass(kw_only=True, slots=True)
class Tally:
    """What an engine has paid for since it was made.

    Attributes:
        requests: calls with a reply.
        paid_micro_usd: the sum of the known prices.
        unpriced: how many calls have no known price.
        unproven: calls that may have been billed without a reply.
        unproven_micro_usd: the sum of their known ceilings.
    """

    requests: int = 0
    paid_micro_usd: int = 0
    unpriced: int = 0
    unproven: int = 0
    unproven_micro_usd: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    def add(self, usage: Usage, cost_micro_usd: int | None) -> None:
        """Count one call."""
        self.requests += 1
        self.paid_micro_usd += cost_micro_usd or 0
        self.unpriced += cost_micro_usd is None
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        self.cache_read_tokens += usage.cache_read_tokens
        self.cache_write_tokens += usage.cache_write_tokens

    def add_failed(self, billed: bool, ceiling_micro_usd: int | None) -> None:
        """Count one call without a reply, if it may have been billed."""
        if billed:
            self.unproven += 1
            self.unproven_micro_usd += ceiling_micro_usd or 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A settled reply, and where it came from.

    Attributes:
        purpose: `answer`, `repair`, `escalation` (to a stronger model), `tool_turn`, `judge` (a verdict on an answer),
            or `given` (an answer that existed before and cost nothing here).
        message: the reply.
        attempt_id: the row in the ledger; empty for a given answer.
        cost_micro_usd: what it cost when it was paid for; None without a known price.
        latency_s: seconds the API took.
        sends: how often it was sent just now; 0: the reply came from the ledger.
        complaint: what was wrong with the answer.
    """

    purpose: str
    message: Message
    attempt_id: str
    cost_micro_usd: int | None
    latency_s: float
    sends: int
    complaint: str | None = None

    @classmethod
    def from_ledger(cls, answer: SettledReply, *, purpose: str) -> Self:
        """Return a call that was paid for before."""
        return cls(
            purpose=purpose,
            message=Message.parse(answer.reply),
            attempt_id=answer.attempt_id,
            cost_micro_usd=answer.cost_micro_usd,
            latency_s=answer.latency_ms / 1000,
            sends=0,
        )

    @classmethod
    def given(cls, text: str) -> Self:
        """Return a call for an answer that comes from elsewhere."""
        billed = Billed.nothing()
        message = Message(
            model="", stop_reason="end_turn", text=text, content=[], billed=billed, usage=billed.usage
        )
        return cls(purpose="given", message=message, attempt_id="", cost_micro_usd=0, latency_s=0.0, sends=0)

    def saying(self, text: str) -> Self:
        """Return a copy whose text is the whole answer: a small repair replies with some fields only."""
        return dataclasses.replace(self, message=dataclasses.replace(self.message, text=text))


def last_answer(chain: Sequence[Call]) -> Call | None:
    """Return the last call of a chain that is not a verdict on another."""
    return next((purchase for purchase in reversed(chain) if purchase.purpose != "judge"), None)


def add_up(value: Any, chain: Sequence[Call], *, trace_id: str) -> Reply:
    """Add up a chain of calls: the first answer and its repairs."""
    last = last_answer(chain)
    assert last is not None, "a chain is added up after its first answer"
    usages = [purchase.message.usage for purchase in chain]
    costs = [purchase.cost_micro_usd for purchase in chain]
    known = [cost for cost in costs if cost is not None]
    return Reply(
        value=value,
        text=last.message.text,
        model=last.message.model,
        stop_reason=last.message.stop_reason or "",
        usage=usages[0] if len(usages) == 1 else Usage.total(usages),
        # A sum without an unpriced call would look like the whole cost.
        cost_micro_usd=sum(known) if len(known) == len(costs) else None,
        reused=not any(purchase.sends for purchase in chain),
        attempts=sum(purchase.sends for purchase in chain),
        repairs=sum(purchase.purpose == "repair" for purchase in chain),
        latency_s=sum(purchase.latency_s for purchase in chain),
        trace_id=trace_id,
        attempt_id=last.attempt_id,
        complaints=tuple(purchase.complaint for purchase in chain if purchase.complaint),
    )


# Below about a thousand tokens no model caches a prefix, so there is nothing to wait for.
_WORTH_WARMING_CHARACTERS = 4_000


@dataclass(slots=True)
class CacheWarmup:
    """Prompt caching: one request writes a shared prefix, the others wait for it and read it."""

    _events: dict[str, asyncio.Event] = field(default_factory=dict)

    def guard(self, request: Request) -> _PrefixGuard:
        """Return what a request enters: it waits while another request writes the same prefix to the cache."""
        worth = request.shared_characters >= _WORTH_WARMING_CHARACTERS
        return _PrefixGuard(self._events, request.shared_prefix if worth else "")


@dataclass(slots=True)
class _PrefixGuard:
    """The first request goes alone; the others wait until its reply is there."""

    events: dict[str, asyncio.Event]
    key: str
    first: bool = False

    async def __aenter__(self) -> None:
        if not self.key:
            return
        # The event stays after it was set, so later requests with this prefix go on at once.
        if event := self.events.get(self.key):
            await event.wait()
        else:
            self.events[self.key] = asyncio.Event()
            self.first = True

    async def __aexit__(self, *_: object) -> None:
        # Also after an error. Otherwise the requests that wait for this prefix would never go on.
        if self.first:
            self.events[self.key].set()


class NotSettled(Exception):
    """The ledger has no reply to a request, and nothing may be sent.

    It is not an LLMError, so that no fallback or escalation follows from it.

    Attributes:
        request: what would be sent.
    """

    def __init__(self, request: Request) -> None:
        super().__init__("The ledger has no reply to this request, and nothing may be sent.")
        self.request = request


@dataclass(kw_only=True)
class Calls:
    """Makes calls through an endpoint: each is looked up in the ledger, and sent where it is missing.

    It belongs to one event loop. Never make one before a fork: the ledger's threads and the client's sockets would not
    survive it.

    Attributes:
        endpoint: where calls go, unless they name another.
        ledger: what was asked, paid and answered.
        others: endpoints of other connections, by connection id; see `connect`.
        policies: how often each class of error is retried.
        sleep: waits so many seconds; tests pass a moved clock.
        is_read_only: send nothing and write nothing; a reply that the ledger lacks raises NotSettled. For estimates.
        tally: what was paid since this object was made.
        cost_booking: prices replies, and says what was not expected.
    """

    endpoint: Endpoint
    ledger: Ledger
    others: dict[str, Endpoint] = field(default_factory=dict)
    policies: Policies = field(default_factory=lambda: DEFAULT_POLICIES)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    is_read_only: bool = False
    tally: Tally = field(default_factory=Tally)
    cost_booking: CostBooking = field(default_factory=CostBooking, repr=False)
    cache_warmup: CacheWarmup = field(default_factory=CacheWarmup, repr=False)
    rate_limiter: RateLimiter = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.rate_limiter = RateLimiter(
            self.ledger, self.endpoint.limits, max_pause_s=self.endpoint.deadline_s
        )
        for connection_id, other in self.others.items():
            self.rate_limiter.set_limits(connection_id, other.limits)

    def connect(self, endpoint: Endpoint) -> None:
        """Make the endpoint of another connection known, so that fallbacks can go there.

        A known endpoint with an equal client keeps its client, and with it its open sockets.
        """
        known = self.others.get(endpoint.connection_id)
        if known is not None and known.client == endpoint.client:
            endpoint = dataclasses.replace(endpoint, client=known.client)
        self.others[endpoint.connection_id] = endpoint
        self.rate_limiter.set_limits(endpoint.connection_id, endpoint.limits)

    async def obtain(
        self,
        request: Request,
        *,
        scope: CallScope,
        reuse: Reuse,
        purpose: str = "answer",
        parent: str | None = None,
        item_id: str | None = None,
        policies: Policies | None = None,
    ) -> Call:
        """Return the settled reply to one request: from the ledger, or paid for now.

        Args:
            request: what is asked.
            scope: who asks; its `connection_id` says which endpoint the request goes to.
            reuse: whose answers may be taken.
            purpose: as in Call.
            parent: the id of the attempt that this request follows.
            item_id: the document or row it is about.
            policies: instead of `self.policies`.

        Raises:
            LLMError: when nothing could be sent or no retry helped.
        """
        # Before the permit: an answer from the ledger uses nothing of the rate limit.
        if answer := await self.ledger.find_reply(request.fingerprint, scope, reuse):
            return Call.from_ledger(answer, purpose=purpose)
        if self.is_read_only:
            raise NotSettled(request)
        endpoint = self.others.get(scope.connection_id, self.endpoint)
        entry = NewAttempt(
            fingerprint=request.fingerprint,
            scope=scope,
            reuse=reuse,
            model=request.model,
            purpose=purpose,
            parent=parent,
            item_id=item_id,
            ceiling_micro_usd=ceiling_micro_usd(request, endpoint.prices),
            version=request.version,
            family=request.family,
            ceiling_tokens=request.input_ceiling_tokens,
        )
        # The wait for the cache comes before the permit, so that no permit is held while nothing can be sent.
        async with self.cache_warmup.guard(request):
            # The deadline counts from the first attempt to send: waiting for a permit says nothing about this call.
            sends = _Sends(permit=await self.rate_limiter.acquire(request, scope))
            attempts = retrying(
                deadline_s=self.endpoint.deadline_s, policies=policies or self.policies, sleep=self.sleep
            )
            async for attempt in attempts:
                with attempt:
                    return await self._send(request, entry, endpoint, sends)
        raise AssertionError("the last attempt returns or raises")

    def keep_prompt(self, request: Request, call: Call) -> None:
        """Keep the prompt of an answer that is not valid, where the payload policy says so."""
        if call.sends:
            self.ledger.record_later(PromptToKeep(call.attempt_id, request.fingerprint, _prompt(request)))

    def keep_complaint(self, call: Call, error: AnswerError) -> None:
        """Keep the complaint beside the answer, whichever task paid for it."""
        if call.attempt_id and not self.is_read_only:
            self.ledger.record_later(InvalidAnswer(call.attempt_id, type(error).__name__, error.complaint))

    async def close(self) -> None:
        """Commit what is pending and close the connections."""
        try:
            await self.rate_limiter.close()
            for endpoint in (self.endpoint, *self.others.values()):
                await endpoint.client.close()
        finally:
            # Also after an error, because calls that were paid may still have to be committed. In a thread, because
            # that takes time.
            await asyncio.to_thread(self.ledger.close)

    async def _send(self, request: Request, entry: NewAttempt, endpoint: Endpoint, sends: _Sends) -> Call:
        """Open an attempt, send it, settle it."""
        # The first permit was waited for before the deadline began. Each retry takes a permit of its own.
        permit, sends.permit = sends.permit or await self.rate_limiter.acquire(request, entry.scope), None
        try:
            opened = await self._open(request, entry, permit)
        # Cancellation as well: a permit that is not released is lost to all processes.
        except BaseException:
            permit.release()
            raise
        if isinstance(opened, SettledReply):
            permit.release()
            return Call.from_ledger(opened, purpose=entry.purpose)
        attempt_id = opened.attempt_id
        sends.count += 1
        has_left = asyncio.Event()
        started = time.monotonic()
        try:
            raw = await endpoint.client.send(
                request,
                timeout_s=self.endpoint.timeout_s,
                on_first_byte=has_left.set,
                on_headers=permit.read_headers,
            )
            # Within the `try`: a reply that cannot be read may have been billed, so it is booked like a lost one.
            message = Message.parse(raw)
            latency_s = time.monotonic() - started
            cost = self.cost_booking.cost_micro_usd(
                request,
                message,
                endpoint.prices,
                reserved=entry.ceiling_micro_usd,
                connection_id=entry.scope.connection_id,
            )
        except LLMError as error:
            permit.record_error(error)
            self.tally.add_failed(error.billed, entry.ceiling_micro_usd)
            # Awaited, because the retry claims the same key, which has to be free by then.
            await self.ledger.record(_failure(request, attempt_id, error))
            raise
        except BaseException as error:  # cancelled, or an error of ours: free the claim and the reservation
            self.tally.add_failed(has_left.is_set(), entry.ceiling_micro_usd)
            why = (
                f"{type(error).__name__} {'in flight' if has_left.is_set() else 'before anything was sent'}."
            )
            # Not awaited, since a second cancellation could interrupt the wait. `close` commits what was submitted.
            self.ledger.record_later(
                _failure(request, attempt_id, NetworkError(why, billed=has_left.is_set()))
            )
            raise
        # Committed before the caller gets the reply. If the process is killed after this, the next attempt takes the
        # reply from the ledger.
        await self.ledger.record(
            Settlement(
                attempt_id=attempt_id,
                fingerprint=request.fingerprint,
                reply=raw,
                prompt=_prompt(request),
                stop_reason=message.stop_reason,
                usage=message.usage,
                cost_micro_usd=cost,
                latency_ms=round(latency_s * 1000),
            )
        )
        permit.record_usage(message.usage)
        self.tally.add(message.usage, cost)
        return Call(
            purpose=entry.purpose,
            message=message,
            attempt_id=attempt_id,
            cost_micro_usd=cost,
            latency_s=latency_s,
            sends=sends.count,
        )

    def _prices(self, scope: CallScope) -> Prices:
        return self.others.get(scope.connection_id, self.endpoint).prices

    async def _open(
        self, request: Request, entry: NewAttempt, permit: Permit
    ) -> OpenedAttempt | SettledReply:
        """Claim the request's key and reserve its ceiling; wait while another call holds the key or the money."""
        patience_s = self.endpoint.deadline_s
        while True:
            opened = await self.ledger.open(entry)
            if isinstance(opened, (OpenedAttempt, SettledReply)):
                return opened
            if isinstance(opened, BudgetRefusal) and not opened.may_fit:
                raise budget_error(opened, request.model, entry.scope.connection_id)
            # Another call asks the same, or has reserved the money. Its answer, the money that is left when it settles,
            # or the end of its lease is worth waiting for.
            # The random part keeps calls that wait for the same key from asking at the same time.
            wait_s = 0.2 + random.random() * 0.3
            patience_s -= wait_s
            if patience_s < 0 and isinstance(opened, BudgetRefusal):
                raise budget_error(opened, request.model, entry.scope.connection_id)
            if patience_s < 0:
                raise KeyBusy(
                    f"Another task has been asking the same for {self.endpoint.deadline_s:g} s, the total deadline. "
                    "The next attempt takes its answer; raise deadline_s in the connection if calls take that long."
                )
            await self.sleep(wait_s)
            # The API may have asked for a pause since this call got its permit.
            await permit.wait_out_pause()


@dataclass(slots=True)
class _Sends:
    """How often a request was sent, and the permit for the first attempt."""

    permit: Permit | None
    count: int = 0


def _prompt(request: Request) -> Callable[[], bytes]:
    # Few prompts are kept. The others are never written as JSON.
    return lambda: request.body(request.schema)


def _failure(request: Request, attempt_id: str, error: LLMError) -> Failure:
    return Failure(
        attempt_id=attempt_id,
        fingerprint=request.fingerprint,
        billed=error.billed,
        error_class=type(error).__name__,
        error=str(error),
        prompt=_prompt(request),
    )
