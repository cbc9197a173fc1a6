"""Pace: no more a minute than the account allows, and silence for as long as the server asks."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiolimiter import AsyncLimiter

from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.pricing import Usage

BYTES_A_TOKEN = 4  # of English text; an estimate that the first replies correct
_FIRST_GUESS_OUTPUT_TOKENS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """An account's limits a minute: requests, input tokens, output tokens; None where not known."""

    rpm: int | None = None
    itpm: int | None = None
    otpm: int | None = None


class Pace:
    """The pace of one process on one connection."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        limits = limits or Limits()
        self._now, self._sleep = now, sleep
        self._requests = AsyncLimiter(limits.rpm) if limits.rpm else None
        self._input = AsyncLimiter(limits.itpm) if limits.itpm else None
        self._output = AsyncLimiter(limits.otpm) if limits.otpm else None
        self._quiet_until = 0.0
        self._usual_output = float(_FIRST_GUESS_OUTPUT_TOKENS)

    async def permit(self, request: Request) -> None:
        """Wait until `request` may be sent."""
        if self._requests:
            await self._requests.acquire()
        if self._input:
            tokens = request.input_ceiling_tokens / BYTES_A_TOKEN
            await self._input.acquire(min(tokens, self._input.max_rate))
        if self._output:
            await self._output.acquire(min(self._usual_output, request.max_tokens, self._output.max_rate))
        while (wait := self._quiet_until - self._now()) > 0:
            # Spread over a second, so that those who waited together do not come back together.
            await self._sleep(wait + random.random())

    def heard(self, retry_after_s: float) -> None:
        """Send nothing for so many seconds: one was told, all obey."""
        self._quiet_until = max(self._quiet_until, self._now() + retry_after_s)

    def learn(self, usage: Usage) -> None:
        """Correct the estimate of what a reply takes."""
        self._usual_output += (usage.output_tokens - self._usual_output) * 0.1
