"""Bounded concurrency: many items, a fixed number at once."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


async def for_each(
    items: Iterable[Item], work: Callable[[Item], Awaitable[None]], *, limit: int, chunk: int = 64
) -> None:
    """Await `work(item)` for every item, at most `limit` at a time, in any order.

    `items` is drawn from in a thread, `chunk` at a time and only as fast as there is room, so it may block
    (a listing of a bucket) and may be endless: memory does not grow with it. What `work` raises ends the
    whole; a cancelled caller cancels what is in flight.
    """
    todo: asyncio.Queue[Item] = asyncio.Queue(maxsize=limit)
    iterator = iter(items)

    async def feed() -> None:
        while batch := await asyncio.to_thread(lambda: list(islice(iterator, chunk))):
            for item in batch:
                await todo.put(item)

    async def worker() -> None:
        while True:
            item = await todo.get()
            await work(item)
            todo.task_done()

    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(worker()) for _ in range(limit)]
        await feed()
        await todo.join()
        for task in workers:
            task.cancel()


def calm_collector() -> None:
    """Take what is loaded so far out of the garbage collector's rounds, and make those rarer.

    With a few hundred calls in flight the default thresholds make it walk all modules again and again: a
    seventh of the CPU of a call. Meant for a process that does one long run, as a task's is.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
