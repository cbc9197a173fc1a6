"""Requests are retried by class of error, and all processes together keep within the rate limits."""

import asyncio
import dataclasses
import gc
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from conftest import SCOPE, Clock, question

from airflow_llm_provider.engine.concurrency import for_each
from airflow_llm_provider.engine.rate_limiter import Permit, RateLimiter
from airflow_llm_provider.engine.retry import DEFAULT_POLICIES, RetryPolicy, policies, retrying
from airflow_llm_provider.errors import (
    AuthenticationFailed,
    LedgerUnavailable,
    NetworkError,
    Overloaded,
    RampLimited,
    RateLimited,
    RetryableError,
    ServerError,
)
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.rate_limits import Limits
from airflow_llm_provider.ledger.records import CallScope, NewAttempt
from airflow_llm_provider.pricing import Usage


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
async def test_every_class_of_error_is_tried_as_often_as_its_policy_says(
    kind: type[RetryableError], clock: Clock
) -> None:
    assert await attempts(kind("no"), clock) == DEFAULT_POLICIES[kind.kind].attempts
    assert all(wait <= DEFAULT_POLICIES[kind.kind].max_wait_s for wait in clock.slept)


@pytest.mark.parametrize("kind", [NetworkError, RateLimited, Overloaded, ServerError])
async def test_what_may_have_been_billed_is_tried_three_times_at_the_most(
    kind: type[RetryableError], clock: Clock
) -> None:
    assert await attempts(kind("no", billed=True), clock) == 3
    often = policies({kind.kind: {"attempts": 9, "billed_attempts": 5}})
    assert await attempts(kind("no", billed=True), clock, policies=often) == 5


async def test_only_those_that_may_have_been_billed_count_as_such(clock: Clock) -> None:
    billed = iter([False, True, False, True, False, True, False])
    tried = 0

    async def fail() -> None:
        nonlocal tried
        tried += 1
        raise Overloaded("no", billed=next(billed))

    with pytest.raises(Overloaded):
        await retrying(sleep=clock.sleep, deadline_s=1e9)(fail)
    assert tried == 6


async def test_a_terminal_error_is_tried_once(clock: Clock) -> None:
    assert await attempts(AuthenticationFailed("no"), clock) == 1


async def test_a_retry_after_that_is_longer_than_the_backoff_wins(clock: Clock) -> None:
    await attempts(Overloaded("no", retry_after_s=90), clock, policies=policies({"overloaded": quick(3)}))
    assert clock.slept == [90, 90]


async def test_a_wait_that_would_pass_the_deadline_does_not_begin(clock: Clock) -> None:
    assert await attempts(RateLimited("no", retry_after_s=120), clock, deadline_s=60) == 1
    assert clock.slept == []


async def test_a_policy_can_be_replaced_by_class(clock: Clock) -> None:
    assert await attempts(ServerError("no"), clock, policies=policies({"server": {"attempts": 2}})) == 2


def quick(attempts: int) -> RetryPolicy:
    return RetryPolicy(attempts=attempts, first_wait_s=0.1, max_wait_s=0.1)


# The rate limiter.


@pytest.fixture
async def ledger(simulated_time: Callable[[], float], ledger_url: str) -> AsyncIterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.close()


def limiter_of(ledger: Ledger, limits: Limits | None = None) -> RateLimiter:
    """Return the rate limiter of one process, on the clock of the test's event loop."""
    return RateLimiter(ledger, limits, now=asyncio.get_running_loop().time)


def headers(limit: int, remaining: int) -> dict[str, str]:
    kinds = ("requests", "input-tokens", "output-tokens")
    return {f"anthropic-ratelimit-{kind}-limit": "6000000" for kind in kinds} | {
        "anthropic-ratelimit-input-tokens-remaining": "6000000",
        "anthropic-ratelimit-output-tokens-remaining": "6000000",
        "anthropic-ratelimit-requests-limit": str(limit),
        "anthropic-ratelimit-requests-remaining": str(remaining),
    }


