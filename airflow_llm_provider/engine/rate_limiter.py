"""The rate limiter: no more calls per minute than the account allows, over all processes that share a ledger."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import sqlalchemy as sa

from airflow_llm_provider.engine.endpoint import limits_in_headers
from airflow_llm_provider.engine.request import BYTES_PER_TOKEN, Request
from airflow_llm_provider.errors import LLMError, RampLimited, RateLimited, RetryableError
from airflow_llm_provider.ledger import rate_limits
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.rate_limits import (
    MAX_PERMITS_AT_ONCE,
    NO_AMOUNTS,
    Amounts,
    Bucket,
    LimiterState,
    Limits,
    PermitBlock,
)
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.pricing import Usage

log = logging.getLogger(__name__)

T = TypeVar("T")

_FRESH_S = 0.5  # the state read from the ledger is taken as current for this long
_FIRST_GUESS_OUTPUT_TOKENS = 300.0
_MIN_WEIGHT = 0.1  # the least weight of the latest reply in the estimate for the next call
_STORE_AGAIN_S = 60.0  # unchanged limits are stored again after this long
_MAX_CALLS_BEFORE_LIMITS = 32  # calls sent before the first reply, when no limit is known yet
_WAIT_FOR_LIMITS_S = 2.0  # how long the other calls wait for that reply
_EXPIRES_S = 0.1  # an unused permit is dropped after this long; it caps the rate at 110 % in any second
_SPARE_EXPIRES_S = 2.0  # the same for a permit that was available at once, and whose rate is booked already
_MIN_SLEEP_S = 0.04  # permits due within it are given together, because waking up costs more than a permit
_SPARE_S = 0.5  # permits are leased in advance for the calls expected in this time


class _BucketState:
    """One bucket of limits as this process knows it. Times are of the process's monotonic clock.

    Attributes:
        max_pause_s: The longest pause that is waited for, in seconds.
        paused_until_s: When the pause ends that the API asked for.
        current_limits: The limits that were learned from headers, in any process.
    """

    def __init__(self, bucket: Bucket, ledger: Ledger, now: Callable[[], float], max_pause_s: float) -> None:
        self.bucket, self.ledger, self.now, self.max_pause_s = bucket, ledger, now, max_pause_s
        self.paused_until_s = float("-inf")
        self._read_at_s = self._limited_until_s = self._slowed_at_s = self._stored_at_s = float("-inf")
        self._known_pause_ms = 0.0
        self._stored_limits = self.current_limits = Limits()
        self._unlimited_calls, self._first_limits = 0, asyncio.Event()
        self._correction = NO_AMOUNTS
        self._tokens_per_byte = 1 / BYTES_PER_TOKEN
        self._expected_output = _FIRST_GUESS_OUTPUT_TOKENS
        self._replies = 0
        self._reading: asyncio.Task[None] | None = None
        self._publishing: set[asyncio.Task[None]] = set()

    @property
    def is_fresh(self) -> bool:
        """Whether the state was read recently enough to send a request."""
        return self.now() - self._read_at_s < _FRESH_S

    @property
    def is_limited(self) -> bool:
        """Whether a limit is known. Without one, calls need no permits."""
        return bool(self.bucket.stated) or self.now() < self._limited_until_s

    def try_unlimited(self) -> bool:
        """Count a call without a permit; return False if it has to wait for what the first reply says of limits."""
        self._unlimited_calls += 1
        return self._first_limits.is_set() or self._unlimited_calls <= _MAX_CALLS_BEFORE_LIMITS

    async def wait_for_first_limits(self) -> None:
        """Wait a short time for the limits in the headers of the first reply."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._first_limits.wait(), _WAIT_FOR_LIMITS_S)
        # After a timeout, too: the server may be slow, or state no limits at all.
        self._first_limits.set()

    async def refresh(self) -> None:
        """Read the state that all processes share; concurrent callers share one read."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_state())
            self._reading.add_done_callback(_ignore_exception)
        # Other callers wait for the same read, so a caller that is cancelled must not cancel it.
        await asyncio.shield(self._reading)

    async def lease_block(
        self, holder: str, dag_id: str, costs: list[Amounts], spare: int
    ) -> tuple[PermitBlock, float]:
        """Reserve a block of permits, and book the difference of earlier calls from what was expected.

        Args:
            holder: The process that leases.
            dag_id: The DAG; DAGs share a bucket fairly.
            costs: What each waiting call is expected to use.
            spare: How many more permits to lease if they are available at once.

        Returns:
            The block, and the time from which its waits count.
        """
        want = rate_limits.PermitRequest(
            bucket=self.bucket,
            holder=holder,
            dag_id=dag_id,
            costs=costs,
            spare=spare,
            correction=self._correction,
        )
        # Taken before the transaction: what other calls add while it runs goes with the next block.
        self._correction = NO_AMOUNTS

        try:
            block, at_s = await self.ledger.write(
                self._timed(lambda connection, now_ms: rate_limits.take_permits(connection, now_ms, want))
            )
        except LLMError:
            self.add_correction(want.correction)
            raise
        self._apply_state(block.state, at_s)
        return block, at_s

    def cost(self, request: Request) -> Amounts:
        """Return what a call is expected to use: requests, input tokens, output tokens."""
        output = min(self._expected_output, request.max_tokens)
        return (1.0, request.input_ceiling_tokens * self._tokens_per_byte, output)

    def learn(self, expected: Amounts, took: Amounts, ceiling_tokens: int) -> None:
        """Correct the bucket and the estimates for later calls by what a call used."""
        self._replies += 1
        weight = max(_MIN_WEIGHT, 1 / (self._replies + 1))  # the first guess is worth one reply
        self._tokens_per_byte += (took[1] / ceiling_tokens - self._tokens_per_byte) * weight
        self._expected_output += (took[2] - self._expected_output) * weight
        self.add_correction((took[0] - expected[0], took[1] - expected[1], took[2] - expected[2]))

    def add_correction(self, more: Amounts) -> None:
        """Add to the correction that goes with the next block; negative amounts are given back."""
        if not self.is_limited:
            return
        owed = self._correction
        self._correction = (owed[0] + more[0], owed[1] + more[1], owed[2] + more[2])

    def give_back(self, unused: Amounts) -> None:
        """Give back what was leased and not used, with the next block."""
        self.add_correction((-unused[0], -unused[1], -unused[2]))

    def pause(self, quiet_s: float, *, limited_at_s: float | None, is_ramp: bool = False) -> None:
        """Send nothing for a while, in all processes.

        Args:
            quiet_s: Seconds to pause.
            limited_at_s: When the call got its permit that the API refused with a 429; the rate is then cut.
            is_ramp: Whether the rate was not too high, and only grew too fast: it is then held, and not halved.
        """
        until_s = self.now() + quiet_s
        is_slower = limited_at_s is not None and limited_at_s > self._slowed_at_s
        if not is_slower and until_s < self.paused_until_s + 0.1:
            return  # an earlier reply of the same moment has said so already
        self.paused_until_s = max(self.paused_until_s, until_s)
        if is_slower:
            self._slowed_at_s = self.now()
        self._publish(
            lambda connection, now_ms: rate_limits.slow_down(
                connection,
                now_ms,
                self.bucket,
                quiet_s=max(0.0, until_s - self.now()),
                limited_ago_s=self.now() - limited_at_s if limited_at_s is not None else None,
                is_ramp=is_ramp,
            )
        )

    def read_headers(self, headers: Mapping[str, str]) -> bool:
        """Learn the limits from a response; return whether it states any.

        They are stored once more than half of one is used, because until then no call has to wait; limits that are
        stored already are replaced as soon as the server states others.
        """
        if self.bucket.stated:
            return True
        limits, is_half_used = limits_in_headers(headers)
        is_new = limits != self._stored_limits or self.now() - self._stored_at_s > _STORE_AGAIN_S
        has_changed = self.is_limited and bool(self.current_limits) and limits != self.current_limits
        if limits and ((is_half_used and is_new) or has_changed):
            self._stored_limits = self.current_limits = limits
            self._stored_at_s = self.now()
            self._publish(
                lambda connection, now_ms: rate_limits.store_limits(connection, now_ms, self.bucket, limits)
            )
        # Otherwise the waiting calls go on when the limits are stored: see `_publish`.
        elif not is_half_used:
            self._first_limits.set()
        return bool(limits)

    def forget_limits(self) -> None:
        """Forget the limits that were learned: a reply came that states none."""
        if self.current_limits and not self.bucket.stated:
            self._stored_limits = self.current_limits = Limits()
            self._publish(
                lambda connection, now_ms: rate_limits.forget_limits(connection, now_ms, self.bucket)
            )

    async def close(self) -> None:
        """Finish storing, and give back what was leased and not used."""
        if self._publishing:
            await asyncio.wait(self._publishing)
        if self.is_limited and self._correction != NO_AMOUNTS:
            correction, self._correction = self._correction, NO_AMOUNTS
            try:
                await self.ledger.write(
                    lambda connection, now_ms: rate_limits.correct(
                        connection, now_ms, self.bucket, correction
                    )
                )
            except LLMError as error:
                log.warning(
                    "Unused permits of the rate limit could not be given back; they expire by themselves. %s",
                    error,
                )

    def _timed(
        self, work: Callable[[sa.Connection, int], T]
    ) -> Callable[[sa.Connection, int], tuple[T, float]]:
        """Take this process's time in the transaction itself, because committing and waking up take time."""

        def timed(connection: sa.Connection, now_ms: int) -> tuple[T, float]:
            at_s = self.now()
            return work(connection, now_ms), at_s

        return timed

    async def _read_state(self) -> None:
        read = self._timed(lambda connection, now_ms: rate_limits.read_state(connection, now_ms, self.bucket))
        self._apply_state(*await self.ledger.read(read))

    def _apply_state(self, shared: LimiterState, at_s: float) -> None:
        self._read_at_s = max(self._read_at_s, at_s)
        if shared.quiet_until_ms > self._known_pause_ms:  # a new pause
            self._known_pause_ms = shared.quiet_until_ms
            self.paused_until_s = max(
                self.paused_until_s, at_s + (shared.quiet_until_ms - shared.now_ms) / 1000
            )
        self._limited_until_s = at_s + (shared.paced_until_ms - shared.now_ms) / 1000
        self.current_limits = shared.learnt

    def _publish(self, work: Callable[[sa.Connection, int], LimiterState]) -> None:
        """Store what the API said in the ledger at once, while the call goes on."""

        async def store() -> None:
            try:
                self._apply_state(*await self.ledger.write(self._timed(work)))
            except LLMError as error:
                log.warning(
                    "What the API said of its rate limits could not be stored for the other processes. %s",
                    error,
                )
            self._first_limits.set()

        task = asyncio.create_task(store())
        # asyncio holds only a weak reference to a task, which could be collected before it is done.
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)


