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

from airflow_llm_provider.engine.request import BYTES_PER_TOKEN, Request
from airflow_llm_provider.errors import LLMError, RateLimited, RetryableError
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

LOOK_S = 0.5  # how long what the ledger said is taken to hold
_FIRST_GUESS_OUTPUT_TOKENS = 300.0
_LEARNING = 0.1  # the least weight of the latest reply in what is expected of the next
_NOTED_AGAIN_S = 60.0
_NO_LIMIT = 10**12  # a minute: what says so much says nothing
_UNHEARD = 32  # calls that go to a server that has not yet said a word of its limits
_FIRST_WORD_S = 2.0  # how long the others wait for it
_HEADERS = [
    (f"anthropic-ratelimit-{kind}-limit", f"anthropic-ratelimit-{kind}-remaining")
    for kind in ("requests", "input-tokens", "output-tokens")
]


class _BucketState:
    """One bucket as one process sees it; times here are by the loop's clock.

    max_pause_s: the longest silence that is waited for.
    paused_until_s: when the silence that somebody was asked for ends.
    """

    def __init__(self, bucket: Bucket, ledger: Ledger, now: Callable[[], float], max_pause_s: float) -> None:
        self.bucket, self.ledger, self.now, self.max_pause_s = bucket, ledger, now, max_pause_s
        self.paused_until_s = float("-inf")
        self._looked_s = self._paced_until_s = self._cut_s = self._noted_s = float("-inf")
        self._heard_ms = 0.0
        self._learnt = self._in_force = Limits()
        self._gone, self._heard = 0, asyncio.Event()
        self._correction = NO_AMOUNTS
        self._tokens_a_byte = 1 / BYTES_PER_TOKEN
        self._usual_output = _FIRST_GUESS_OUTPUT_TOKENS
        self._replies = 0
        self._looking: asyncio.Task[None] | None = None
        self._publishing: set[asyncio.Task[None]] = set()

    # -- what holds now ------------------------------------------------------------------------------

    @property
    def is_fresh(self) -> bool:
        """Tell whether what is known is recent enough to send by."""
        return self.now() - self._looked_s < LOOK_S

    @property
    def is_paced(self) -> bool:
        """Tell whether a limit is known: without one, calls go as they come."""
        return bool(self.bucket.stated) or self.now() < self._paced_until_s

    def admits(self) -> bool:
        """Count a call that goes without a permit; False while too many have gone for the little that is known."""
        self._gone += 1
        return self._heard.is_set() or self._gone <= _UNHEARD

    async def wait_for_first_limits(self) -> None:
        """Wait for what the first replies say of the limits; not for long, as slow answers are no refusals."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._heard.wait(), _FIRST_WORD_S)
        self._heard.set()

    async def look(self) -> None:
        """Read what the other processes were told; one reads for all who ask meanwhile."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(_ignore_exception)
        await asyncio.shield(self._looking)

    async def take(
        self, holder: str, dag_id: str, costs: list[Amounts], spare: int
    ) -> tuple[PermitBlock, float]:
        """Take a block of permits, and book what the last calls took more or less than expected.

        Returns it with the time that its waits are counted from.
        """
        want = rate_limits.PermitRequest(
            bucket=self.bucket,
            holder=holder,
            dag_id=dag_id,
            costs=costs,
            spare=spare,
            correction=self._correction,
        )
        self._correction = NO_AMOUNTS

        try:
            block, at_s = await self.ledger.write(
                self._timed(lambda connection, now_ms: rate_limits.take_permits(connection, now_ms, want))
            )
        except LLMError:
            self.owe(want.correction)
            raise
        self._apply_notice(block.state, at_s)
        return block, at_s

    # -- what calls take -----------------------------------------------------------------------------

    def cost(self, request: Request) -> Amounts:
        """Return what a call is expected to take."""
        output = min(self._usual_output, request.max_tokens)
        return (1.0, request.input_ceiling_tokens * self._tokens_a_byte, output)

    def learn(self, expected: Amounts, took: Amounts, ceiling_tokens: int) -> None:
        """Correct what was expected of a call by what it took, for it and for the next."""
        self._replies += 1
        weight = max(_LEARNING, 1 / (self._replies + 1))  # the first guess is worth one reply
        self._tokens_a_byte += (took[1] / ceiling_tokens - self._tokens_a_byte) * weight
        self._usual_output += (took[2] - self._usual_output) * weight
        self.owe((took[0] - expected[0], took[1] - expected[1], took[2] - expected[2]))

    def owe(self, more: Amounts) -> None:
        """Book that more was taken than permitted, with the next block; negative amounts are given back."""
        if not self.is_paced:
            return
        owed = self._correction
        self._correction = (owed[0] + more[0], owed[1] + more[1], owed[2] + more[2])

    def take_back(self, unused: Amounts) -> None:
        """Give back what was permitted and not taken, with the next block."""
        self.owe((-unused[0], -unused[1], -unused[2]))

    # -- what the server says ------------------------------------------------------------------------

    def pause(self, quiet_s: float, *, limited_at_s: float | None) -> None:
        """Be silent for so long, and tell the others.

        limited_at_s: when the call was permitted that was refused as one too many; its pace is cut by half.
        """
        until_s = self.now() + quiet_s
        is_cut = limited_at_s is not None and limited_at_s > self._cut_s
        if not is_cut and until_s < self.paused_until_s + 0.1:
            return  # others of the same wave have said so
        self.paused_until_s = max(self.paused_until_s, until_s)
        if is_cut:
            self._cut_s = self.now()
        self._publish(
            lambda connection, now_ms: rate_limits.slow_down(
                connection,
                now_ms,
                self.bucket,
                quiet_s=max(0.0, until_s - self.now()),
                limited_ago_s=self.now() - limited_at_s if limited_at_s is not None else None,
            )
        )

    def read_headers(self, headers: Mapping[str, str]) -> None:
        """Learn the limits from a response, once more than half of one is used: till then nothing need wait.

        Those that hold already are replaced as soon as the server states others.
        """
        if self.bucket.stated:
            return
        limits, is_tight = _limits_in(headers)
        is_new = limits != self._learnt or self.now() - self._noted_s > _NOTED_AGAIN_S
        has_changed = self.is_paced and bool(self._in_force) and limits != self._in_force
        if limits and ((is_tight and is_new) or has_changed):
            self._learnt = self._in_force = limits
            self._noted_s = self.now()
            self._publish(
                lambda connection, now_ms: rate_limits.store_limits(connection, now_ms, self.bucket, limits)
            )
        elif not is_tight:
            self._heard.set()

    async def close(self) -> None:
        """Finish what is being told, and give back what is left."""
        if self._publishing:
            await asyncio.wait(self._publishing)
        if self.is_paced and self._correction != NO_AMOUNTS:
            correction, self._correction = self._correction, NO_AMOUNTS
            try:
                await self.ledger.write(
                    lambda connection, now_ms: rate_limits.correct(
                        connection, now_ms, self.bucket, correction
                    )
                )
            except LLMError as error:
                log.warning("Permits that were not used could not be given back; they pass. %s", error)

    def _timed(
        self, work: Callable[[sa.Connection, int], T]
    ) -> Callable[[sa.Connection, int], tuple[T, float]]:
        """Note the loop's time beside the database's: what comes after, a commit or a wake-up, takes its time."""

        def timed(connection: sa.Connection, now_ms: int) -> tuple[T, float]:
            at_s = self.now()
            return work(connection, now_ms), at_s

        return timed

    async def _look(self) -> None:
        read = self._timed(lambda connection, now_ms: rate_limits.read_state(connection, now_ms, self.bucket))
        self._apply_notice(*await self.ledger.read(read))

    def _apply_notice(self, notice: LimiterState, at_s: float) -> None:
        self._looked_s = max(self._looked_s, at_s)
        if notice.quiet_until_ms > self._heard_ms:  # news
            self._heard_ms = notice.quiet_until_ms
            self.paused_until_s = max(
                self.paused_until_s, at_s + (notice.quiet_until_ms - notice.now_ms) / 1000
            )
        self._paced_until_s = at_s + (notice.paced_until_ms - notice.now_ms) / 1000
        self._in_force = notice.learnt

    def _publish(self, work: Callable[[sa.Connection, int], LimiterState]) -> None:
        """Write what was said into the ledger at once, while the call goes on."""

        async def tell() -> None:
            try:
                self._apply_notice(*await self.ledger.write(self._timed(work)))
            except LLMError as error:
                log.warning(
                    "The other processes could not be told what the API says of its limits. %s", error
                )
            self._heard.set()

        task = asyncio.create_task(tell())
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)