async def permitted(pace: RateLimiter, count: int, *, within_s: float) -> list[Permit]:
    """Return the permits that of `count` who wait are given in time."""
    waiting = [asyncio.create_task(pace.acquire(question(), SCOPE)) for _ in range(count)]
    done, late = await asyncio.wait(waiting, timeout=within_s)
    for task in late:
        task.cancel()
    return [task.result() for task in done]


def refuse(permit: Permit, *, retry_after_s: float, remaining: int = 0) -> None:
    """Answer a call with a 429 that states how much is left of the limit."""
    permit.read_headers(headers(6_000, remaining))
    permit.record_error(RateLimited("no", retry_after_s=retry_after_s))


async def test_no_process_sends_while_a_limit_is_stated_to_be_used_up(ledger: Ledger) -> None:
    told, now = limiter_of(ledger), asyncio.get_running_loop().time
    refuse(await told.acquire(question(), SCOPE), retry_after_s=20)
    await told.close()  # the others are told
    await asyncio.gather(*(pace.acquire(question(), SCOPE) for pace in (told, limiter_of(ledger))))
    assert 20 <= now() <= 22


@pytest.mark.parametrize("error", [RateLimited, Overloaded])
async def test_a_call_that_is_refused_while_there_is_room_makes_no_other_wait(
    ledger: Ledger, clock: Clock, error: type[RateLimited | Overloaded]
) -> None:
    told = RateLimiter(ledger, now=clock.now, sleep=clock.sleep)
    for number in range(20):
        permit = await told.acquire(question(), SCOPE)
        permit.read_headers(headers(6_000, 5_000))
        if number == 10:
            permit.record_error(error("no", retry_after_s=20))
    await told.close()
    await told.acquire(question(), SCOPE)
    assert clock.now() < 1


@pytest.mark.parametrize("limits", [Limits(), Limits(rpm=6_000)])
async def test_a_pause_longer_than_the_deadline_is_an_error_that_says_how_long(
    ledger: Ledger, clock: Clock, limits: Limits
) -> None:
    told = RateLimiter(ledger, limits, now=clock.now, sleep=clock.sleep)
    refuse(await told.acquire(question(), SCOPE), retry_after_s=86_400)
    await told.close()
    for pace in (told, limiter_of(ledger, limits)):
        with pytest.raises(RateLimited, match=r"wait.*Nothing was sent") as refused:
            await asyncio.wait_for(pace.acquire(question(), SCOPE), timeout=5)
        assert refused.value.retry_after_s == pytest.approx(86_400, rel=0.01)


async def test_other_processes_pause_within_a_second(ledger: Ledger) -> None:
    other, told = limiter_of(ledger), limiter_of(ledger)
    for pace in (other, told):
        permit = await pace.acquire(question(), SCOPE)
    refuse(permit, retry_after_s=2)
    await asyncio.sleep(1.05)
    assert await permitted(other, 1, within_s=0.4) == []
    await told.close()


async def test_all_processes_together_send_no_more_requests_per_minute_than_allowed(ledger: Ledger) -> None:
    limits = Limits(rpm=60, burst_s=3)
    given = await asyncio.gather(
        *(
            permitted(pace, 5, within_s=0.6)
            for pace in (limiter_of(ledger, limits), limiter_of(ledger, limits))
        )
    )
    assert sum(map(len, given)) == 3


async def test_a_request_larger_than_a_minutes_tokens_still_goes(ledger: Ledger) -> None:
    pace = limiter_of(ledger, Limits(itpm=100, otpm=10))
    await asyncio.wait_for(pace.acquire(question("long " * 1000), SCOPE), timeout=1)


async def test_waiting_calls_go_one_interval_apart(ledger: Ledger) -> None:
    pace = limiter_of(ledger, Limits(rpm=1200, burst_s=0.05))
    given = sorted(permit.at_s for permit in await permitted(pace, 30, within_s=1.5))
    assert 20 <= len(given) <= 30
    busiest = max(sum(start <= at < start + 0.5 for at in given) for start in given)
    assert busiest <= 0.6 * 20 + 1  # half a second, with the tenth of one that a permit may be late


