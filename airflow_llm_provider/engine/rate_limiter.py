"""The rate limiter: no more calls per minute than the account allows, over all processes that share a ledger."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import islice

from airflow_llm_provider.engine.bucket import FRESH_S, BucketState, ignore_exception
from airflow_llm_provider.engine.endpoint import Stated
from airflow_llm_provider.engine.refusals import Overload
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import RampLimited, RateLimited, RetryableError
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.rate_limits import MAX_PERMITS_AT_ONCE, Amounts, Bucket, Limits
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.pricing import Usage

_EXPIRES_S = 0.1  # an unused permit is dropped after this long; it caps the rate at 110 % in any second
_SPARE_EXPIRES_S = 2.0  # the same for a permit that was available at once, and whose rate is booked already
_MIN_SLEEP_S = 0.04  # permits due within it are given together, because waking up costs more than a permit
_SPARE_S = 0.5  # permits are leased in advance for the calls expected in this time


@dataclass(frozen=True, slots=True)
class _LeasedPermit:
    """A permit that this process has leased and not used yet.

    Attributes:
        at_s: When it may be used.
        until_s: When it expires.
        cost: What it was leased for.
        block: The number of its block; 0 for a permit that was put back.
        is_unreserved: It was available at once and has no time of its own, so it is given back when it expires.
    """

    at_s: float
    until_s: float
    cost: Amounts
    block: int
    is_unreserved: bool


class _PermitQueue:
    """The calls of one DAG in this process that wait for permits of a bucket, in order."""

    def __init__(self, state: BucketState, dag_id: str, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.state = state
        self._dag_id, self._sleep = dag_id, sleep
        self._waiting: deque[tuple[asyncio.Future[None], Amounts]] = deque()
        self._leased: deque[_LeasedPermit] = deque()
        self._leased_under = state.current_limits
        self._serving: asyncio.Task[None] | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._blocks, self._admitted, self._leased_at_s = 0, 0, state.now()

    async def acquire(self, cost: Amounts) -> None:
        """Wait for a permit; raises what reading or leasing raised."""
        if not self._waiting and self._try_at_once(cost):
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append((waiter, cost))
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        try:
            await waiter
        except asyncio.CancelledError:
            # The permit came at the same time as the cancellation. Another call can use it.
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                self.put_back(cost)
            raise

    async def wait_out_pause(self) -> None:
        """Wait until the pause ends; raises RateLimited if that takes longer than `max_pause_s`."""
        state = self.state
        while True:
            if not state.is_fresh:
                await state.refresh()
            if (wait_s := state.paused_until_s - state.now()) <= 0:
                return
            if wait_s > state.max_pause_s:
                raise RateLimited(
                    f"{state.bucket.name or 'This connection'}: the API asked all callers to wait another "
                    f"{wait_s:.0f} s. Nothing was sent, and paid answers are kept. Retry the task after that time.",
                    retry_after_s=wait_s,
                )
            # Without permits, the calls that waited together are spread over a second.
            await self._sleep(wait_s + (0.0 if state.is_limited else random.random()))

    def put_back(self, cost: Amounts) -> None:
        """Give an unused permit to the next waiting call."""
        if not self.state.is_limited:
            return
        now = self.state.now()
        self._leased.appendleft(_LeasedPermit(now, now + _EXPIRES_S, cost, block=0, is_unreserved=True))
        if self._anyone_waits():
            self._admit()

    def close(self) -> None:
        """Stop, and mark unused permits to be given back."""
        for task in (self._serving, self._fetching):
            if task:
                task.cancel()
        for permit in self._leased:
            self.state.give_back(permit.cost)
        self._leased.clear()

    def _try_at_once(self, cost: Amounts) -> bool:
        """Let a call go if it does not have to wait."""
        state = self.state
        now = state.now()
        if not state.is_fresh or now < state.paused_until_s:
            return False
        if not state.is_limited:
            return state.try_unlimited()
        permit = self._next()
        if permit is None or permit.at_s > now:
            return False
        self._use_permit(cost)
        return True

    async def _serve(self) -> None:
        """Let the waiting calls go in order, until there are none."""
        state = self.state
        try:
            while self._anyone_waits():
                if state.now() < state.paused_until_s:
                    self._leased.clear()  # they are leased anew, to count from the end of the pause
                if not state.is_fresh or state.now() < state.paused_until_s:
                    await self.wait_out_pause()
                    if not self._anyone_waits():
                        break
                if state.current_limits != self._leased_under:
                    self._leased.clear()  # their times follow from another limit
                # The state was read just now: it counts, however long reading it took.
                if not state.is_limited:
                    if not self._admit_unlimited():
                        await state.wait_for_first_limits()
                elif (permit := self._next()) is None:
                    await asyncio.shield(self._start_fetching())
                elif (wait_s := permit.at_s - state.now()) > 0:
                    await self._sleep(min(max(wait_s, _MIN_SLEEP_S), FRESH_S))
                else:
                    self._admit()
        except Exception as error:  # noqa: BLE001  # raised in every call that waits
            for waiter, _ in self._waiting:
                if not waiter.done():
                    waiter.set_exception(error)
            self._waiting.clear()
        finally:
            self._serving = None

    def _anyone_waits(self) -> bool:
        """Tell whether a call waits; drop those that were cancelled."""
        while self._waiting and self._waiting[0][0].done():
            self._waiting.popleft()
        return bool(self._waiting)

    def _admit(self) -> None:
        """Give the next permit, which is due, to the next waiting call."""
        waiter, cost = self._waiting.popleft()
        waiter.set_result(None)
        self._use_permit(cost)

    def _admit_unlimited(self) -> bool:
        """Let calls go without permits; return whether none is left."""
        while self._anyone_waits() and self.state.try_unlimited():
            self._waiting.popleft()[0].set_result(None)
        return not self._waiting

    def _next(self) -> _LeasedPermit | None:
        """Return the next leased permit; drop expired ones."""
        now = self.state.now()
        while self._leased and self._leased[0].until_s < now:
            if (permit := self._leased.popleft()).is_unreserved:
                self.state.give_back(permit.cost)
        return self._leased[0] if self._leased else None

    def _use_permit(self, cost: Amounts) -> None:
        permit = self._leased.popleft()
        self._admitted += 1
        self.state.add_correction((0.0, cost[1] - permit.cost[1], cost[2] - permit.cost[2]))
        # The next block is leased when the last one begins, so that all DAGs get their next block after the same
        # time, whatever the length of their blocks.
        is_last_block = not self._leased or self._leased[-1].block == permit.block
        if is_last_block and len(self._waiting) > len(self._leased):
            self._start_fetching()

    def _start_fetching(self) -> asyncio.Task[None]:
        """Lease a block, unless that is under way."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch_block())
            self._fetching.add_done_callback(ignore_exception)
        return self._fetching

    async def _fetch_block(self) -> None:
        """Lease a block for the waiting calls for which no permit is leased yet."""
        have = len(self._leased)
        waiting = (cost for waiter, cost in self._waiting if not waiter.done())
        costs = list(islice(waiting, have, have + MAX_PERMITS_AT_ONCE))
        if not costs:
            return
        elapsed_s = max(self.state.now() - self._leased_at_s, _SPARE_S / 2)
        expected = int(self._admitted / elapsed_s * _SPARE_S)
        self._admitted, self._leased_at_s = 0, self.state.now()
        self._leased_under = self.state.current_limits
        block, from_s = await self.state.lease_block(
            self.state.ledger.holder, self._dag_id, costs, max(0, expected - len(costs))
        )
        self._blocks += 1
        mean = tuple(sum(part) / len(costs) for part in zip(*costs, strict=True))
        for number, wait_s in enumerate(block.waits_s):
            cost = costs[number] if number < len(costs) else mean
            at_s = from_s + wait_s
            lapses_s = max(_EXPIRES_S, block.interval_s) if wait_s else _SPARE_EXPIRES_S
            self._leased.append(
                _LeasedPermit(at_s, at_s + lapses_s, cost, block=self._blocks, is_unreserved=not wait_s)
            )


