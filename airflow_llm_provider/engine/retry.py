"""The one retry loop: by class of error, with the server's Retry-After, within a total deadline."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tenacity

from airflow_llm_provider.errors import BY_KIND, AnswerError, LLMError, RetryableError

Policies = Mapping[str, "RetryPolicy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """How often a request is tried after a class of error, and how long to wait between.

    Attributes:
        attempts: How often to try, the first time included; 1 never retries.
        billed_attempts: How often to try at most if each try may have been billed without a reply. Each of them is
            booked at its ceiling, so there are few.
        first_wait_s: Seconds before the first retry. The wait doubles each time, with full jitter; a longer
            Retry-After wins.
        max_wait_s: The longest of these waits, in seconds.
        deadline_s: Seconds from the first attempt; None for the connection's total deadline.
    """

    attempts: int = 1
    billed_attempts: int = 3
    first_wait_s: float = 0.5
    max_wait_s: float = 30.0
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        # A bool is an int in Python, so attempts=True would mean 1.
        for name in ("attempts", "billed_attempts"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}={count!r}: give a whole number, 1 or more")
        for name in ("first_wait_s", "max_wait_s", "deadline_s"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and value >= 0):
                raise ValueError(f"{name}={value!r}: give a number of seconds")


# Errors that pass by themselves are retried often; those that need another request, never. A refused or truncated
# answer has been paid for, and another try is paid again, so the author has to switch that on.
DEFAULT_POLICIES: Policies = {
    **{kind: RetryPolicy() for kind in BY_KIND},
    "network": RetryPolicy(attempts=5),
    "rate_limit": RetryPolicy(attempts=50, first_wait_s=1, max_wait_s=60),
    "overloaded": RetryPolicy(attempts=20, first_wait_s=1, max_wait_s=60),
    "server": RetryPolicy(attempts=6),
}


def policies(overrides: Mapping[str, RetryPolicy | Mapping[str, Any]] | None = None) -> Policies:
    """Return the default policies with some replaced.

    Args:
        overrides: By kind of error, a RetryPolicy or the fields that differ from the default, such as
            `{"rate_limit": {"attempts": 3}}`.

    Raises:
        ValueError: A kind or a field is unknown, or a value is wrong.
    """
    merged = dict(DEFAULT_POLICIES)
    for kind, override in (overrides or {}).items():
        if kind not in merged:
            raise ValueError(
                f"route.retry knows no class of error {kind!r}; there are {', '.join(sorted(merged))}."
            )
        try:
            merged[kind] = (
                override
                if isinstance(override, RetryPolicy)
                else dataclasses.replace(merged[kind], **dict(override))
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"route.retry={{{kind!r}: {override!r}}}: {error}") from error
    return merged


def retrying(
    *,
    deadline_s: float,
    policies: Policies = DEFAULT_POLICIES,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> tenacity.AsyncRetrying:
    """Return a retry loop for one request; it raises the last error again.

    It stops at once if the next wait would end after the deadline. The error keeps its `retry_after_s`, so that a
    retry of the task knows how long to wait.

    Args:
        deadline_s: Seconds from the first attempt.
        policies: By kind of error.
        sleep: How to wait.
    """
    billed = 0

    def wait(state: tenacity.RetryCallState) -> float:
        error = _error(state)
        policy = policies[error.kind]
        jittered = tenacity.wait_random_exponential(multiplier=policy.first_wait_s, max=policy.max_wait_s)(
            state
        )
        asked = error.retry_after_s if isinstance(error, RetryableError) else None
        # A request that is sent before Retry-After is over would be refused again.
        return max(jittered, asked or 0.0)

    def stop(state: tenacity.RetryCallState) -> bool:
        nonlocal billed
        error = _error(state)
        policy = policies[error.kind]
        billed += error.billed
        if state.attempt_number >= policy.attempts or billed >= policy.billed_attempts:
            return True
        limit_s = deadline_s if policy.deadline_s is None else policy.deadline_s
        return (state.seconds_since_start or 0.0) + state.upcoming_sleep >= limit_s

    # An invalid answer needs another request, which the engine makes; sending the same again does not help.
    may_retry = tenacity.retry_if_exception(
        lambda e: isinstance(e, LLMError) and not isinstance(e, AnswerError)
    )
    return tenacity.AsyncRetrying(retry=may_retry, wait=wait, stop=stop, sleep=sleep, reraise=True)


def _error(state: tenacity.RetryCallState) -> LLMError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, LLMError), "only retryable errors get here"
    return error