async def test_a_permit_that_was_not_used_goes_to_the_next_at_once(ledger: Ledger) -> None:
    pace = limiter_of(ledger, Limits(rpm=1, burst_s=60))
    permit = await pace.acquire(question(), SCOPE)
    waiting = asyncio.create_task(pace.acquire(question(), SCOPE))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    permit.release()
    await asyncio.wait_for(waiting, timeout=0.1)


async def test_what_is_left_is_given_back_in_the_end(ledger: Ledger) -> None:
    limits = Limits(rpm=60, burst_s=3)
    pace = limiter_of(ledger, limits)
    for permit in await permitted(pace, 3, within_s=1):
        permit.release()
    await pace.close()
    assert len(await permitted(limiter_of(ledger, limits), 5, within_s=0.5)) == 3


async def test_a_cancelled_call_takes_no_permit_from_the_others(ledger: Ledger) -> None:
    pace = limiter_of(ledger, Limits(rpm=600, burst_s=0.1))
    assert len(await permitted(pace, 5, within_s=0.05)) <= 2
    assert len(await permitted(pace, 5, within_s=1.5)) == 5


async def test_a_reply_corrects_what_its_call_was_expected_to_use(ledger: Ledger) -> None:
    pace = limiter_of(ledger, Limits(otpm=60_000, burst_s=1))  # a thousand a second
    permit = await pace.acquire(question(), SCOPE)
    permit.record_usage(Usage(uncached_tokens=10, output_tokens=5_000))
    assert await permitted(pace, 1, within_s=1) == []


async def test_without_a_known_limit_the_ledger_is_not_read_for_every_call(
    ledger: Ledger, tmp_path: Path
) -> None:
    pace = limiter_of(ledger)
    (await pace.acquire(question(), SCOPE)).read_headers({})
    (tmp_path / "ledger.db").rename(tmp_path / "away.db")
    assert len(await permitted(pace, 500, within_s=0.4)) == 500


async def test_only_a_few_calls_are_sent_before_the_first_reply(ledger: Ledger) -> None:
    pace = limiter_of(ledger)
    waiting = [asyncio.create_task(pace.acquire(question(), SCOPE)) for _ in range(200)]
    await asyncio.sleep(0.3)
    gone = [task.result() for task in waiting if task.done()]
    assert len(gone) == 32
    for permit in gone:
        permit.read_headers(headers(600, 68))  # of a small bucket, which the 200 would have run over
    await asyncio.sleep(0.5)
    assert len(gone) <= sum(task.done() for task in waiting) <= 32 + 10
    for task in waiting:
        task.cancel()


@pytest.mark.parametrize("said", [{}, headers(6_000_000, 6_000_000)], ids=["no limit", "a large one"])
async def test_all_calls_go_once_a_reply_shows_that_there_is_room(
    ledger: Ledger, said: dict[str, str]
) -> None:
    pace = limiter_of(ledger)
    waiting = [asyncio.create_task(pace.acquire(question(), SCOPE)) for _ in range(200)]
    await asyncio.sleep(0.2)
    next(task for task in waiting if task.done()).result().read_headers(said)
    _, late = await asyncio.wait(waiting, timeout=0.5)
    assert not late


async def test_a_slow_first_reply_delays_the_other_calls_only_shortly(ledger: Ledger) -> None:
    assert len(await permitted(limiter_of(ledger), 200, within_s=3.5)) == 200


async def test_calls_go_even_if_reading_the_state_takes_longer_than_it_counts_as_current(
    ledger: Ledger,
) -> None:
    looks = iter(range(2_000))

    def now() -> float:
        return 0.6 * next(
            looks
        )  # whatever was heard is half a second old; a call that turns in circles ends here

    pace = RateLimiter(ledger, now=now)
    others = dataclasses.replace(SCOPE, dag_id="another")
    await asyncio.gather(*(pace.acquire(question(n), scope) for n in range(5) for scope in (SCOPE, others)))


async def test_a_raised_limit_holds_at_once(ledger: Ledger) -> None:
    pace = limiter_of(ledger)
    permit = await pace.acquire(question(), SCOPE)
    permit.read_headers(headers(60, 1))
    await pace.close()
    assert len(await permitted(pace, 20, within_s=0.5)) <= 1
    permit.read_headers(headers(600_000, 600_000))
    await pace.close()
    assert len(await permitted(pace, 20, within_s=2)) == 20