def _ignore_exception(task: asyncio.Task[None]) -> None:
    """Let a task fail without a warning."""
    if not task.cancelled():
        task.exception()  # whoever waits for it gets it; perhaps nobody does any more


def _limits_in(headers: Mapping[str, str]) -> tuple[Limits, bool]:
    """Return the limits that headers state, and whether more than half of one is used."""
    found: list[int | None] = []
    is_tight = False
    for of_limit, of_rest in _HEADERS:
        try:
            limit, remaining = int(headers[of_limit]), int(headers[of_rest])
        except (KeyError, ValueError):
            limit = 0
        if not 0 < limit < _NO_LIMIT:
            found.append(None)
            continue
        found.append(limit)
        is_tight = is_tight or remaining < limit / 2
    return Limits(rpm=found[0], itpm=found[1], otpm=found[2]), is_tight


_LAPSES_S = 0.1  # so late a permit is void: 110 % in a second, 102 % in five, is the most that comes of it
_TICK_S = 0.04  # permits that are due within it are given together: a wake-up costs more than a permit
_SPARE_S = 0.5  # permits are taken ahead for the calls expected so soon
_KEPT_S = 2.0


@dataclass(frozen=True, slots=True)
class _HeldPermit:
    """A permit at hand: when it may be used, and until when.

    block: number of the block it came with; 0 for one that was put back.
    is_kept: it was there for the taking, so it goes back when it is not used; its time on the timeline is not
        its own.
    """

    at_s: float
    until_s: float
    cost: Amounts
    block: int
    is_kept: bool


