"""A scripted wire for the engine, simulated time, and a guard against tests that really sleep."""

import asyncio
import functools
import os
import selectors
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
import typer.testing
import waiting
from hypothesis import settings

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

# Typer reads the signatures of all our commands anew at every invocation; a test does not need that.
typer.testing._get_command = functools.cache(typer.testing._get_command)
# Hypothesis tries this many examples for each claim, or as many as EXAMPLES says: `make test-slow` looks longer.
settings.register_profile("unit", max_examples=int(os.environ.get("EXAMPLES", "10")), deadline=None)
settings.load_profile("unit")

SCOPE = CallScope(dag_id="nightly", run_id="run-1", task_id="ask", trace_id="0" * 32)

ASKED = "the-model-that-was-asked"  # in a scripted reply: Wire puts the request's model in its place


def message(
    text: str, *, stop_reason: str = "end_turn", input_tokens: int = 10, output_tokens: int = 5
) -> bytes:
    return orjson.dumps(
        {
            "model": ASKED,
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

    async def send(
        self,
        request: Request,
        *,
        timeout_s: float,
        on_first_byte: Callable[[], object],
        on_headers: HeaderCallback,
    ) -> bytes:
        self.sent.append(request)
        step = self.script.pop(0) if self.script else self.usually
        on_first_byte()
        if self.gate:
            await self.gate.wait()
        await asyncio.sleep(0)
        answer = step(request) if callable(step) else step
        on_headers(self.headers)
        if isinstance(answer, LLMError):
            raise answer
        return answer.replace(ASKED.encode(), request.model.encode())

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


class SimulatedSelector(selectors.DefaultSelector):
    """Instead of waiting for the next timer, move the clock to it; wait really for threads and sockets."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.busy_threads = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0 or self.busy_threads:
            return super().select(timeout)  # while a thread works, time stands still
        if ready := super().select(0):
            return ready
        self.now += timeout
        return []


class SimulatedTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on which sleeping takes no real time: timers fire in order, as soon as all others wait too.

    What runs in `asyncio.to_thread` takes no simulated time, however slow the machine is. The ledger's group
    commits are not seen: don't put a timeout around them here.
    """

    def __init__(self) -> None:
        self.simulated = SimulatedSelector()
        super().__init__(self.simulated)

    def time(self) -> float:
        return self.simulated.now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        self.simulated.busy_threads += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._thread_done)
        return future

    def _thread_done(self, _: object) -> None:
        self.simulated.busy_threads -= 1


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if "simulated_time" in item.fixturenames:
        return {"simulated time": SimulatedTimeLoop}
    return {"real time": asyncio.new_event_loop}


@pytest.fixture
async def simulated_time() -> AsyncIterator[Callable[[], float]]:
    """Simulate time for a test, its event loop and the clock of the SQLite ledgers that are opened after this.

    Return the clock in seconds, for what takes a clock as an argument. A fixture that opens a ledger must ask
    for this one first.
    """
    loop = asyncio.get_running_loop()
    started_days = time.time() / 86_400 + 2_440_587.5  # a Julian day, as SQLite counts

    def connect(connection: object, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.create_function("julianday", 1, lambda _: started_days + loop.time() / 86_400)

    sa.event.listen(sa.Engine, "connect", connect)
    yield loop.time
    sa.event.remove(sa.Engine, "connect", connect)


# A unit test may sleep this long for real, in all its threads together. Whoever needs more wants `simulated_time`,
# a `Clock`, or an event that says when to go on: a second per test would be twenty minutes for all of them.
MOST_SLEPT_S = 0.1


@pytest.fixture(autouse=True)
def _no_real_sleep() -> Iterator[None]:
    """Fail a test that sleeps for longer than MOST_SLEPT_S of real time."""
    waiting.forget_sleep()
    yield
    if (slept_s := waiting.slept_s()) > MOST_SLEPT_S:
        pytest.fail(
            f"It slept for {slept_s:.2f} s of real time, {MOST_SLEPT_S} s are allowed; see conftest.py"
        )


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated ledger without rows, to be copied: making the tables takes five times as long as opening them."""
    path = tmp_path_factory.mktemp("empty") / "ledger.db"
    Ledger(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def ledger_url(tmp_path: Path, empty_ledger: Path) -> str:
    path = tmp_path / "ledger.db"
    shutil.copy(empty_ledger, path)
    return f"sqlite:///{path}"


@pytest.fixture
async def engine(wire: Wire, clock: Clock, ledger_url: str) -> AsyncIterator[Engine]:
    ledger = Ledger(ledger_url)
    engine = Engine(endpoint=Endpoint(client=wire), ledger=ledger, sleep=clock.sleep)
    engine.rate_limiter = RateLimiter(ledger, now=clock.now, sleep=clock.sleep)
    yield engine
    await engine.close()