@pytest.mark.parametrize("lifted", ["raised", "no longer stated"])
async def test_a_limit_that_was_stated_for_a_moment_delays_nothing_once_it_is_lifted(
    ledger: Ledger, lifted: str
) -> None:
    now = headers(600_000, 600_000) if lifted == "raised" else {"request-id": "req_1"}
    pace, other = limiter_of(ledger), limiter_of(ledger)
    permit = await pace.acquire(question(), SCOPE)
    permit.read_headers(headers(1, 0))
    await asyncio.sleep(1)  # both have heard of it
    # Both processes wait for an hour's worth of permits.
    waiting = [
        asyncio.create_task(limiter.acquire(question(), SCOPE))
        for limiter in (pace, other)
        for _ in range(30)
    ]
    await asyncio.sleep(5)
    assert sum(task.done() for task in waiting) <= 2
    permit.read_headers(now)
    permit.record_usage(Usage(uncached_tokens=10, output_tokens=5))
    _, late = await asyncio.wait(waiting, timeout=5)
    assert late == set()
    await pace.close()
    assert len(await permitted(limiter_of(ledger), 50, within_s=3)) == 50


async def test_no_call_gets_a_permit_while_the_ledger_is_unavailable(ledger_url: str, tmp_path: Path) -> None:
    ledger = Ledger(ledger_url, deadline_s=0.02)
    (tmp_path / "ledger.db").rename(tmp_path / "away.db")
    for limits in (None, Limits(rpm=600)):
        with pytest.raises(LedgerUnavailable):
            await limiter_of(ledger, limits).acquire(question(), SCOPE)
    ledger.close()


async def test_limits_are_learned_from_the_headers_once_half_of_one_is_used(ledger: Ledger) -> None:
    pace, other = limiter_of(ledger), limiter_of(ledger)
    permit = await pace.acquire(question(), SCOPE)
    permit.read_headers(headers(60, 31))
    await pace.close()
    assert len(await permitted(pace, 20, within_s=1)) == 20
    permit.read_headers(headers(60, 29))
    await pace.close()  # it is in the ledger
    assert len(await permitted(other, 5, within_s=1.5)) == 1
    elsewhere = dataclasses.replace(SCOPE, connection_id="another")
    await asyncio.wait_for(other.acquire(question(), elsewhere), timeout=1)


@pytest.mark.parametrize("limit", [10**30, 10**400], ids=["10^30", "10^400"])
async def test_an_absurd_limit_is_ignored(
    ledger: Ledger, limit: int, caplog: pytest.LogCaptureFixture
) -> None:
    pace = limiter_of(ledger)
    (await pace.acquire(question(), SCOPE)).read_headers(headers(limit, 1))
    await pace.close()
    assert len(await permitted(pace, 20, within_s=2)) == 20
    gc.collect()  # what asyncio says of a task that failed unheard
    assert caplog.messages == []


async def test_429s_limit_the_rate_where_no_limit_is_known(ledger: Ledger) -> None:
    pace = limiter_of(ledger)
    for count in (50, 20, 20):
        for permit in await permitted(pace, count, within_s=2):
            permit.record_error(RateLimited("no"))
        await asyncio.sleep(0.2)
    await pace.close()
    assert len(await permitted(pace, 20, within_s=2.5)) <= 4


async def test_growth_that_was_too_fast_holds_the_rate_and_does_not_cut_it(ledger: Ledger) -> None:
    pace = limiter_of(ledger)
    for number in range(20):  # two a second
        permit = await pace.acquire(question(), SCOPE)
        if number == 19:
            permit.record_error(RampLimited("no"))
        await asyncio.sleep(0.5)
    await pace.close()
    assert 6 <= len(await permitted(pace, 20, within_s=4)) <= 10


def attempt(scope: CallScope, number: int) -> NewAttempt:
    return NewAttempt(fingerprint=f"{number:064}", scope=scope, reuse="run", model=question().model)


async def test_requests_are_drawn_from_a_generator_only_as_there_is_room() -> None:
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
