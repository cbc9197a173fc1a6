"""The one retry loop: by class of error, obedient to Retry-After, within a total deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import tenacity

from airflow_llm_provider.errors import (
    LedgerUnavailable,
    NetworkError,
    Overloaded,
    RateLimited,
    RetryableError,
    ServerError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often a class of error is tried again, and how long to wait between.

    attempts: sends in all, the first included.
    first_wait_s, max_wait_s: the wait doubles from one to the other, with full jitter; a longer Retry-After wins.
    """

    attempts: int
    first_wait_s: float
    max_wait_s: float


POLICIES: Mapping[type[RetryableError], RetryPolicy] = {
    NetworkError: RetryPolicy(attempts=5, first_wait_s=0.5, max_wait_s=30),
    RateLimited: RetryPolicy(attempts=50, first_wait_s=1, max_wait_s=60),
    Overloaded: RetryPolicy(attempts=20, first_wait_s=1, max_wait_s=60),
    ServerError: RetryPolicy(attempts=6, first_wait_s=0.5, max_wait_s=30),
    LedgerUnavailable: RetryPolicy(
        attempts=1, first_wait_s=0, max_wait_s=0
    ),  # it has had its deadline already
}


def retrying(
    *,
    deadline_s: float,
    policies: Mapping[type[RetryableError], RetryPolicy] = POLICIES,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> tenacity.AsyncRetrying:
    """Return a retry loop for one request; it re-raises the last error.

    It gives up at once when the wait that was asked for would end after the deadline: the error then still
    says `retry_after_s`, so that whoever retries the task knows how long to wait.
    """

    def wait(state: tenacity.RetryCallState) -> float:
        error = _error(state)
        policy = policies[type(error)]
        jittered = tenacity.wait_random_exponential(multiplier=policy.first_wait_s, max=policy.max_wait_s)(
            state
        )
        return max(jittered, error.retry_after_s or 0.0)

    def stop(state: tenacity.RetryCallState) -> bool:
        if state.attempt_number >= policies[type(_error(state))].attempts:
            return True
        return (state.seconds_since_start or 0.0) + state.upcoming_sleep >= deadline_s

    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(RetryableError),
        wait=wait,
        stop=stop,
        sleep=sleep,
        reraise=True,
    )


def _error(state: tenacity.RetryCallState) -> RetryableError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, RetryableError), "only what may be tried again gets here"
    return error
