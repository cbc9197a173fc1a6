"""One bucket of rate limits as this process knows it: its state in the ledger, what replies teach of it, its pauses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import sqlalchemy as sa

from airflow_llm_provider.engine.endpoint import Stated, stated_in_headers
from airflow_llm_provider.engine.refusals import Overload, Refusals
from airflow_llm_provider.engine.request import BYTES_PER_TOKEN, Request
from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.ledger import rate_limits
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.rate_limits import (
    NO_AMOUNTS,
    Amounts,
    Bucket,
    Cut,
    LimiterState,
    Limits,
    PermitBlock,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

FRESH_S = 0.5  # the state read from the ledger is taken as current for this long
_FIRST_GUESS_OUTPUT_TOKENS = 300.0
_MIN_WEIGHT = 0.1  # the least weight of the latest reply in the estimate for the next call
_STORE_AGAIN_S = 60.0  # unchanged limits are stored again after this long
_MAX_CALLS_BEFORE_LIMITS = 32  # calls sent before the first reply, when no limit is known yet
_TOGETHER_S = 0.2  # calls that were sent together are refused within this time
_WAIT_FOR_LIMITS_S = 2.0  # how long the other calls wait for that reply


class BucketState:
    """One bucket of limits as this process knows it. Times are of the process's monotonic clock.

    Attributes:
        max_pause_s: The longest pause that is waited for, in seconds.
        paused_until_s: When the pause ends that the API asked for.
        current_limits: The limits that were learned from headers, in any process.
        refusals: What this process sent, and how much of it got a 429.
    """

    def __init__(self, bucket: Bucket, ledger: Ledger, now: Callable[[], float], max_pause_s: float) -> None:
        self.bucket, self.ledger, self.now, self.max_pause_s = bucket, ledger, now, max_pause_s
        self.paused_until_s = float("-inf")
        self.refusals = Refusals(now)
        self._read_at_s = self._limited_until_s = self._stored_at_s = float("-inf")
        self._known_pause_ms = 0.0
        self._stored_limits = self.current_limits = Limits()
        self._unlimited_calls, self._first_limits = 0, asyncio.Event()
        self._correction = NO_AMOUNTS
        self._tokens_per_byte = 1 / BYTES_PER_TOKEN
        self._expected_output = _FIRST_GUESS_OUTPUT_TOKENS
        self._replies = 0
        self._reading: asyncio.Task[None] | None = None
        self._publishing: set[asyncio.Task[None]] = set()
        self._cutting: asyncio.Task[None] | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether the state was read recently enough to send a request."""
        return self.now() - self._read_at_s < FRESH_S

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
            self._reading.add_done_callback(ignore_exception)
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

    def pause(self, quiet_s: float) -> None:
        """Send nothing for a while, in all processes.

        Args:
            quiet_s: seconds to pause.
        """
        until_s = self.now() + quiet_s
        if until_s < self.paused_until_s + 0.1:
            return  # an earlier reply of the same moment has said so already
        self.paused_until_s = until_s
        self._publish(
            lambda connection, now_ms: rate_limits.pause(
                connection, now_ms, self.bucket, quiet_s=max(0.0, until_s - self.now())
            )
        )

    def count_refusal(self, sent_s: float) -> None:
        """Count a 429, and cut the rate of all processes if it is too high.

        Args:
            sent_s: when the call was sent that got it.
        """
        self.refusals.count_refusal(sent_s)
        if self.refusals.overload and (self._cutting is None or self._cutting.done()):
            self._cutting = self._begin(self._cut_soon(sent_s))

    def slow_down(self, overload: Overload, sent_s: float) -> None:
        """Cut the rate of all processes.

        Args:
            overload: by how much.
            sent_s: when the call was sent that was refused.
        """
        sent_rpm, accepted = self.refusals.lately()
        self._publish(
            lambda connection, now_ms: rate_limits.slow_down(
                connection,
                now_ms,
                self.bucket,
                Cut(
                    share=overload.share,
                    sent_rpm=sent_rpm,
                    accepted=accepted,
                    sent_ago_s=self.now() - sent_s,
                ),
            )
        )

    async def _cut_soon(self, sent_s: float) -> None:
        """Cut the rate once the calls that were sent together have all been refused or taken."""
        await asyncio.sleep(_TOGETHER_S)
        if overload := self.refusals.overload:
            self.slow_down(overload, sent_s)

    def read_headers(self, headers: Mapping[str, str]) -> Stated:
        """Learn the limits from a response, and return what it states.

        They are stored once more than half of one is used, because until then no call has to wait; limits that are
        stored already are replaced as soon as the server states others.
        """
        stated = stated_in_headers(headers)
        if self.bucket.stated:
            return stated
        limits = stated.limits
        is_new = limits != self._stored_limits or self.now() - self._stored_at_s > _STORE_AGAIN_S
        has_changed = self.is_limited and bool(self.current_limits) and limits != self.current_limits
        if limits and ((stated.is_half_used and is_new) or has_changed):
            self._stored_limits = self.current_limits = limits
            self._stored_at_s = self.now()
            self._publish(
                lambda connection, now_ms: rate_limits.store_limits(connection, now_ms, self.bucket, limits)
            )
        # Otherwise the waiting calls go on when the limits are stored: see `_publish`.
        elif not stated.is_half_used:
            self._first_limits.set()
        return stated

    def forget_limits(self) -> None:
        """Forget the limits that were learned: a reply came that states none."""
        if self.current_limits and not self.bucket.stated:
            self._stored_limits = self.current_limits = Limits()
            self._publish(
                lambda connection, now_ms: rate_limits.forget_limits(connection, now_ms, self.bucket)
            )

    async def close(self) -> None:
        """Finish storing, and give back what was leased and not used."""
        while self._publishing:
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
        if shared.cut_rpm:
            self.refusals.note_cut(at_s - (shared.now_ms - shared.cut_ms) / 1000, shared.cut_rpm)
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

        self._begin(store())

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        # asyncio holds only a weak reference to a task, which could be collected before it is done.
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)
        return task


def ignore_exception(task: asyncio.Task[None]) -> None:
    """Keep asyncio from warning of an exception that was not retrieved."""
    if not task.cancelled():
        task.exception()  # raised where the task is awaited, if it still is
