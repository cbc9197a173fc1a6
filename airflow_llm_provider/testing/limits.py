"""The rate limits: buckets for requests, input tokens and output tokens per minute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from airflow_llm_provider.testing.wire import ApiError

NAMES: Mapping[str, str] = {"rpm": "requests", "itpm": "input-tokens", "otpm": "output-tokens"}
UNLIMITED: Mapping[str, int] = {"rpm": 1_000_000, "itpm": 1_000_000_000, "otpm": 1_000_000_000}


class Bucket:
    """A bucket that refills steadily up to its capacity; its level may be negative."""

    def __init__(self, *, per_minute: float, capacity: float, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self.capacity = capacity
        self._clock = clock
        self._level = capacity
        self._at = clock()

    def level(self) -> float:
        """Return what is in the bucket now."""
        now = self._clock()
        self._level = min(self.capacity, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._level

    def take(self, amount: float) -> None:
        """Take `amount` out, even if that makes the level negative."""
        self._level = self.level() - amount

    def wait_s(self, amount: float) -> float:
        """Return the seconds until `amount` can be taken; for more than the capacity, until the bucket is full."""
        # A little tolerance: a client that waits exactly as long as it was told must be admitted.
        short = min(amount, self.capacity) - self.level() - 1e-6
        return max(0.0, short * 60 / self.per_minute)


class Limits:
    """The buckets of one account.

    Input tokens read from the prompt cache do not count, as on the API. Output tokens are taken when an answer is
    complete; the level may become negative, and then the next request waits.

    Args:
        limits: `rpm`, `itpm` and `otpm` per minute; one that is left out is not enforced. `burst`: how many requests
            full buckets let through at once (default: those of one minute). Token buckets then hold the same share
            of their minute.
        clock: seconds, monotonic.
    """

    def __init__(
        self, limits: Mapping[str, float] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        limits = dict(limits or {})
        if unknown := limits.keys() - NAMES.keys() - {"burst"}:
            raise ValueError(
                f"limits: {sorted(unknown)} are not known; there are {sorted(NAMES)} and 'burst'"
            )
        burst, rpm = limits.pop("burst", None), limits.get("rpm")
        share = burst / rpm if burst and rpm else 1.0
        self._buckets = {
            name: Bucket(per_minute=limit, capacity=max(1.0, limit * share), clock=clock)
            for name, limit in limits.items()
        }
        self._unlimited_until = 0.0
        self._unlimited: dict[str, str] = {}

    def admit(self, input_tokens: int) -> None:
        """Take one request of `input_tokens` out of the buckets; ApiError 429 when one is short."""
        # How long an answer gets is not known yet, so the output bucket only has to hold something.
        wanted = {"rpm": 1, "itpm": input_tokens, "otpm": 1}
        waits = {name: bucket.wait_s(wanted[name]) for name, bucket in self._buckets.items()}
        worst = max(waits, key=waits.__getitem__, default=None)
        if worst and waits[worst] > 0:
            limit, what = self._buckets[worst].per_minute, NAMES[worst].replace("-", " ")
            raise ApiError(
                429,
                f"This request would exceed the stand-in's rate limit of {limit:g} {what} per minute.",
                retry_after=math.ceil(waits[worst]),
            )
        for name in self._buckets.keys() & {"rpm", "itpm"}:
            self._buckets[name].take(wanted[name])

    def spend(self, output_tokens: int) -> None:
        """Take the tokens of a finished answer."""
        if bucket := self._buckets.get("otpm"):
            bucket.take(output_tokens)

    def headers(self) -> dict[str, str]:
        """Return the current `anthropic-ratelimit-…` headers."""
        if not self._buckets:
            return self._unlimited_headers()
        now = datetime.now(UTC)
        headers = dict(self._unlimited_headers())
        for name, bucket in self._buckets.items():
            level = bucket.level()
            full_s = (bucket.capacity - level) * 60 / bucket.per_minute
            headers |= _headers(
                NAMES[name], int(bucket.per_minute), max(0, int(level)), now + timedelta(seconds=full_s)
            )
        return headers

    def _unlimited_headers(self) -> dict[str, str]:
        # Built once per second: at a thousand requests per second, building them each time takes too long.
        if time.monotonic() > self._unlimited_until:
            self._unlimited_until = time.monotonic() + 1
            now = datetime.now(UTC)
            self._unlimited = {}
            for name, limit in UNLIMITED.items():
                self._unlimited |= _headers(NAMES[name], limit, limit, now)
        return self._unlimited


def _headers(name: str, limit: int, remaining: int, reset: datetime) -> dict[str, str]:
    prefix = f"anthropic-ratelimit-{name}"
    return {
        f"{prefix}-limit": str(limit),
        f"{prefix}-remaining": str(remaining),
        f"{prefix}-reset": reset.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
