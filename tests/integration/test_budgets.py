"""One budget over many processes: never passed, spent to its end, and finished with no repeats when it is raised.

BUDGET_PROCESSES=32 BUDGET_LEASE_S=45 runs it as large as the claim.
"""

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.retry import policies
from airflow_llm_provider.errors import NetworkError
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.ledger.schema import account, call
from airflow_llm_provider.testing.standin import StandIn
from airflow_llm_provider.testing.wire import MODELS, Model
from tests.support.books import balance
from tests.support.postgres import LocalPostgres
from tests.support.terms import make_terms

# All of the promises, once more: what they ask for is `ledger_url`, and here it is PostgreSQL's.
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
pytest.register_assert_rewrite("test_budget_claims")
from test_budget_claims import *  # noqa: E402, F403
from test_budget_claims import NIGHTLY, accounts, entry, failure, opened, settlement, summed  # noqa: E402

PROCESSES = int(os.environ.get("BUDGET_PROCESSES", "4"))
LEASE_S = float(os.environ.get("BUDGET_LEASE_S", "4.5"))
DOCUMENTS = 160
LONG_ANSWER = "word " * 800  # 1,000 tokens, $0.01


@pytest.fixture
def ledger_url(postgres_url: str) -> str:
    return postgres_url


@pytest.fixture(params=["sqlite", "postgresql"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def priced_server(claude_server: StandIn) -> StandIn:
    claude_server.validate, claude_server.keep_requests = False, False
    claude_server.latency_s = 0.2
    claude_server.reply(text=LONG_ANSWER)
    return claude_server


def start(ledger_url: str, server: StandIn, **options: object) -> subprocess.Popen[str]:
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    program = str(Path(__file__).parent / "budget_process.py")
    return subprocess.Popen(
        [sys.executable, program, "--ledger", ledger_url, "--server", server.url, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for processes to end; return what they said, added up."""
    said, _ = process.communicate(timeout=300)
    told = [json.loads(line) for line in said.splitlines()]
    assert [one["other"] for one in told if one["other"]] == []
    return {name: sum(one[name] for one in told) for name in ("answered", "pending", "paid")}


def account_of(ledger_url: str) -> tuple[int, int]:
    """Return what the one account has settled and reserved."""
    engine = sa.create_engine(ledger_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        row = connection.execute(sa.select(account)).one()
    engine.dispose()
    return row.settled_micro_usd, row.reserved_micro_usd


def calls_of(ledger_url: str) -> list[sa.Row]:
    engine = sa.create_engine(ledger_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        rows = connection.execute(sa.select(call)).all()
    engine.dispose()
    return list(rows)


@pytest.mark.parametrize(("processes", "in_flight"), [(PROCESSES, 1), (1, 256)])
def test_a_dollar_is_spent_to_its_end_and_never_passed(
    shared_url: str, priced_server: StandIn, processes: int, in_flight: int
) -> None:
    size = {"documents": DOCUMENTS, "processes": processes, "in_flight": in_flight}
    told = ended(start(shared_url, priced_server, **size))
    invoice = priced_server.invoice
    assert 970_000 <= invoice.cost_micro_usd <= 1_000_000
    assert told["answered"] == told["paid"] == invoice.paid
    assert told["answered"] + told["pending"] == DOCUMENTS
    assert told["pending"] > 30
    assert account_of(shared_url) == (invoice.cost_micro_usd, 0)

    told = ended(start(shared_url, priced_server, cap_usd=10, **size))
    assert (told["answered"], told["pending"]) == (DOCUMENTS, 0)
    assert invoice.paid == DOCUMENTS, "what was paid under the lower cap is not paid again"
    books = balance(shared_url, invoice)
    assert (books.paid, books.unproven) == (DOCUMENTS, 0)
    assert account_of(shared_url) == (books.cost_micro_usd, 0)


def test_a_budget_is_not_passed_by_killing_those_who_hold_it(shared_url: str, priced_server: StandIn) -> None:
    doomed = max(1, PROCESSES * 10 // 32)  # those left have more to ask than a dollar buys
    size = {"documents": DOCUMENTS, "processes": PROCESSES, "in_flight": 1, "lease_s": LEASE_S}
    process = start(shared_url, priced_server, **size)
    while priced_server.invoice.paid < 20:
        assert process.poll() is None
        time.sleep(0.02)
    children = psutil.Process(process.pid).children()
    _stop_while_all_ask(children, shared_url)
    for child in children[:doomed]:
        child.kill()
    killed_ms = time.time() * 1000
    for child in children[doomed:]:
        child.resume()
    told = ended(process)
    assert told["pending"] > 0, "the others wait for what the killed ones held, and stop at the cap"
    assert priced_server.invoice.cost_micro_usd <= 1_000_000
    rows = calls_of(shared_url)
    left = [row for row in rows if row.state == "unproven"]
    assert [row for row in rows if row.state == "open"] == []
    assert len(left) == doomed
    assert max(row.closed_ms for row in left) - killed_ms <= (LEASE_S + 15) * 1000
    settled, reserved = account_of(shared_url)
    books = balance(shared_url, priced_server.invoice)
    assert (settled, reserved) == (books.cost_micro_usd + books.ceiling_micro_usd, 0)
    assert settled <= 1_000_000


def _stop_while_all_ask(processes: list[psutil.Process], ledger_url: str) -> None:
    """Stop processes at a moment at which each of them has a call in flight."""
    while True:
        for process in processes:
            process.suspend()
        if sum(row.state == "open" for row in calls_of(ledger_url)) == len(processes):
            return
        for process in processes:
            process.resume()
        time.sleep(0.02)


async def test_writers_on_many_budgets_never_wait_in_a_circle(
    postgres_url: str, postgres: LocalPostgres
) -> None:
    with contextlib.ExitStack() as closing:
        ledgers = [Ledger(postgres_url, lease_s=0.3, beat_s=0.1) for _ in range(16)]
        for ledger in ledgers:
            closing.callback(ledger.close)
        await _work_on_many_budgets(ledgers)
        with ledgers[0].database.read() as connection:
            counted = sa.text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            assert connection.execute(counted).scalar_one() == 0


async def _work_on_many_budgets(ledgers: list[Ledger]) -> None:
    dice = random.Random(7)  # seeded: what fails once fails again
    scopes = [
        dataclasses.replace(NIGHTLY, run_id=f"run-{n % 5}", task_id=f"task-{n % 3}", budget_micro_usd=60_000)
        for n in range(15)
    ]

    async def work(ledger: Ledger) -> None:
        async def one() -> None:
            scope = dataclasses.replace(dice.choice(scopes), run_budget_micro_usd=100_000)
            attempt = await opened(ledger, 300, scope=scope)
            if dice.random() < 0.1:
                await asyncio.sleep(dice.random())  # some past the end of their lease
            ending = failure if dice.random() < 0.3 else settlement
            await ledger.record(ending(attempt))

        for _ in range(6):
            await asyncio.gather(*(one() for _ in range(20)))

    await asyncio.gather(*(work(ledger) for ledger in ledgers))
    assert accounts(ledgers[0]) == summed(ledgers[0])
    assert len(accounts(ledgers[0])) == 5 + 15


# The books.

CALLS = int(os.environ.get("BOOKS_CALLS", "1500"))
SHARED = "You read delivery notes, and answer with the number of boxes and the day they are due. " * 60


def any_question(number: int) -> Request:
    """Return a question of the mixed workload: two models, cached prefixes, long prompts, one without a price."""
    model = "claude-next" if number % 25 == 0 else ("claude-haiku-5-5", "claude-sonnet-5-5")[number % 2]
    asked = f"Document {number}: {number + 7} boxes, due on 2026-03-04. "
    if number % 500 == 2:
        asked *= 9_500  # over 100,000 tokens, where one of the models has a higher rate
    blocks = [{"type": "text", "text": asked}]
    if number % 3:
        ttl = {"type": "ephemeral", "ttl": "1h" if number % 2 else "5m"}
        blocks.insert(0, {"type": "text", "text": SHARED, "cache_control": ttl})
    return Request(model=model, messages=[{"role": "user", "content": blocks}], max_tokens=200)


async def test_a_mixed_workload_balances_to_the_micro_usd(shared_url: str) -> None:
    """BOOKS_CALLS=10000 runs it as large as the claim."""
    models = [*MODELS, Model(id="claude-next", name="Not priced", line="next")]
    with StandIn(models=models, latency_s=0.02) as server:
        server.fail(status=529, share=0.02)
        server.fail(kind="drop", share=0.01)
        client = AnthropicClient(api_key="sk-ant-any", base_url=server.url)
        ledger = await asyncio.to_thread(Ledger, shared_url)
        engine = Engine(
            endpoint=Endpoint(client=client), ledger=ledger, policies=policies({"network": {"attempts": 1}})
        )
        outcomes: list[object] = []
        for number, model in enumerate(("priced", "unpriced")):
            cap = None if number else 10**12
            scope = CallScope(dag_id="mixed", run_id=model, task_id="ask", run_budget_micro_usd=cap)
            requests = (any_question(n) for n in range(CALLS) if (n % 25 == 0) == bool(number))
            await engine.map(
                requests, lambda _, outcome: outcomes.append(outcome), make_terms(scope), max_in_flight=64
            )
        tally = engine.tally
        await engine.close()
        books = balance(shared_url, server.invoice)
    replies = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
    lost = [outcome for outcome in outcomes if not isinstance(outcome, Reply)]
    assert all(isinstance(error, NetworkError) for error in lost)
    assert len(replies) + len(lost) == CALLS
    assert len(replies) == books.paid
    assert len(lost) == books.unproven == tally.unproven > 0
    assert sum(reply.cost_micro_usd or 0 for reply in replies) == books.cost_micro_usd == tally.paid_micro_usd
    unpriced = [reply for reply in replies if reply.cost_micro_usd is None]
    assert {reply.model for reply in unpriced} == {"claude-next"}
    heard = [line for line in server.invoice.lines if line.fault is None]
    assert len(unpriced) == tally.unpriced == sum(line.cost_micro_usd is None for line in heard) > 0
    rows = calls_of(shared_url)
    paid = [row for row in rows if row.state == "settled"]
    for kind in ("cache_read", "cache_write_5m", "cache_write_1h"):
        tokens = sum(getattr(row, f"{kind}_tokens") for row in paid)
        assert tokens > 0, kind
    assert max(row.uncached_tokens for row in paid) > 100_000
    # What has no price has no budget; all else is booked on the run's account.
    assert account_of(shared_url) == (
        books.cost_micro_usd
        + sum(row.ceiling_micro_usd for row in rows if row.state == "unproven" and row.accounts),
        0,
    )


async def test_a_call_that_ends_while_its_account_is_made_anew_is_counted(ledger_of: Any) -> None:
    one, other, ended = ledger_of(), ledger_of(), threading.Event()
    attempt = await opened(one)
    with one.database.write() as connection:
        connection.execute(account.delete())  # as setting the first budget of a kind does

    def end_slowly() -> None:
        with one.database.write() as connection:
            one._writes.apply(connection, one.database.now_ms(connection), [settlement(attempt)])
            ended.set()
            time.sleep(0.5)

    ending = asyncio.create_task(asyncio.to_thread(end_slowly))
    await asyncio.to_thread(ended.wait)
    await other.open(entry())
    await ending
    assert accounts(other) == summed(other) == {"run nightly/run-1": (100, 300)}