def _ignore_exception(task: asyncio.Task[None]) -> None:
    """Keep asyncio from warning of an exception that was not retrieved."""
    if not task.cancelled():
        task.exception()  # raised where the task is awaited, if it still is


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

    def __init__(self, state: _BucketState, dag_id: str, sleep: Callable[[float], Awaitable[None]]) -> None:
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
                    await self._sleep(min(max(wait_s, _MIN_SLEEP_S), _FRESH_S))
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
            self._fetching.add_done_callback(_ignore_exception)
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
        self._buckets: dict[Bucket, _BucketState] = {}
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
                self._buckets[bucket] = _BucketState(bucket, self._ledger, self._now, self._max_pause_s)
            queue = _PermitQueue(self._buckets[bucket], scope.dag_id, self._sleep)
            self._queues[scope.connection_id, model, scope.dag_id] = queue
        cost = queue.state.cost(request)
        await queue.acquire(cost)
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
        is_limit_stated: Whether the headers of the response state a limit.
    """

    queue: _PermitQueue
    cost: Amounts
    ceiling_tokens: int
    at_s: float
    is_limit_stated: bool = False

    async def wait_out_pause(self) -> None:
        """Wait until the pause ends, if one began since the permit was given."""
        await self.queue.wait_out_pause()

    def read_headers(self, headers: Mapping[str, str]) -> None:
        """Learn the limits from a response's headers."""
        self.is_limit_stated = self.queue.state.read_headers(headers)

    def record_usage(self, usage: Usage) -> None:
        """Correct the bucket by what the call used."""
        # Tokens read from the prompt cache do not count against the limits.
        took = (1.0, float(usage.input_tokens - usage.cache_read_tokens), float(usage.output_tokens))
        self.queue.state.learn(self.cost, took, self.ceiling_tokens)
        # Only a reply tells that there is no limit any more. An error, such as a gateway's, states none anyway.
        if not self.is_limit_stated:
            self.queue.state.forget_limits()

    def record_error(self, error: Exception) -> None:
        """Pause all processes if the error asks for it, and give back the tokens of a call that was not billed."""
        if not isinstance(error, RetryableError):
            return
        state = self.queue.state
        if not error.billed:
            state.give_back((0.0, *self.cost[1:]))
        limited_at_s = self.at_s if isinstance(error, RateLimited) else None
        if error.retry_after_s or limited_at_s is not None:
            is_ramp = isinstance(error, RampLimited)
            state.pause(error.retry_after_s or 0.0, limited_at_s=limited_at_s, is_ramp=is_ramp)

    def release(self) -> None:
        """Give the permit to the next waiting call; nothing was sent with it."""
        self.queue.put_back(self.cost)
