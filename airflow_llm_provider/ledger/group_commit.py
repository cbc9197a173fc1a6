"""Group commit: one thread commits together what many coroutines submit at about the same time."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from airflow_llm_provider.ledger.own_process import OwnProcess

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
_Submitted = tuple[Item, "asyncio.Future[Result]"]


class GroupCommit(Generic[Item, Result]):
    """A thread that hands submitted items to `work`, a group at a time.

    A commit waits for the disk, whether it holds one row or five hundred. So the first item waits a few
    milliseconds for others; a model's answer takes a hundred times as long anyway.

    Use it in the process that made it: a thread does not survive a fork.

    Args:
        work: Takes a group and returns one result per item. What it raises is raised to every submitter of the
            group; a result that is an exception is raised to its own submitter only.
        name: Name of the thread.
        limit: The most items of a group.
        linger_s: How long the first item of a group waits at most.
        quiet_s: How long the group waits for one more item.
        tick: Called by the thread between groups, at least every `tick_s` seconds.
        tick_s: See `tick`.
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
        # Not a SimpleQueue: in CPython 3.11 to 3.13 its get() can lose its timeout, and a group would hang.
        self._queue: collections.deque[_Submitted[Item, Result] | None] = collections.deque()
        self._arrived = threading.Event()
        self._process, self._closed = OwnProcess(), False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """Queue `item`; the future has its result when its group is done.

        Raises:
            LedgerUnusable: It belongs to the process that this one was forked from.
            RuntimeError: It is closed, or no event loop is running.
        """
        self._process.require()
        if self._closed:
            raise RuntimeError("The ledger is closed: what is submitted now would not be written.")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._put((item, future))
        return future

    def close(self) -> None:
        """Finish what was submitted, then end the thread."""
        self._closed = True
        self._put(None)
        if self._process.is_this:
            self._thread.join()

    def _put(self, entry: _Submitted[Item, Result] | None) -> None:
        self._queue.append(entry)
        if not self._arrived.is_set():
            self._arrived.set()

    def _wait(self, timeout_s: float) -> bool:
        """Wait until something may be in the queue; return False when the time is up."""
        self._arrived.clear()
        # The queue is looked at after the event was cleared, so an item that came in between is seen.
        return bool(self._queue) or self._arrived.wait(timeout_s)

    def _run(self) -> None:
        next_tick = time.monotonic() + self._tick_s
        closing = False
        while not closing:
            group, closing = self._collect(until=next_tick)
            if group:
                self._do(group)
            if time.monotonic() >= next_tick:
                if self._tick:
                    self._do_tick(self._tick)
                next_tick = time.monotonic() + self._tick_s

    @staticmethod
    def _do_tick(tick: Callable[[], None]) -> None:
        try:
            tick()
        except Exception:
            log.exception(
                "A tick of the ledger's thread failed; the thread goes on, since callers wait for it."
            )

    def _collect(self, *, until: float) -> tuple[list[_Submitted[Item, Result]], bool]:
        """Wait for a group, at most `until` for its first item; return it, and whether it is the last."""
        group: list[_Submitted[Item, Result]] = []
        timeout_s, deadline = float("inf"), until
        while len(group) < self._limit:
            if not self._queue:
                if not self._wait(max(0.0, min(timeout_s, deadline - time.monotonic()))):
                    break
                continue  # the item that the event was set for was taken already
            entry = self._queue.popleft()
            if entry is None:
                return group, True
            if not group:
                # Set once per group: later items do not make the first one wait longer than `linger_s`.
                timeout_s, deadline = self._quiet_s, time.monotonic() + self._linger_s
            group.append(entry)
        return group, False

    def _do(self, group: list[_Submitted[Item, Result]]) -> None:
        outcomes: Sequence[Result | BaseException]
        try:
            outcomes = self._work([item for item, _ in group])
            if len(outcomes) != len(group):
                raise RuntimeError(f"{len(outcomes)} results for {len(group)} items")
        except Exception as error:  # noqa: BLE001  # whatever it is, every submitter must get it
            outcomes = [error] * len(group)
        # One wake-up per group and loop, not per item: waking a loop costs more than resolving a future.
        loops: dict[
            asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Result], Result | BaseException]]
        ] = {}
        for (_, future), outcome in zip(group, outcomes, strict=True):
            loops.setdefault(future.get_loop(), []).append((future, outcome))
        for loop, resolved in loops.items():
            with contextlib.suppress(RuntimeError):  # the loop was closed, so no caller is left
                loop.call_soon_threadsafe(_resolve, resolved)


def _resolve(resolved: list[tuple[asyncio.Future[Result], Result | BaseException]]) -> None:
    for future, outcome in resolved:
        if future.done():  # its waiter was cancelled
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
