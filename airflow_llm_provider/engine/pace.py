"""Pace: no more a minute than the account allows, and silence for as long as the server asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from airflow_llm_provider.engine.gate import Gate
from airflow_llm_provider.engine.queue import Queue
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import RateLimited, RetryableError
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.rate_limits import Amounts, Bucket, Limits
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.pricing import Usage


class Pace:
    """The pace of all processes that share a ledger, as one of them sees it.

    limits: what the connection states; where it states none, they are learnt, a model at a time, from the
        API's headers and its 429s. Until then nothing is paced, but that 32 calls go before the first reply;
        and the ledger is asked twice a second whether the others were told to be silent.
    patience_s: the longest silence that is waited for: what asks for more is an error with its `retry_after_s`.

    Belongs to one event loop.
    """

    def __init__(
        self,
        ledger: Ledger,
        limits: Limits | None = None,
        *,
        patience_s: float = 900.0,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ledger, self._now, self._sleep = ledger, now, sleep
        self._limits, self._patience_s = limits or Limits(), patience_s
        self._others: dict[str, Limits] = {}
        self._gates: dict[Bucket, Gate] = {}
        self._queues: dict[tuple[str, str | None, str], Queue] = {}

    def limit(self, connection_id: str, limits: Limits) -> None:
        """State the limits of another connection, one that fallbacks use."""
        self._others[connection_id] = limits

    async def permit(self, request: Request, scope: CallScope) -> Permit:
        """Wait until `request` may be sent; raises LedgerUnavailable, and RateLimited for too long a silence."""
        stated = self._others.get(scope.connection_id, self._limits)
        # Stated limits bound the connection; those the API tells of are a model's.
        model = None if stated else request.model
        queue = self._queues.get((scope.connection_id, model, scope.dag_id))
        if queue is None:
            bucket = Bucket(connection_id=scope.connection_id, model=model, stated=stated)
            if bucket not in self._gates:
                self._gates[bucket] = Gate(bucket, self._ledger, self._now, self._patience_s)
            queue = Queue(self._gates[bucket], scope.dag_id, self._sleep)
            self._queues[scope.connection_id, model, scope.dag_id] = queue
        cost = queue.gate.cost(request)
        await queue.permit(cost)
        return Permit(queue=queue, cost=cost, ceiling_tokens=request.input_ceiling_tokens, at_s=self._now())

    async def close(self) -> None:
        """Give back what was leased and not used."""
        for queue in self._queues.values():
            queue.close()
        for gate in self._gates.values():
            await gate.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Permit:
    """Leave to send one request now; whoever has it says how that went.

    cost: what the call is expected to take. ceiling_tokens: the most its input can have.
    """

    queue: Queue
    cost: Amounts
    ceiling_tokens: int
    at_s: float

    async def outlast_silence(self) -> None:
        """Wait while there is silence: some time has passed since the permit was given."""
        await self.queue.silence()

    def heed(self, headers: Mapping[str, str]) -> None:
        """Learn the limits from a response's headers."""
        self.queue.gate.heed(headers)

    def spent(self, usage: Usage) -> None:
        """Correct what the call was expected to take by what it took."""
        # What is read from the prompt cache counts against no limit.
        took = (1.0, float(usage.input_tokens - usage.cache_read_tokens), float(usage.output_tokens))
        self.queue.gate.learn(self.cost, took, self.ceiling_tokens)

    def failed(self, error: Exception) -> None:
        """Heed what a failure says: one was told to wait, all obey."""
        if not isinstance(error, RetryableError):
            return
        gate = self.queue.gate
        if not error.billed:
            gate.take_back((0.0, *self.cost[1:]))
        is_limit = isinstance(error, RateLimited)
        if error.retry_after_s or is_limit:
            gate.hear(error.retry_after_s or 0.0, limited_at_s=self.at_s if is_limit else None)

    def unused(self) -> None:
        """Leave the permit to the next who waits: there was nothing to send."""
        self.queue.put_back(self.cost)
