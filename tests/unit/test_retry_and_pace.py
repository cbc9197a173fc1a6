"""One layer retries, by class of error; one who is told to wait makes all wait."""

import asyncio

import pytest
from conftest import Clock, question

from airflow_llm_provider.engine.flow import for_each
from airflow_llm_provider.engine.pace import Limits, Pace
from airflow_llm_provider.engine.retry import DEFAULT_POLICIES, RetryPolicy, policies, retrying
from airflow_llm_provider.errors import (
    AuthenticationFailed,
    LedgerUnavailable,
    NetworkError,
    Overloaded,
    RateLimited,
    RetryableError,
    ServerError,
)


async def attempts(error: Exception, clock: Clock, **options: object) -> int:
    """Return how often something that always fails is tried."""
    tried = 0

    async def fail() -> None:
        nonlocal tried
        tried += 1
        raise error

    with pytest.raises(type(error)):
        await retrying(sleep=clock.sleep, **{"deadline_s": 1e9, **options})(fail)
    return tried


@pytest.mark.parametrize("kind", [NetworkError, RateLimited, Overloaded, ServerError, LedgerUnavailable])
async def test_every_class_is_tried_as_often_as_its_policy_says(
    kind: type[RetryableError], clock: Clock
) -> None:
    assert await attempts(kind("no"), clock) == DEFAULT_POLICIES[kind.kind].attempts
    assert all(wait <= DEFAULT_POLICIES[kind.kind].max_wait_s for wait in clock.slept)


async def test_what_can_not_get_better_is_tried_once(clock: Clock) -> None:
    assert await attempts(AuthenticationFailed("no"), clock) == 1


async def test_a_retry_after_that_is_longer_than_the_backoff_wins(clock: Clock) -> None:
    await attempts(Overloaded("no", retry_after_s=90), clock, policies=policies({"overloaded": quick(3)}))
    assert clock.slept == [90, 90]


async def test_a_wait_that_would_pass_the_deadline_is_not_begun(clock: Clock) -> None:
    assert await attempts(RateLimited("no", retry_after_s=120), clock, deadline_s=60) == 1
    assert clock.slept == []


async def test_a_policy_can_be_replaced_by_class(clock: Clock) -> None:
    assert await attempts(ServerError("no"), clock, policies=policies({"server": {"attempts": 2}})) == 2


def quick(attempts: int) -> RetryPolicy:
    return RetryPolicy(attempts=attempts, first_wait_s=0.1, max_wait_s=0.1)


async def test_nobody_sends_while_one_was_told_to_wait(clock: Clock) -> None:
    pace = Pace(now=clock.now, sleep=clock.sleep)
    pace.heard(20)
    await pace.permit(question())
    assert 20 <= clock.now() <= 22


async def test_no_more_requests_a_minute_than_the_account_allows() -> None:
    pace = Pace(Limits(rpm=3))
    permitted = [asyncio.create_task(pace.permit(question())) for _ in range(5)]
    done, waiting = await asyncio.wait(permitted, timeout=0.2)
    assert (len(done), len(waiting)) == (3, 2)
    for task in waiting:
        task.cancel()


async def test_a_request_larger_than_a_minutes_tokens_still_goes() -> None:
    pace = Pace(Limits(itpm=100, otpm=10))
    await asyncio.wait_for(pace.permit(question("long " * 1000)), timeout=1)


async def test_a_stream_is_drawn_only_as_fast_as_there_is_room() -> None:
    drawn, finished = 0, 0

    def endless() -> object:
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    async def work(_: int) -> None:
        nonlocal finished
        await asyncio.sleep(0)
        finished += 1
        if finished == 500:
            raise StopTheStream

    with pytest.raises(ExceptionGroup) as caught:
        await for_each(endless(), work, limit=8)
    assert caught.group_contains(StopTheStream)
    assert drawn - finished < 8 * 2 + 64 * 2


class StopTheStream(Exception):
    pass


async def test_a_cancelled_caller_cancels_what_is_in_flight() -> None:
    cancelled = 0

    async def work(_: int) -> None:
        nonlocal cancelled
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled += 1
            raise

    task = asyncio.create_task(for_each(range(5), work, limit=3))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled == 3
