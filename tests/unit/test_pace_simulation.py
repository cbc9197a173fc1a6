"""The pace over many minutes of simulated time: against limits told and untold, strangers, and refusals by chance."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from conftest import SCOPE, question

from airflow_llm_provider.engine.rate_limiter import RateLimiter
from airflow_llm_provider.errors import RateLimited
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.testing.limits import Bucket


@dataclass
class Api:
    """An API with a limit, beside whose caller a stranger uses it, and which refuses some calls by chance."""

    rpm: float
    burst: float
    is_told: bool
    stranger: float
    by_chance: float
    clock: Callable[[], float]
    dice: random.Random = field(default_factory=lambda: random.Random(7))
    accepted: list[float] = field(default_factory=list)
    refused: int = 0

    def __post_init__(self) -> None:
        self.bucket = Bucket(per_minute=self.rpm, capacity=self.burst, clock=self.clock)
        self._stranger_s = 0.0

    def take(self) -> bool:
        now = self.clock()
        while self._stranger_s < now and self.stranger:
            self._stranger_s += 60 / (self.rpm * self.stranger)
            if self.bucket.level() >= 1:
                self.bucket.take(1)
        if self.dice.random() < self.by_chance or self.bucket.level() < 1:
            self.refused += 1
            return False
        self.bucket.take(1)
        self.accepted.append(now)
        return True

    def headers(self) -> dict[str, str]:
        if not self.is_told:
            return {}
        return {
            "anthropic-ratelimit-requests-limit": str(int(self.rpm)),
            "anthropic-ratelimit-requests-remaining": str(max(0, int(self.bucket.level()))),
        }


async def asked(api: Api, ledger: Ledger, *, seconds: float, callers: int, latency_s: float) -> None:
    """Ask all the time, as fast as the pace allows."""
    now = asyncio.get_running_loop().time
    pace = RateLimiter(ledger, now=now)

    async def ask() -> None:
        while now() < seconds:
            permit = await pace.acquire(question(), SCOPE)
            is_taken = api.take()
            headers = api.headers()
            await asyncio.sleep(latency_s if is_taken else 0.1)
            permit.read_headers(headers)
            if not is_taken:
                permit.record_error(RateLimited("no", retry_after_s=1.0))
                await asyncio.sleep(1.0 + api.dice.random())

    await asyncio.gather(*(ask() for _ in range(callers)))
    await pace.close()


@pytest.fixture
def ledger(simulated_time: Callable[[], float], ledger_url: str):
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.close()


async def used(ledger: Ledger, *, rpm: float, seconds: float, **of_api: object) -> float:
    """Return the share of what was to be had that was had."""
    api = Api(rpm=rpm, burst=rpm / 10, clock=asyncio.get_running_loop().time, **of_api)
    await asked(api, ledger, seconds=seconds, callers=40, latency_s=2)
    return len(api.accepted) / (rpm * seconds / 60 * (1 - api.stranger) * (1 - api.by_chance))


@pytest.mark.parametrize("is_told", [True])
async def test_scattered_refusals_do_not_make_the_pace_collapse(ledger: Ledger, is_told: bool) -> None:
    assert await used(ledger, rpm=120, seconds=300, is_told=is_told, stranger=0.0, by_chance=0.05) >= 0.7


@pytest.mark.parametrize("is_told", [False])
async def test_what_a_stranger_leaves_is_used(ledger: Ledger, is_told: bool) -> None:
    assert await used(ledger, rpm=120, seconds=300, is_told=is_told, stranger=0.5, by_chance=0.0) >= 0.7


@pytest.mark.slow
@pytest.mark.parametrize("by_chance", [0.0, 0.03, 0.1])
@pytest.mark.parametrize("stranger", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("is_told", [True, False])
async def test_nine_tenths_of_what_is_to_be_had_are_used_over_ten_minutes(
    ledger: Ledger, is_told: bool, stranger: float, by_chance: float
) -> None:
    used_share = await used(
        ledger, rpm=240, seconds=600, is_told=is_told, stranger=stranger, by_chance=by_chance
    )
    assert used_share >= 0.8, "0.9 by the median; one unlucky run in twenty has less"


@pytest.mark.slow
@pytest.mark.parametrize("is_told", [True, False])
async def test_a_limit_of_four_thousand_is_used_at_ten_seconds_latency(ledger: Ledger, is_told: bool) -> None:
    now = asyncio.get_running_loop().time
    api = Api(rpm=4000, burst=100, is_told=is_told, stranger=0.0, by_chance=0.0, clock=now)
    await asked(api, ledger, seconds=300, callers=1500, latency_s=10)
    later = sum(at > 60 for at in api.accepted)
    assert later >= (0.97 if is_told else 0.87) * 4 * 4000
