"""The same engine against a stand-in that is not ours: llmock, from PyPI."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from llmock.scenarios import Fail
from llmock.testing import LLMockServer

from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.retry import DEFAULT_POLICIES, RetryPolicy
from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from tests.support.terms import make_terms

SCOPE = CallScope(dag_id="nightly", run_id="run-1", task_id="ask", trace_id="0" * 32)
QUICK = DEFAULT_POLICIES | {
    kind: RetryPolicy(attempts=4, first_wait_s=0.01, max_wait_s=0.02)
    for kind in ("network", "rate_limit", "overloaded", "server")
}


def question(n: int = 0) -> Request:
    content = [{"type": "text", "text": f"What is the capital of country {n}?"}]
    return Request(model="claude-haiku-5-5", messages=[{"role": "user", "content": content}], max_tokens=100)


@pytest.fixture
def llmock() -> Iterator[LLMockServer]:
    with LLMockServer() as server:
        yield server


@pytest.fixture
async def engine(llmock: LLMockServer, tmp_path: Path) -> AsyncIterator[Engine]:
    client = AnthropicClient(api_key="test", base_url=llmock.base_url("anthropic"))
    engine = Engine(
        endpoint=Endpoint(client=client, timeout_s=5),
        ledger=Ledger(f"sqlite:///{tmp_path}/ledger.db"),
        policies=QUICK,
    )
    yield engine
    await engine.close()


async def test_an_answer_is_read_and_remembered(engine: Engine) -> None:
    first = await engine.ask(question(), make_terms(SCOPE))
    again = await engine.ask(question(), make_terms(SCOPE))
    assert first.text
    assert first.usage.input_tokens > 0
    assert (again.text, again.reused) == (first.text, True)


@pytest.mark.parametrize("status", [429, 500, 529])
async def test_a_passing_error_is_retried(engine: Engine, llmock: LLMockServer, status: int) -> None:
    llmock.state.scenarios.add(Fail(status, retry_after=0.05, times=2))
    reply = await engine.ask(question(), make_terms(SCOPE))
    assert reply.attempts == 3


async def test_a_lasting_error_costs_the_others_nothing(engine: Engine, llmock: LLMockServer) -> None:
    llmock.state.scenarios.add(Fail(400, times=1))
    outcomes: dict[int, object] = {}
    await engine.map(
        (question(n) for n in range(20)), outcomes.__setitem__, make_terms(SCOPE), max_in_flight=4
    )
    assert sum(isinstance(outcome, LLMError) for outcome in outcomes.values()) == 1
    assert len(outcomes) == 20
