"""The queue: the calls of one DAG that wait for permits, in turn."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice

from airflow_llm_provider.engine.gate import LOOK_S, Gate, heard_by_somebody
from airflow_llm_provider.errors import RateLimited
from airflow_llm_provider.ledger.rate_limits import MAX_PERMITS_AT_ONCE, Amounts

_LAPSES_S = 0.1  # so late a permit is void: 110 % in a second, 102 % in five, is the most that comes of it
_TICK_S = 0.04  # permits that are due within it are given together: a wake-up costs more than a permit
_SPARE_S = 0.5  # permits are taken ahead for the calls expected so soon
_KEPT_S = 2.0


@dataclass(frozen=True, slots=True)
class _Place:
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


class Queue:
    """Calls of one DAG in one process, which share a bucket with all others that wait for it."""

    def __init__(self, gate: Gate, dag_id: str, sleep: Callable[[float], Awaitable[None]]) -> None:
        self.gate = gate
        self._dag_id, self._sleep = dag_id, sleep
        self._waiting: deque[tuple[asyncio.Future[None], Amounts]] = deque()
        self._places: deque[_Place] = deque()
        self._serving: asyncio.Task[None] | None = None
        self._leasing: asyncio.Task[None] | None = None
        self._blocks, self._handed, self._leased_s = 0, 0, gate.now()

    async def permit(self, cost: Amounts) -> None:
        """Wait for a permit."""
        if not self._waiting and self._pass(cost):
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

    async def silence(self) -> None:
        """Wait while the server wants silence; raises RateLimited where that is longer than anybody waits."""
        gate = self.gate
        while True:
            if not gate.is_fresh:
                await gate.look()
            if (wait_s := gate.quiet_until_s - gate.now()) <= 0:
                return
            if wait_s > gate.patience_s:
                raise RateLimited(
                    f"The server of {gate.bucket.name or 'this connection'} has asked all for silence, for another "
                    f"{wait_s:.0f} s. Nothing was sent; what is paid is kept, and a retry after that goes on.",
                    retry_after_s=wait_s,
                )
            # Unpaced calls are spread, so that those who waited together do not come back together.
            await self._sleep(wait_s + (0.0 if gate.is_paced else random.random()))

    def put_back(self, cost: Amounts) -> None:
        """Leave a permit that was not used to the next who waits."""
        if not self.gate.is_paced:
            return
        now = self.gate.now()
        self._places.appendleft(_Place(now, now + _LAPSES_S, cost, block=0, is_kept=True))
        if self._somebody_waits():
            self._admit()

    def close(self) -> None:
        """End, and leave what is at hand to be given back."""
        for task in (self._serving, self._leasing):
            if task:
                task.cancel()
        for place in self._places:
            self.gate.take_back(place.cost)
        self._places.clear()

    def _pass(self, cost: Amounts) -> bool:
        """Let a call go where it need not wait."""
        gate = self.gate
        now = gate.now()
        if not gate.is_fresh or now < gate.quiet_until_s:
            return False
        if not gate.is_paced:
            return gate.admits()
        place = self._next()
        if place is None or place.at_s > now:
            return False
        self._hand_out(cost)
        return True

    async def _serve(self) -> None:
        """Let those who wait go, each in its turn, until nobody waits."""
        gate = self.gate
        try:
            while self._somebody_waits():
                if gate.now() < gate.quiet_until_s:
                    self._places.clear()  # all take new ones, from the end of the silence
                if not gate.is_fresh or gate.now() < gate.quiet_until_s:
                    await self.silence()
                    if not self._somebody_waits():
                        break
                # What was heard just now holds, however long the machine took to hear it.
                if not gate.is_paced:
                    if not self._let_go():
                        await gate.first_word()
                elif (place := self._next()) is None:
                    await asyncio.shield(self._lease())
                elif (wait_s := place.at_s - gate.now()) > 0:
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

    def _somebody_waits(self) -> bool:
        """Tell whether anybody waits, those who gave up passed over."""
        while self._waiting and self._waiting[0][0].done():
            self._waiting.popleft()
        return bool(self._waiting)

    def _admit(self) -> None:
        """Give the next permit, which is due, to the next who waits."""
        waiter, cost = self._waiting.popleft()
        waiter.set_result(None)
        self._hand_out(cost)

    def _let_go(self) -> bool:
        """Let those go who need no permit; return whether that is all who wait."""
        while self._somebody_waits() and self.gate.admits():
            self._waiting.popleft()[0].set_result(None)
        return not self._waiting

    def _next(self) -> _Place | None:
        """Return the next permit at hand, void ones passed over."""
        now = self.gate.now()
        while self._places and self._places[0].until_s < now:
            if (place := self._places.popleft()).is_kept:
                self.gate.take_back(place.cost)
        return self._places[0] if self._places else None

    def _hand_out(self, cost: Amounts) -> None:
        place = self._places.popleft()
        self._handed += 1
        self.gate.owe((0.0, cost[1] - place.cost[1], cost[2] - place.cost[2]))
        # The next block is asked for when this one begins: all who wait come round in the same time, whatever
        # the length of their blocks.
        is_last_block = not self._places or self._places[-1].block == place.block
        if is_last_block and len(self._waiting) > len(self._places):
            self._lease()

    def _lease(self) -> asyncio.Task[None]:
        """Take a block, unless one is being taken."""
        if self._leasing is None or self._leasing.done():
            self._leasing = asyncio.create_task(self._take())
            self._leasing.add_done_callback(heard_by_somebody)
        return self._leasing

    async def _take(self) -> None:
        """Take a block for those who wait and have no permit at hand yet."""
        have = len(self._places)
        waiting = (cost for waiter, cost in self._waiting if not waiter.done())
        costs = list(islice(waiting, have, have + MAX_PERMITS_AT_ONCE))
        if not costs:
            return
        elapsed_s = max(self.gate.now() - self._leased_s, _SPARE_S / 2)
        expected = int(self._handed / elapsed_s * _SPARE_S)
        self._handed, self._leased_s = 0, self.gate.now()
        block, from_s = await self.gate.take(
            self.gate.ledger.holder, self._dag_id, costs, max(0, expected - len(costs))
        )
        self._blocks += 1
        mean = tuple(sum(part) / len(costs) for part in zip(*costs, strict=True))
        for number, wait_s in enumerate(block.waits_s):
            cost = costs[number] if number < len(costs) else mean
            at_s = from_s + wait_s
            lapses_s = max(_LAPSES_S, block.interval_s) if wait_s else _KEPT_S
            self._places.append(_Place(at_s, at_s + lapses_s, cost, block=self._blocks, is_kept=not wait_s))
