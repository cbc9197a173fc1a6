"""The ledger on PostgreSQL: the same promises, and what only a server can do to it."""

import asyncio
import hashlib
import random
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from airflow_llm_provider.documents.document import Document
from airflow_llm_provider.documents.output import RowWriter
from airflow_llm_provider.documents.prompt import DocumentPrompt
from airflow_llm_provider.documents.run import Run
from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import LedgerUnavailable
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import OpenedAttempt, Sighting
from airflow_llm_provider.options import Options
from airflow_llm_provider.testing.standin import StandIn
from tests.support.books import balance
from tests.support.postgres import LocalPostgres
from tests.support.terms import make_terms

# All of the claims, once more: what they ask for is `ledger_url`, and here it is PostgreSQL's.
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
pytest.register_assert_rewrite("test_ledger_claims")
from test_ledger_claims import *  # noqa: E402, F403
from test_ledger_claims import NIGHTLY, bought, entry, failure, settlement, states  # noqa: E402


@pytest.fixture
def ledger_url(postgres_url: str) -> str:
    return postgres_url


@pytest.fixture
def own_server() -> Iterator[LocalPostgres]:
    """Run a server that a test may stop and start again, its data and its port kept."""
    with (
        tempfile.TemporaryDirectory(prefix="llm-postgres-data-") as folder,
        LocalPostgres(Path(folder)) as server,
    ):
        yield server


def keys(count: int) -> list[str]:
    return [hashlib.sha256(b"%d" % i).hexdigest() for i in range(count)]


def question(number: int) -> Request:
    return Request(
        model="claude-haiku-5-5",
        messages=[{"role": "user", "content": f"Document {number}: due on 2026-03-04."}],
        max_tokens=100,
    )


async def test_writers_of_the_same_keys_in_any_order_never_wait_in_a_circle(
    ledger_url: str, postgres: LocalPostgres
) -> None:
    dice = random.Random(7)  # seeded: what fails once fails again
    ledgers = [Ledger(ledger_url, lease_s=0.1, beat_s=0.05) for _ in range(6)]

    async def one(ledger: Ledger, key: str) -> None:
        for _ in range(3):
            opened = await ledger.open(entry(key))
            if isinstance(opened, OpenedAttempt):
                if dice.random() < 0.5:
                    await asyncio.sleep(dice.random() * 0.2)  # some past the end of their lease
                ending = failure if dice.random() < 0.7 else settlement
                await ledger.record(ending(opened, fingerprint=key))
            await ledger.record(Sighting(key, key))

    async def work(ledger: Ledger) -> None:
        mine = dice.sample(keys(150), 120)
        await asyncio.gather(*(one(ledger, key) for key in mine))

    await asyncio.gather(*(work(ledger) for ledger in ledgers))
    with ledgers[0].database.read() as connection:
        counted = sa.text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        twice = sa.text(
            "SELECT claim FROM call WHERE state IN ('open', 'settled') GROUP BY 1 HAVING count(*) > 1"
        )
        assert connection.execute(counted).scalar_one() == 0
        assert connection.execute(twice).all() == []
    for ledger in ledgers:
        await asyncio.to_thread(ledger.close)


