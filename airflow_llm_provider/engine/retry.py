"""The one retry loop: by class of error, obedient to Retry-After, within a total deadline."""

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
    """How often a class of error is tried in a task, and how long to wait between.

    attempts: tries in all, the first included; 1 leaves it to whoever calls.
    first_wait_s, max_wait_s: the wait doubles from one to the other, with full jitter; a longer Retry-After
        wins.
    deadline_s: from the first send; None: the connection's total deadline.
    """

    attempts: int = 1
    first_wait_s: float = 0.5
    max_wait_s: float = 30.0
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise ValueError(f"attempts={self.attempts!r}: give a whole number, 1 or more")
        for name in ("first_wait_s", "max_wait_s", "deadline_s"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and value >= 0):
                raise ValueError(f"{name}={value!r}: give a number of seconds")


# What waiting mends is tried often, what only another request mends not at all. A refused or truncated answer
# is one that was paid for: trying again is asking again, so it is the author's to switch on.
DEFAULT_POLICIES: Policies = {
    **{kind: RetryPolicy() for kind in BY_KIND},
    "network": RetryPolicy(attempts=5),
    "rate_limit": RetryPolicy(attempts=50, first_wait_s=1, max_wait_s=60),
    "overloaded": RetryPolicy(attempts=20, first_wait_s=1, max_wait_s=60),
    "server": RetryPolicy(attempts=6),
}


def policies(overrides: Mapping[str, RetryPolicy | Mapping[str, Any]] | None = None) -> Policies:
    """Return the policies with some replaced by name.

    overrides: kind of error -> a RetryPolicy, or the fields of one that differ from the default, such as
        `{"rate_limit": {"attempts": 3}}`. Raises ValueError for an unknown kind or field.
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
    """Return a retry loop for one request; it re-raises the last error.

    It gives up at once when the wait that was asked for would end after the deadline: the error then still
    says `retry_after_s`, so that whoever retries the task knows how long to wait.
    """

    def wait(state: tenacity.RetryCallState) -> float:
        error = _error(state)
        policy = policies[error.kind]
        jittered = tenacity.wait_random_exponential(multiplier=policy.first_wait_s, max=policy.max_wait_s)(
            state
        )
        asked = error.retry_after_s if isinstance(error, RetryableError) else None
        return max(jittered, asked or 0.0)

    def stop(state: tenacity.RetryCallState) -> bool:
        policy = policies[_error(state).kind]
        if state.attempt_number >= policy.attempts:
            return True
        limit_s = deadline_s if policy.deadline_s is None else policy.deadline_s
        return (state.seconds_since_start or 0.0) + state.upcoming_sleep >= limit_s

    # An answer that is none is a matter of asking otherwise, not of sending again.
    may_retry = tenacity.retry_if_exception(
        lambda e: isinstance(e, LLMError) and not isinstance(e, AnswerError)
    )
    return tenacity.AsyncRetrying(retry=may_retry, wait=wait, stop=stop, sleep=sleep, reraise=True)


def _error(state: tenacity.RetryCallState) -> LLMError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, LLMError), "only what may be tried again gets here"
    return error
