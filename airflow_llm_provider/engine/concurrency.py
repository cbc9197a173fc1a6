"""Bounded concurrency: many items, a fixed number at once."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterable
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")


async def for_each(
    items: Iterable[Item], work: Callable[[Item], Coroutine[Any, Any, None]], *, limit: int, chunk: int = 64
) -> None:
    """Await `work(item)` for every item, at most `limit` at once, in any order.

    Memory does not grow with the number of items, which may be endless.

    Args:
        items: drawn from in a thread, `chunk` at a time and only as fast as there is room, so it may block, as the
            listing of a bucket does.
        work: an error that it raises ends the whole; a cancelled caller cancels what is in flight.
        limit: how many items are worked on at once.
        chunk: how many items are drawn at once.
    """
    iterator = iter(items)
    room = asyncio.Semaphore(limit)

    async with asyncio.TaskGroup() as group:
        while batch := await asyncio.to_thread(lambda: list(islice(iterator, chunk))):
            for item in batch:
                # The place is taken before the task is made. Otherwise there would be a waiting task for every item.
                await room.acquire()
                # A task per item, not a worker that loops: it keeps the stack of a call short.
                group.create_task(work(item)).add_done_callback(lambda _: room.release())


def calm_collector() -> None:
    """Exclude what is loaded so far from garbage collection, and make collections rarer.

    With a few hundred calls in flight, the default thresholds make the collector scan all loaded modules again and
    again, which costs a seventh of the CPU of a call. For a process that does one long run, such as a task's.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