async def test_connections_that_break_cost_nobody_anything(ledger_url: str, postgres: LocalPostgres) -> None:
    ledger = Ledger(ledger_url)
    admin = sa.create_engine(postgres.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    cut = sa.text("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = :name")

    async def cut_all(after_s: float) -> int:
        await asyncio.sleep(after_s)
        with admin.connect() as connection:
            return int(connection.execute(cut, {"name": ledger.database.url.database}).scalar_one())

    for chunk in range(10):
        buying = [bought(ledger, key) for key in keys(300)[chunk * 30 :][:30]]
        cuts, *_ = await asyncio.gather(cut_all(chunk * 0.003), *buying)
        assert cuts > 0
    assert states(ledger) == ["settled"] * 300
    answers = await asyncio.gather(*(ledger.find_reply(key, NIGHTLY, "run") for key in keys(300)))
    assert all(answers)
    await asyncio.to_thread(ledger.close)


async def test_a_server_restarted_in_the_middle_of_work_is_not_noticed(
    own_server: LocalPostgres, claude_server: StandIn
) -> None:
    claude_server.latency_s = 0.1
    client = AnthropicClient(api_key="sk-ant-any", base_url=claude_server.url)
    engine = Engine(endpoint=Endpoint(client=client), ledger=await asyncio.to_thread(Ledger, own_server.url))
    outcomes: list[object] = []
    in_the_middle = asyncio.Event()

    def told(_: int, outcome: object) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 100:
            in_the_middle.set()

    asking = asyncio.create_task(
        engine.map((question(i) for i in range(300)), told, make_terms(NIGHTLY), max_in_flight=20)
    )
    await in_the_middle.wait()
    await asyncio.to_thread(own_server.close)
    was_done = len(outcomes)
    await asyncio.sleep(1)
    assert len(outcomes) <= was_done + 40, "nothing is asked or told while the ledger is away"
    await asyncio.to_thread(own_server.__enter__)
    await asking
    await engine.close()
    assert [o for o in outcomes if isinstance(o, Exception)] == []
    assert len(outcomes) == claude_server.invoice.paid == 300
    books = balance(own_server.url, claude_server.invoice)
    assert (books.paid, books.unproven) == (300, 0)


async def test_a_run_whose_ledger_goes_down_writes_what_was_answered_and_asks_no_more(
    own_server: LocalPostgres, claude_server: StandIn, tmp_path: Path
) -> None:
    client = AnthropicClient(api_key="sk-ant-any", base_url=claude_server.url)
    ledger = await asyncio.to_thread(lambda: Ledger(own_server.url, deadline_s=1))
    engine = Engine(endpoint=Endpoint(client=client), ledger=ledger)
    prompt = DocumentPrompt(
        prompt="What is owed?",
        output=OutputType(None),
        endpoint=engine.endpoint,
        options=Options(model="claude-haiku-5-5"),
    )
    is_listed, is_down = threading.Event(), threading.Event()

    def found() -> Iterator[Document]:
        for n in range(200):
            if n == 130:
                is_listed.set()
                is_down.wait(60)
            yield Document(id=str(n), text=f"Letter {n}.")

    run = Run(engine=engine, scope=NIGHTLY, prompt=prompt, max_in_flight=2)
    with RowWriter(tmp_path / "rows.jsonl") as sink:
        running = asyncio.create_task(run.run(found(), sink))
        await asyncio.to_thread(is_listed.wait, 60)
        own_server.close()  # in this thread, as it handles signals
        is_down.set()
        manifest = await running
        written = await asyncio.to_thread(sink.publish, manifest)
    assert isinstance(run.stopped, LedgerUnavailable)
    assert sum(manifest["outcomes"].values()) == manifest["documents"] == 200
    assert written.rows == manifest["outcomes"]["answered"] >= 125
    assert claude_server.invoice.paid <= written.rows + run.max_in_flight
    await asyncio.to_thread(own_server.__enter__)
    await engine.close()
    balance(own_server.url, claude_server.invoice)


async def test_nothing_is_sent_while_the_server_is_down_and_all_goes_on_when_it_is_back(
    own_server: LocalPostgres, claude_server: StandIn
) -> None:
    client = AnthropicClient(api_key="sk-ant-any", base_url=claude_server.url)
    ledger = await asyncio.to_thread(lambda: Ledger(own_server.url, deadline_s=1))
    engine = Engine(endpoint=Endpoint(client=client), ledger=ledger)
    await asyncio.to_thread(own_server.close)
    with pytest.raises(LedgerUnavailable, match=r"can't be reached.*Nothing is sent without it"):
        await engine.ask(question(1), make_terms(NIGHTLY))
    with pytest.raises(LedgerUnavailable, match="can't be reached"):
        await asyncio.to_thread(lambda: Ledger(own_server.url, deadline_s=0.5))
    assert claude_server.seen == 0
    await asyncio.to_thread(own_server.__enter__)
    await engine.ask(question(1), make_terms(NIGHTLY))
    assert claude_server.invoice.paid == 1
    await engine.close()


def test_a_process_stopped_within_its_transaction_is_thrown_out_of_it(ledger_url: str) -> None:
    database = Database(ledger_url)
    with database.write() as connection:
        database.now_ms(connection)
        assert connection.execute(sa.text("SHOW idle_in_transaction_session_timeout")).scalar_one() == "10s"
    with database.read() as connection:
        assert connection.execute(sa.text("SHOW idle_in_transaction_session_timeout")).scalar_one() == "0"
    database.close()