class RateLimiter:
    """Keeps all processes that share a ledger within the account's rate limits.

    Limits that a connection states hold for the connection. Where it states none, they are learned per model from
    the API's headers and its 429s. Until a limit is known, calls need no permits; only 32 are sent before the first
    reply, and the ledger is read twice a second for pauses that the API asked other processes for.

    An instance belongs to one event loop.
    """

    def __init__(
        self,
        ledger: Ledger,
        limits: Limits | None = None,
        *,
        max_pause_s: float = 900.0,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Make a rate limiter.

        Args:
            ledger: Where the limits and the leased permits are stored.
            limits: What the connection states.
            max_pause_s: The longest pause that is waited for. A longer one raises RateLimited with its
                `retry_after_s`.
            now: A monotonic clock.
            sleep: How to wait.
        """
        self._ledger, self._now, self._sleep = ledger, now, sleep
        self._limits, self._max_pause_s = limits or Limits(), max_pause_s
        self._others: dict[str, Limits] = {}
        self._buckets: dict[Bucket, BucketState] = {}
        self._queues: dict[tuple[str, str | None, str], _PermitQueue] = {}

    def set_limits(self, connection_id: str, limits: Limits) -> None:
        """State the limits of another connection, to which fallbacks go."""
        self._others[connection_id] = limits

    async def acquire(self, request: Request, scope: CallScope) -> Permit:
        """Wait until a request may be sent.

        Raises:
            RateLimited: The API asked for a pause that is longer than `max_pause_s`.
            LedgerUnavailable: The shared state can't be read.
        """
        stated = self._others.get(scope.connection_id, self._limits)
        # Stated limits hold for the connection; the API's headers are about one model.
        model = None if stated else request.model
        queue = self._queues.get((scope.connection_id, model, scope.dag_id))
        if queue is None:
            bucket = Bucket(connection_id=scope.connection_id, model=model, stated=stated)
            if bucket not in self._buckets:
                self._buckets[bucket] = BucketState(bucket, self._ledger, self._now, self._max_pause_s)
            queue = _PermitQueue(self._buckets[bucket], scope.dag_id, self._sleep)
            self._queues[scope.connection_id, model, scope.dag_id] = queue
        cost = queue.state.cost(request)
        await queue.acquire(cost)
        queue.state.refusals.count_send()
        return Permit(queue=queue, cost=cost, ceiling_tokens=request.input_ceiling_tokens, at_s=self._now())

    async def close(self) -> None:
        """Give back the permits that were leased and not used."""
        for queue in self._queues.values():
            queue.close()
        for state in self._buckets.values():
            await state.close()


@dataclass(kw_only=True, slots=True)
class Permit:
    """Permission to send one request now. Its holder reports how that went.

    Attributes:
        queue: Where it came from.
        cost: What the call is expected to use.
        ceiling_tokens: The most input tokens that the call can have.
        at_s: When it was given.
        stated: What the response stated of rate limits; None before it came.
    """

    queue: _PermitQueue
    cost: Amounts
    ceiling_tokens: int
    at_s: float
    stated: Stated | None = None

    async def wait_out_pause(self) -> None:
        """Wait until the pause ends, if one began since the permit was given."""
        await self.queue.wait_out_pause()

    def read_headers(self, headers: Mapping[str, str]) -> None:
        """Learn the limits from a response's headers."""
        self.stated = self.queue.state.read_headers(headers)

    def record_usage(self, usage: Usage) -> None:
        """Correct the bucket by what the call used."""
        # Tokens read from the prompt cache do not count against the limits.
        took = (1.0, float(usage.input_tokens - usage.cache_read_tokens), float(usage.output_tokens))
        self.queue.state.learn(self.cost, took, self.ceiling_tokens)
        # Only a reply tells that there is no limit any more. An error, such as a gateway's, states none anyway.
        if self.stated is None or not self.stated.limits:
            self.queue.state.forget_limits()

    def record_error(self, error: Exception) -> None:
        """Slow all processes down if a limit is used up, and give back the tokens of a call that was not billed.

        A server may refuse a single call for reasons of its own: then only that call waits. Others wait, too, where
        the response states that a limit is used up, and the rate is cut where more calls are refused than usual.
        """
        if not isinstance(error, RetryableError):
            return
        state = self.queue.state
        if not error.billed:
            state.give_back((0.0, *self.cost[1:]))
        if not isinstance(error, RateLimited):
            return
        state.count_refusal(self.at_s)
        if isinstance(error, RampLimited):  # the rate is not too high, and has grown too fast
            state.slow_down(Overload(share=0.0), self.at_s)
        is_used_up = self.stated is not None and self.stated.is_used_up
        if error.retry_after_s and is_used_up and state.refusals.may_be_used_up:
            state.pause(error.retry_after_s)

    def release(self) -> None:
        """Give the permit to the next waiting call; nothing was sent with it."""
        self.queue.put_back(self.cost)
