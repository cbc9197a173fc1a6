"""The gate: what one process knows of a bucket of limits, and what it owes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

import sqlalchemy as sa

from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.ledger import rate_limits
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.rate_limits import (
    NO_AMOUNTS,
    Amounts,
    Bucket,
    LimiterState,
    Limits,
    PermitBlock,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

BYTES_A_TOKEN = 4  # of English text; an estimate that the first replies correct
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


class Gate:
    """One bucket as one process sees it; times here are by the loop's clock.

    patience_s: the longest silence that is waited for.
    quiet_until_s: when the silence that somebody was asked for ends.
    """

    def __init__(self, bucket: Bucket, ledger: Ledger, now: Callable[[], float], patience_s: float) -> None:
        self.bucket, self.ledger, self.now, self.patience_s = bucket, ledger, now, patience_s
        self.quiet_until_s = float("-inf")
        self._looked_s = self._paced_until_s = self._cut_s = self._noted_s = float("-inf")
        self._heard_ms = 0.0
        self._learnt = self._in_force = Limits()
        self._gone, self._heard = 0, asyncio.Event()
        self._correction = NO_AMOUNTS
        self._tokens_a_byte = 1 / BYTES_A_TOKEN
        self._usual_output = _FIRST_GUESS_OUTPUT_TOKENS
        self._replies = 0
        self._looking: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()

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

    async def first_word(self) -> None:
        """Wait for what the first replies say of the limits; not for long, as slow answers are no refusals."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._heard.wait(), _FIRST_WORD_S)
        self._heard.set()

    async def look(self) -> None:
        """Read what the other processes were told; one reads for all who ask meanwhile."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(heard_by_somebody)
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
        self._heed_notice(block.notice, at_s)
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

    def hear(self, quiet_s: float, *, limited_at_s: float | None) -> None:
        """Be silent for so long, and tell the others.

        limited_at_s: when the call was permitted that was refused as one too many; its pace is cut by half.
        """
        until_s = self.now() + quiet_s
        is_cut = limited_at_s is not None and limited_at_s > self._cut_s
        if not is_cut and until_s < self.quiet_until_s + 0.1:
            return  # others of the same wave have said so
        self.quiet_until_s = max(self.quiet_until_s, until_s)
        if is_cut:
            self._cut_s = self.now()
        self._tell(
            lambda connection, now_ms: rate_limits.slow_down(
                connection,
                now_ms,
                self.bucket,
                quiet_s=max(0.0, until_s - self.now()),
                limited_ago_s=self.now() - limited_at_s if limited_at_s is not None else None,
            )
        )

    def heed(self, headers: Mapping[str, str]) -> None:
        """Learn the limits from a response, once more than half of one is used: till then nothing need wait.

        Those that hold already are replaced as soon as the server states others.
        """
        if self.bucket.stated:
            return
        limits, is_tight = _stated(headers)
        is_new = limits != self._learnt or self.now() - self._noted_s > _NOTED_AGAIN_S
        has_changed = self.is_paced and bool(self._in_force) and limits != self._in_force
        if limits and ((is_tight and is_new) or has_changed):
            self._learnt = self._in_force = limits
            self._noted_s = self.now()
            self._tell(
                lambda connection, now_ms: rate_limits.store_limits(connection, now_ms, self.bucket, limits)
            )
        elif not is_tight:
            self._heard.set()

    async def close(self) -> None:
        """Finish what is being told, and give back what is left."""
        if self._telling:
            await asyncio.wait(self._telling)
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
        self._heed_notice(*await self.ledger.read(read))

    def _heed_notice(self, notice: LimiterState, at_s: float) -> None:
        self._looked_s = max(self._looked_s, at_s)
        if notice.quiet_until_ms > self._heard_ms:  # news
            self._heard_ms = notice.quiet_until_ms
            self.quiet_until_s = max(
                self.quiet_until_s, at_s + (notice.quiet_until_ms - notice.now_ms) / 1000
            )
        self._paced_until_s = at_s + (notice.paced_until_ms - notice.now_ms) / 1000
        self._in_force = notice.learnt

    def _tell(self, work: Callable[[sa.Connection, int], LimiterState]) -> None:
        """Write what was said into the ledger at once, while the call goes on."""

        async def tell() -> None:
            try:
                self._heed_notice(*await self.ledger.write(self._timed(work)))
            except LLMError as error:
                log.warning(
                    "The other processes could not be told what the API says of its limits. %s", error
                )
            self._heard.set()

        task = asyncio.create_task(tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)


def heard_by_somebody(task: asyncio.Task[None]) -> None:
    """Let a task fail without a warning."""
    if not task.cancelled():
        task.exception()  # whoever waits for it gets it; perhaps nobody does any more


def _stated(headers: Mapping[str, str]) -> tuple[Limits, bool]:
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
