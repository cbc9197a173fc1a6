"""Group commit: what many coroutines submit is done by one thread in one go."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
_Entry = tuple[Item, "asyncio.Future[Result]"]


class GroupCommit(Generic[Item, Result]):
    """A thread that hands up to `limit` submitted items at a time to `work`.

    work: takes the items, returns as many results; what it raises is raised to every submitter of them.
    linger_s: how long the first item waits for company at the most; `quiet_s` without a newcomer ends the
        wait sooner. A sparse load so costs one commit for what arrives together, and a model's answer
        takes a hundred times as long anyway.
    tick: called by the thread at least every `tick_s` seconds, between batches.

    Lives in the process that made it: a thread does not survive a fork.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], Sequence[Result]],
        *,
        name: str,
        limit: int = 512,
        linger_s: float = 0.01,
        quiet_s: float = 0.002,
        tick: Callable[[], None] | None = None,
        tick_s: float = 10.0,
    ) -> None:
        self._work, self._tick = work, tick
        self._limit, self._linger_s, self._quiet_s, self._tick_s = limit, linger_s, quiet_s, tick_s
        # Not a SimpleQueue: its get() can forget its timeout (CPython 3.11 to 3.13), and a batch hang for ever.
        self._queue: collections.deque[_Entry[Item, Result] | None] = collections.deque()
        self._arrived = threading.Event()
        self._pid, self._closed = os.getpid(), False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Queue `item` from a running event loop; the future holds its result once the batch is done."""
        if self._closed:
            raise RuntimeError("It is closed: what is submitted now would never be done.")
        if self._pid != os.getpid():
            raise RuntimeError("It was made before a fork: make one in the process that uses it.")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._put((item, future))
        return future

    def close(self) -> None:
        """Finish what was submitted, then end the thread."""
        self._closed = True
        self._put(None)
        if self._pid == os.getpid():
            self._thread.join()

    def _put(self, entry: _Entry[Item, Result] | None) -> None:
        self._queue.append(entry)
        if not self._arrived.is_set():
            self._arrived.set()

    def _wait(self, timeout_s: float) -> bool:
        """Wait until something may be in the queue; tell whether the time is not up."""
        self._arrived.clear()
        return bool(self._queue) or self._arrived.wait(timeout_s)  # looked after clearing: nothing is missed

    def _run(self) -> None:
        next_tick = time.monotonic() + self._tick_s
        closing = False
        while not closing:
            batch, closing = self._collect(until=next_tick)
            if batch:
                self._do(batch)
            if time.monotonic() >= next_tick:
                if self._tick:
                    self._do_tick(self._tick)
                next_tick = time.monotonic() + self._tick_s

    @staticmethod
    def _do_tick(tick: Callable[[], None]) -> None:
        try:
            tick()
        except Exception:
            log.exception("A tick failed; the thread goes on, since others wait for it.")

    def _collect(self, *, until: float) -> tuple[list[_Entry[Item, Result]], bool]:
        """Wait for a batch, at most `until` for its first item; tell whether it is the last."""
        batch: list[_Entry[Item, Result]] = []
        patience, deadline = float("inf"), until
        while len(batch) < self._limit:
            if not self._queue:
                if not self._wait(max(0.0, min(patience, deadline - time.monotonic()))):
                    break
                continue  # a waker that came late wakes for nothing
            entry = self._queue.popleft()
            if entry is None:
                return batch, True
            if not batch:
                patience, deadline = self._quiet_s, time.monotonic() + self._linger_s
            batch.append(entry)
        return batch, False

    def _do(self, batch: list[_Entry[Item, Result]]) -> None:
        outcomes: Sequence[Result | BaseException]
        try:
            outcomes = self._work([item for item, _ in batch])
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} results for {len(batch)} items")
        except Exception as error:  # noqa: BLE001  # whatever it is, every submitter must hear of it
            outcomes = [error] * len(batch)
        # One wake-up a batch and loop, not one an item: waking the loop costs more than resolving a future.
        loops: dict[
            asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Result], Result | BaseException]]
        ] = {}
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            loops.setdefault(future.get_loop(), []).append((future, outcome))
        for loop, resolved in loops.items():
            with contextlib.suppress(RuntimeError):  # a loop that has closed has nobody left to tell
                loop.call_soon_threadsafe(_resolve, resolved)


def _resolve(resolved: list[tuple[asyncio.Future[Result], Result | BaseException]]) -> None:
    for future, outcome in resolved:
        if future.done():  # its waiter was cancelled
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
