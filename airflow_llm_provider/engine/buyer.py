"""The buyer: one request, paid at most once."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from airflow_llm_provider.engine.client import Client
from airflow_llm_provider.engine.pace import Pace, Permit
from airflow_llm_provider.engine.purchase import Purchase, Tally
from airflow_llm_provider.engine.reply import Message
from airflow_llm_provider.engine.request import Request, ceiling_micro_usd
from airflow_llm_provider.engine.retry import DEFAULT_POLICIES, Policies, retrying
from airflow_llm_provider.engine.warm import Warmth
from airflow_llm_provider.errors import AnswerError, KeyBusy, LLMError, NetworkError, RetryableError
from airflow_llm_provider.ledger.budgets import BudgetRefusal, budget_error
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.rate_limits import Limits
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
    new_attempt_id,
)
from airflow_llm_provider.pricing import LIST_PRICES, Prices


@dataclass(kw_only=True)
class Buyer:
    """Looks a request up, and buys it where nobody has.

    client: the wire. ledger: what was paid. limits: what the connection says of them, which sets the pace.
    prices: what the connection pays.
    other_clients: wires of other connections, that fallbacks may use; other_prices: what those pay, by their ids.
    timeout_s: for one send; deadline_s: for a request with all its retries, from its first send.

    Belongs to one event loop; never make one before a fork.
    """

    client: Client
    ledger: Ledger
    limits: Limits = field(default_factory=Limits)
    prices: Prices = LIST_PRICES
    other_clients: list[Client] = field(default_factory=list)
    other_prices: dict[str, Prices] = field(default_factory=dict)
    timeout_s: float = 300.0
    deadline_s: float = 900.0
    policies: Policies = field(default_factory=lambda: DEFAULT_POLICIES)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    tally: Tally = field(default_factory=Tally)
    warmth: Warmth = field(default_factory=Warmth, repr=False)
    pace: Pace = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.pace = Pace(self.ledger, self.limits, patience_s=self.deadline_s)

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
        client: Client | None = None,
    ) -> Purchase:
        """Return the settled reply to one request: from the ledger, or bought now.

        policies, client: instead of the buyer's own.
        """
        if answer := await self.ledger.find_reply(request.fingerprint, scope, reuse):
            return Purchase.from_ledger(answer, purpose=purpose)
        entry = NewAttempt(
            fingerprint=request.fingerprint,
            scope=scope,
            reuse=reuse,
            model=request.model,
            purpose=purpose,
            parent=parent,
            item_id=item_id,
            ceiling_micro_usd=ceiling_micro_usd(request, self._prices(scope)),
            version=request.version,
            family=request.family,
            ceiling_tokens=request.input_ceiling_tokens,
        )
        async with self.warmth.of(request):
            # The deadline is one for sending: how long the queue is says nothing of this call.
            sends = _Sends(permit=await self.pace.permit(request, scope))
            loop = retrying(deadline_s=self.deadline_s, policies=policies or self.policies, sleep=self.sleep)
            return await loop(self._send, request, entry, client or self.client, sends)

    def adopt(self, client: Client) -> Client:
        """Return the client like this one that is in use already, or take it in, to be closed with the others."""
        for known in (self.client, *self.other_clients):
            if known == client:
                return known
        self.other_clients.append(client)
        return client

    def keep_prompt(self, request: Request, bought: Purchase) -> None:
        """Keep the prompt of an answer that turned out to be none, where the payload policy has it."""
        if bought.sends:
            self.ledger.record_later(PromptToKeep(bought.attempt_id, request.fingerprint, _prompt(request)))

    def keep_complaint(self, bought: Purchase, error: AnswerError) -> None:
        """Keep what is wrong with an answer beside it, whoever bought it."""
        if bought.attempt_id:
            self.ledger.record_later(InvalidAnswer(bought.attempt_id, type(error).__name__, str(error)))

    async def close(self) -> None:
        """Commit what is pending and close the connections."""
        try:
            await self.pace.close()
            for client in (self.client, *self.other_clients):
                await client.close()
        finally:
            await asyncio.to_thread(self.ledger.close)

    async def _send(self, request: Request, entry: NewAttempt, client: Client, sends: _Sends) -> Purchase:
        """Open an attempt, send it, settle it."""
        permit, sends.permit = sends.permit or await self.pace.permit(request, entry.scope), None
        try:
            opened = await self._open(request, entry, permit)
        except BaseException:
            permit.unused()
            raise
        if isinstance(opened, SettledReply):
            permit.unused()
            return Purchase.from_ledger(opened, purpose=entry.purpose)
        entry = opened
        sends.count += 1
        started = time.monotonic()
        try:
            raw = await client.send(request, timeout_s=self.timeout_s, heed=permit.heed)
            message = Message.parse(raw)
            latency_s = time.monotonic() - started
            card = self._prices(entry.scope).card(request.model)
            cost = card.price_micro_usd(message.usage) if card else None
        except LLMError as error:
            permit.failed(error)
            self.tally.unproven += _may_be_billed(error)
            await self.ledger.record(_failure(request, entry, error))
            raise
        except BaseException as error:  # cancelled, or a fault of ours: neither key nor money stays held
            self.tally.unproven += 1
            why = "Cancelled in flight." if isinstance(error, asyncio.CancelledError) else repr(error)
            self.ledger.record_later(_failure(request, entry, NetworkError(why, billed=True)))
            raise
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
        permit.spent(message.usage)
        self.tally.add(message.usage, cost)
        return Purchase(
            purpose=entry.purpose,
            message=message,
            attempt_id=entry.id,
            cost_micro_usd=cost,
            latency_s=latency_s,
            sends=sends.count,
        )

    def _prices(self, scope: CallScope) -> Prices:
        return self.other_prices.get(scope.connection_id, self.prices)

    async def _open(self, request: Request, entry: NewAttempt, permit: Permit) -> NewAttempt | SettledReply:
        """Claim the request's key and reserve its ceiling, waiting while somebody else holds the key or the money."""
        patience_s = self.deadline_s
        while True:
            entry = dataclasses.replace(entry, id=new_attempt_id())
            opened = await self.ledger.open(entry)
            if isinstance(opened, SettledReply):
                return opened
            if isinstance(opened, OpenedAttempt):
                return entry
            if isinstance(opened, BudgetRefusal) and not opened.may_fit:
                raise budget_error(opened, request.model, entry.scope.connection_id)
            # Somebody else is asking the same, or holds what this call could cost. The answer, what is then left
            # of the money, or the end of the lease, is worth waiting for.
            wait_s = 0.2 + random.random() * 0.3
            patience_s -= wait_s
            if patience_s < 0 and isinstance(opened, BudgetRefusal):
                raise budget_error(opened, request.model, entry.scope.connection_id)
            if patience_s < 0:
                raise KeyBusy(
                    f"Another task has been asking the same for {self.deadline_s:g} s, the total deadline. Its answer "
                    "will serve the next try; raise deadline_s in the connection if calls take that long."
                )
            await self.sleep(wait_s)
            await permit.outlast_silence()


@dataclass(slots=True)
class _Sends:
    """How often a request was sent, and the permit for the first time."""

    permit: Permit | None
    count: int = 0


def _prompt(request: Request) -> Callable[[], bytes]:
    return lambda: request.body(request.schema)


def _failure(request: Request, entry: NewAttempt, error: LLMError) -> Failure:
    return Failure(
        attempt_id=entry.id,
        fingerprint=request.fingerprint,
        billed=_may_be_billed(error),
        error_class=type(error).__name__,
        error=str(error),
        prompt=_prompt(request),
    )


def _may_be_billed(error: LLMError) -> bool:
    return isinstance(error, RetryableError) and error.billed
