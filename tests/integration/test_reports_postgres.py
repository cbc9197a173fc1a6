"""Reports and housekeeping on PostgreSQL; and on both databases over a day's work of many kinds."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.concurrency import for_each
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.retry import DEFAULT_POLICIES, RetryPolicy
from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.ledger.reports import BY, costs
from airflow_llm_provider.testing.standin import StandIn
from airflow_llm_provider.testing.wire import Model
from tests.support.books import balance
from tests.support.terms import make_terms

# All of their claims, once more: what they ask for is `ledger_url`, and here it is PostgreSQL's.
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
pytest.register_assert_rewrite("test_reports", "test_maintenance")
from test_maintenance import *  # noqa: E402, F403
from test_reports import *  # noqa: E402, F403

QUICK = DEFAULT_POLICIES | {
    kind: RetryPolicy(attempts=4, first_wait_s=0.01, max_wait_s=0.02)
    for kind in ("network", "rate_limit", "overloaded", "server")
}
GUIDE = "Read the agreement with care. " + "Take what stands, not what is meant. " * 150
LONG = "The goods are delivered within thirty days. " * 20_000  # above 200,000 tokens


@pytest.fixture
def ledger_url(postgres_url: str) -> str:
    return postgres_url


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url: str = (
        f"sqlite:///{tmp_path / 'ledger.db'}"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_url")
    )
    return url


def asked(count: int) -> Iterator[tuple[Request, CallScope]]:
    """Yield questions of many kinds: models, cached prompts of both lifetimes, long prompts, tags, versions."""
    for n in range(count):
        blocks = [{"type": "text", "text": GUIDE if n % 2 or n % 20 == 2 else "What was agreed?"}]
        blocks.append(
            {"type": "text", "text": f"Agreement {n} obliges the buyer to pay ${n}.00 on 2026-03-04."}
        )
        model = "claude-opus-5-5" if n % 5 == 0 else "house-model-1" if n % 10 == 3 else "claude-haiku-5-5"
        if n % (count // 8) == 7:
            model, blocks = "claude-sonnet-4-5", [*blocks, {"type": "text", "text": LONG}]
        request = Request(
            model=model,
            messages=[{"role": "user", "content": blocks}],
            max_tokens=200,
            shared_blocks=n % 2,
            version=("", "1", "2")[n % 3],
            extra={"cache_control": {"type": "ephemeral", "ttl": "1h"}} if n % 20 == 2 else {},
        )
        scope = CallScope(
            dag_id=("nightly", "weekly")[n % 2],
            run_id=f"run-{n % 7}",
            task_id=("read", "ask")[n % 2],
            owner=(None, "finance", "legal")[n % 3],
            tags=(None, json.dumps(["blue", "red"]), json.dumps(["red"]))[n % 3],
            trace_id="0" * 32,
        )
        yield request, scope


async def test_calls_of_all_kinds_add_up_by_everything(any_url: str, claude_server: StandIn) -> None:
    count = int(os.environ.get("BOOKS_CALLS") or 2_000)
    claude_server.validate = claude_server.keep_requests = False
    for model in ("house-model-1", "claude-sonnet-4-5"):
        claude_server.models[model] = Model(id=model, name=model, line="sonnet")
    claude_server.fail(kind="refusal", share=0.01)
    claude_server.fail(529, share=0.03)
    claude_server.fail(kind="drop", share=0.005)
    engine = Engine(
        endpoint=Endpoint(
            client=AnthropicClient(api_key="sk-ant-any", base_url=claude_server.url), timeout_s=30
        ),
        ledger=Ledger(any_url),
        policies=QUICK,
    )
    ended: Counter[str] = Counter()

    async def ask(one: tuple[Request, CallScope]) -> None:
        try:
            await engine.ask(one[0], make_terms(one[1], reuse="always"))
            ended["answered"] += 1
        except LLMError as error:
            ended[error.kind] += 1

    try:
        await for_each(asked(count), ask, limit=128)
        books = balance(any_url, claude_server.invoice)
        reports = {by: await asyncio.to_thread(costs, engine.ledger.database, by) for by in BY}
    finally:
        await engine.close()
    assert ended.total() == count
    assert ended["answered"] > 0.95 * count
    for by, report in reports.items():
        assert report.total == reports["dag"].total, by
    total = reports["dag"].total
    assert (total.calls, total.cost_micro_usd) == (books.paid, books.cost_micro_usd)
    assert (total.unproven, total.unproven_micro_usd) == (books.unproven, books.ceiling_micro_usd)
    for figure in (total.failed, total.unproven, total.unpriced, total.cache_read_tokens):
        assert figure > 0
    assert total.cache_write_5m_tokens > 0 < total.cache_write_1h_tokens
    by_model: Counter[str] = Counter()
    for line in claude_server.invoice.lines:
        if line.fault != "drop":  # those are the unproven ones
            by_model[line.model] += line.cost_micro_usd or 0
    assert {key[0]: one.cost_micro_usd for key, one in reports["model"].groups.items()} == dict(by_model)
    red = reports["tag"].groups["red",]
    assert red.calls > reports["tag"].groups["blue",].calls > 0
