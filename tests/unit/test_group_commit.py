"""What many submit at once is done in one go, and whatever happens each of them hears of it."""

import asyncio
import os
import threading
from collections.abc import Callable, Iterator

import pytest
from waiting import until

from airflow_llm_provider.errors import LedgerUnusable
from airflow_llm_provider.ledger.group_commit import GroupCommit


@pytest.fixture
def batch_of() -> Iterator[Callable[..., GroupCommit]]:
    made: list[GroupCommit] = []

    def make(work: Callable, **options: object) -> GroupCommit:
        made.append(GroupCommit(work, name="test", **options))
        return made[-1]

    yield make
    for batch in made:
        batch.close()


async def test_items_that_come_together_are_done_together_and_in_order(
    batch_of: Callable[..., GroupCommit],
) -> None:
    seen: list[list[int]] = []
    batch = batch_of(lambda items: seen.append(items) or [item * 2 for item in items], limit=64)
    results = await asyncio.gather(*(batch.submit(i) for i in range(100)))
    assert results == [i * 2 for i in range(100)]
    assert [item for items in seen for item in items] == list(range(100))
    assert max(len(items) for items in seen) <= 64
    assert len(seen) <= 20


async def test_a_single_item_does_not_wait_long(batch_of: Callable[..., GroupCommit]) -> None:
    batch = batch_of(list, linger_s=30.0)
    assert await asyncio.wait_for(batch.submit(1), 5) == 1


async def test_the_shortest_wait_for_others_ends_too(batch_of: Callable[..., GroupCommit]) -> None:
    batch = batch_of(list, linger_s=1e-6, quiet_s=1e-6)  # a SimpleQueue hung here once in some 20,000

    async def submit_for(seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while loop.time() < until:
            await batch.submit(1)

    await asyncio.wait_for(submit_for(0.1), 20)


async def test_an_error_reaches_every_submitter_and_not_the_next(
    batch_of: Callable[..., GroupCommit],
) -> None:
    def work(items: list[int]) -> list[int]:
        if 13 in items:
            raise ValueError("13")
        return items

    batch = batch_of(work)
    failed = await asyncio.gather(*(batch.submit(i) for i in (1, 13, 2)), return_exceptions=True)
    assert [type(error) for error in failed] == [ValueError] * 3
    assert await batch.submit(4) == 4


async def test_a_missing_result_is_an_error_for_every_submitter(batch_of: Callable[..., GroupCommit]) -> None:
    batch = batch_of(lambda items: items[:-1])
    with pytest.raises(RuntimeError, match="0 results for 1 items"):
        await batch.submit(1)


async def test_an_outcome_that_is_an_error_is_raised_to_its_submitter_only(
    batch_of: Callable[..., GroupCommit],
) -> None:
    batch = batch_of(lambda items: [ValueError("odd") if item % 2 else item for item in items])
    outcomes = await asyncio.gather(*(batch.submit(i) for i in range(4)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [int, ValueError, int, ValueError]


async def test_work_goes_on_when_a_waiter_is_cancelled(batch_of: Callable[..., GroupCommit]) -> None:
    gate, done = threading.Event(), []
    batch = batch_of(lambda items: (gate.wait(5) and done.extend(items)) or items)
    waiting = asyncio.ensure_future(batch.submit(1))
    await asyncio.sleep(0.05)
    waiting.cancel()
    gate.set()
    assert await batch.submit(2) == 2
    assert done == [1, 2]


def test_work_is_done_though_the_loop_that_waited_is_gone(batch_of: Callable[..., GroupCommit]) -> None:
    done: list[int] = []
    batch = batch_of(lambda items: done.extend(items) or items)

    async def leave() -> None:
        batch.submit(1)

    asyncio.run(leave())
    batch.close()
    assert done == [1]


async def test_closing_finishes_what_was_submitted_and_takes_no_more(
    batch_of: Callable[..., GroupCommit],
) -> None:
    batch = batch_of(list)
    waiting = [batch.submit(i) for i in range(5)]
    await asyncio.to_thread(batch.close)
    assert await asyncio.gather(*waiting) == list(range(5))
    with pytest.raises(RuntimeError, match="closed"):
        batch.submit(6)
    batch.close()  # twice is no harm


async def test_it_ticks_while_idle_while_busy_and_after_a_tick_that_failed(
    batch_of: Callable[..., GroupCommit], caplog: pytest.LogCaptureFixture
) -> None:
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(asyncio.run(asyncio.sleep(0, 1.0)))
        raise ValueError("no beat")

    batch = batch_of(list, tick=tick, tick_s=0.02)
    await until(lambda: len(ticks) >= 2)
    idle = len(ticks)
    async with asyncio.timeout(30):
        while len(ticks) <= idle + 1:
            await batch.submit(1)
    assert "tick of the ledger's thread failed" in caplog.text


def test_a_forked_child_gets_an_error_instead_of_waiting(batch_of: Callable[..., GroupCommit]) -> None:
    batch = batch_of(list)
    child = os.fork()
    if child == 0:
        try:
            batch.submit(1)
        except LedgerUnusable as error:
            os._exit(7 if "was forked since" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