class _PermitQueue:
    """Calls of one DAG in one process, which share a bucket with all others that wait for it."""

    def __init__(self, state: _BucketState, dag_id: str, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.state = state
        self._dag_id, self._sleep = dag_id, sleep
        self._waiting: deque[tuple[asyncio.Future[None], Amounts]] = deque()
        self._held: deque[_HeldPermit] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._fetching: asyncio.Task[None] | None = None
        self._blocks, self._handed, self._leased_s = 0, 0, state.now()

    async def acquire(self, cost: Amounts) -> None:
        """Wait for a permit."""
        if not self._waiting and self._try_now(cost):
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append((waiter, cost))
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and not waiter.exception():
                self.put_back(cost)
            raise

    async def wait_out_pause(self) -> None:
        """Wait while the server wants silence; raises RateLimited where that is longer than anybody waits."""
        state = self.state
        while True:
            if not state.is_fresh:
                await state.look()
            if (wait_s := state.paused_until_s - state.now()) <= 0:
                return
            if wait_s > state.max_pause_s:
                raise RateLimited(
                    f"{state.bucket.name or 'This connection'}: the API asked all callers to wait another "
                    f"{wait_s:.0f} s. Nothing was sent, and paid answers are kept. Retry the task after that time.",
                    retry_after_s=wait_s,
                )
            # Unpaced calls are spread, so that those who waited together do not come back together.
            await self._sleep(wait_s + (0.0 if state.is_paced else random.random()))

    def put_back(self, cost: Amounts) -> None:
        """Leave a permit that was not used to the next who waits."""
        if not self.state.is_paced:
            return
        now = self.state.now()
        self._held.appendleft(_HeldPermit(now, now + _LAPSES_S, cost, block=0, is_kept=True))
        if self._anyone_waits():
            self._admit()

    def close(self) -> None:
        """End, and leave what is at hand to be given back."""
        for task in (self._serving, self._fetching):
            if task:
                task.cancel()
        for place in self._held:
            self.state.take_back(place.cost)
        self._held.clear()

    def _try_now(self, cost: Amounts) -> bool:
        """Let a call go where it need not wait."""
        state = self.state
        now = state.now()
        if not state.is_fresh or now < state.paused_until_s:
            return False
        if not state.is_paced:
            return state.admits()
        place = self._next()
        if place is None or place.at_s > now:
            return False
        self._hand_out(cost)
        return True

    async def _serve(self) -> None:
        """Let those who wait go, each in its turn, until nobody waits."""
        state = self.state
        try:
            while self._anyone_waits():
                if state.now() < state.paused_until_s:
                    self._held.clear()  # all take new ones, from the end of the silence
                if not state.is_fresh or state.now() < state.paused_until_s:
                    await self.wait_out_pause()
                    if not self._anyone_waits():
                        break
                # What was heard just now holds, however long the machine took to hear it.
                if not state.is_paced:
                    if not self._admit_unpaced():
                        await state.wait_for_first_limits()
                elif (place := self._next()) is None:
                    await asyncio.shield(self._start_fetching())
                elif (wait_s := place.at_s - state.now()) > 0:
                    await self._sleep(min(max(wait_s, _TICK_S), LOOK_S))
                else:
                    self._admit()
        except Exception as error:  # noqa: BLE001  # whatever it is, everybody who waits must hear of it
            for waiter, _ in self._waiting:
                if not waiter.done():
                    waiter.set_exception(error)
            self._waiting.clear()
        finally:
            self._serving = None

    def _anyone_waits(self) -> bool:
        """Tell whether anybody waits, those who gave up passed over."""
        while self._waiting and self._waiting[0][0].done():
            self._waiting.popleft()
        return bool(self._waiting)

    def _admit(self) -> None:
        """Give the next permit, which is due, to the next who waits."""
        waiter, cost = self._waiting.popleft()
        waiter.set_result(None)
        self._hand_out(cost)

    def _admit_unpaced(self) -> bool:
        """Let those go who need no permit; return whether that is all who wait."""
        while self._anyone_waits() and self.state.admits():
            self._waiting.popleft()[0].set_result(None)
        return not self._waiting

    def _next(self) -> _HeldPermit | None:
        """Return the next permit at hand, void ones passed over."""
        now = self.state.now()
        while self._held and self._held[0].until_s < now:
            if (place := self._held.popleft()).is_kept:
                self.state.take_back(place.cost)
        return self._held[0] if self._held else None

    def _hand_out(self, cost: Amounts) -> None:
        place = self._held.popleft()
        self._handed += 1
        self.state.owe((0.0, cost[1] - place.cost[1], cost[2] - place.cost[2]))
        # The next block is asked for when this one begins: all who wait come round in the same time, whatever
        # the length of their blocks.
        is_last_block = not self._held or self._held[-1].block == place.block
        if is_last_block and len(self._waiting) > len(self._held):
            self._start_fetching()

    def _start_fetching(self) -> asyncio.Task[None]:
        """Take a block, unless one is being taken."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch_block())
            self._fetching.add_done_callback(_ignore_exception)
        return self._fetching

    async def _fetch_block(self) -> None:
        """Take a block for those who wait and have no permit at hand yet."""
        have = len(self._held)
        waiting = (cost for waiter, cost in self._waiting if not waiter.done())
        costs = list(islice(waiting, have, have + MAX_PERMITS_AT_ONCE))
        if not costs:
            return
        elapsed_s = max(self.state.now() - self._leased_s, _SPARE_S / 2)
        expected = int(self._handed / elapsed_s * _SPARE_S)
        self._handed, self._leased_s = 0, self.state.now()
        block, from_s = await self.state.take(
            self.state.ledger.holder, self._dag_id, costs, max(0, expected - len(costs))
        )
        self._blocks += 1
        mean = tuple(sum(part) / len(costs) for part in zip(*costs, strict=True))
        for number, wait_s in enumerate(block.waits_s):
            cost = costs[number] if number < len(costs) else mean
            at_s = from_s + wait_s
            lapses_s = max(_LAPSES_S, block.interval_s) if wait_s else _KEPT_S
            self._held.append(
                _HeldPermit(at_s, at_s + lapses_s, cost, block=self._blocks, is_kept=not wait_s)
            )


class RateLimiter:
    """The pace of all processes that share a ledger, as one of them sees it.

    limits: what the connection states; where it states none, they are learnt, a model at a time, from the
        API's headers and its 429s. Until then nothing is paced, but that 32 calls go before the first reply;
        and the ledger is asked twice a second whether the others were told to be silent.
    max_pause_s: the longest silence that is waited for: what asks for more is an error with its `retry_after_s`.

    Belongs to one event loop.
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
        self._ledger, self._now, self._sleep = ledger, now, sleep
        self._limits, self._max_pause_s = limits or Limits(), max_pause_s
        self._others: dict[str, Limits] = {}
        self._buckets: dict[Bucket, _BucketState] = {}
        self._queues: dict[tuple[str, str | None, str], _PermitQueue] = {}

    def set_limits(self, connection_id: str, limits: Limits) -> None:
        """State the limits of another connection, one that fallbacks use."""
        self._others[connection_id] = limits

    async def acquire(self, request: Request, scope: CallScope) -> Permit:
        """Wait until `request` may be sent; raises LedgerUnavailable, and RateLimited for too long a silence."""
        stated = self._others.get(scope.connection_id, self._limits)
        # Stated limits bound the connection; those the API tells of are a model's.
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
        """Give back what was leased and not used."""
        for queue in self._queues.values():
            queue.close()
        for state in self._buckets.values():
            await state.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Permit:
    """Leave to send one request now; whoever has it says how that went.

    cost: what the call is expected to take. ceiling_tokens: the most its input can have.
    """

    queue: _PermitQueue
    cost: Amounts
    ceiling_tokens: int
    at_s: float

    async def wait_out_pause(self) -> None:
        """Wait while there is silence: some time has passed since the permit was given."""
        await self.queue.wait_out_pause()

    def read_headers(self, headers: Mapping[str, str]) -> None:
        """Learn the limits from a response's headers."""
        self.queue.state.read_headers(headers)

    def record_usage(self, usage: Usage) -> None:
        """Correct what the call was expected to take by what it took."""
        # What is read from the prompt cache counts against no limit.
        took = (1.0, float(usage.input_tokens - usage.cache_read_tokens), float(usage.output_tokens))
        self.queue.state.learn(self.cost, took, self.ceiling_tokens)

    def record_error(self, error: Exception) -> None:
        """HeaderCallback what a failure says: one was told to wait, all obey."""
        if not isinstance(error, RetryableError):
            return
        state = self.queue.state
        if not error.billed:
            state.take_back((0.0, *self.cost[1:]))
        is_limit = isinstance(error, RateLimited)
        if error.retry_after_s or is_limit:
            state.pause(error.retry_after_s or 0.0, limited_at_s=self.at_s if is_limit else None)

    def release(self) -> None:
        """Leave the permit to the next who waits: there was nothing to send."""
        self.queue.put_back(self.cost)
