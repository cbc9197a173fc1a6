"""A scripted wire for the engine: what a server would answer, without one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from airflow_llm_provider.engine.client import HeaderCallback
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.rate_limiter import RateLimiter
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.terms import Terms
from airflow_llm_provider.errors import BadRequest, LLMError
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from tests.support.terms import make_terms as make_terms_in

SCOPE = CallScope(dag_id="nightly", run_id="run-1", task_id="ask", trace_id="0" * 32)


def message(
    text: str, *, stop_reason: str = "end_turn", input_tokens: int = 10, output_tokens: int = 5
) -> bytes:
    return orjson.dumps(
        {
            "model": "claude-haiku-5-5",
            "stop_reason": stop_reason,
            "content": [{"type": "text", "text": text}],
            "usage": {"input_tokens": input_tokens, "output_tokens": output_tokens},
        }
    )


def question(text: str = "How are you?", **fields: object) -> Request:
    return Request(**{"model": "claude-haiku-5-5", "messages": [{"role": "user", "content": text}], **fields})


def make_terms(*, scope: CallScope = SCOPE, **fields: Any) -> Terms:
    return make_terms_in(scope, **fields)


class Wire:
    """Answers each send with what the script says: bytes, an error, or a function of the request."""

    def __init__(self) -> None:
        self.sent: list[Request] = []
        self.script: list[bytes | LLMError | Callable[[Request], bytes | LLMError]] = []
        self.usually: bytes | Callable[[Request], bytes | LLMError] = message("Fine.")
        self.count: Callable[[Request], int] | None = None  # None: a server that does not count tokens
        self.counted: list[Request] = []
        self.gate: asyncio.Event | None = None
        self.headers: dict[str, str] = {}
        self.closed = False

    async def send(self, request: Request, *, timeout_s: float, on_headers: HeaderCallback) -> bytes:
        self.sent.append(request)
        step = self.script.pop(0) if self.script else self.usually
        if self.gate:
            await self.gate.wait()
        await asyncio.sleep(0)
        answer = step(request) if callable(step) else step
        on_headers(self.headers)
        if isinstance(answer, LLMError):
            raise answer
        return answer

    async def count_tokens(self, request: Request, *, timeout_s: float) -> int:
        if self.count is None:
            raise BadRequest("HTTP 404: not found")
        self.counted.append(request)
        return self.count(request)

    async def close(self) -> None:
        self.closed = True


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> float:
        return sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
async def engine(wire: Wire, clock: Clock, ledger_url: str) -> AsyncIterator[Engine]:
    ledger = Ledger(ledger_url)
    engine = Engine(endpoint=Endpoint(client=wire), ledger=ledger, sleep=clock.sleep)
    engine.rate_limiter = RateLimiter(ledger, now=clock.now, sleep=clock.sleep)
    yield engine
    await engine.close()
