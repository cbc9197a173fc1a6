"""Write a dump of a ledger of the newest version of the schema, for SQLite and PostgreSQL; see README.md."""

import asyncio
import sqlite3
import subprocess
import tempfile
from contextlib import closing
from functools import partial
from pathlib import Path

from airflow_llm_provider.ledger import effects, rate_limits, reviews
from airflow_llm_provider.ledger.budgets import Budget, set_budget
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.migrations import LATEST_VERSION
from airflow_llm_provider.ledger.records import (
    CallScope,
    Failure,
    InvalidAnswer,
    NewAttempt,
    OpenedAttempt,
    Reopening,
    Saving,
    Settlement,
    Sighting,
)
from airflow_llm_provider.pricing import Usage
from tests.support.postgres import LocalPostgres, server_programs

HERE = Path(__file__).parent
SCOPE = CallScope(
    dag_id="invoices",
    run_id="scheduled__2026-01-01",
    task_id="read",
    connection_id="claude_default",
    owner="finance",
    tags='["nightly"]',
    trace_id="0" * 32,
    run_budget_micro_usd=5_000_000,
)
REPLY = b'{"content":[{"type":"text","text":"Fine."}]}'


async def fill(ledger: Ledger) -> None:
    """Leave rows of every table, and calls of every state but `late`, in the ledger."""
    limit = Budget(name="nightly", cap_micro_usd=9_000_000, scope="dag", per="day")
    await ledger.write(lambda connection, _: set_budget(connection, limit))
    for number in range(8):
        key = f"{number:064x}"
        attempt = NewAttempt(
            fingerprint=key,
            scope=SCOPE,
            reuse="always" if number % 2 else "run",
            model="claude-haiku-5-5",
            item_id=f"invoice-{number}.pdf",
            ceiling_micro_usd=900,
            version="v1",
            family="f" * 16,
            ceiling_tokens=500,
        )
        opened = await ledger.open(attempt)
        assert isinstance(opened, OpenedAttempt)
        if number in (5, 6):
            await ledger.record(
                Failure(
                    attempt_id=opened.attempt_id,
                    fingerprint=key,
                    billed=number == 6,
                    error_class="Overloaded",
                    error="529",
                    prompt=lambda: b'{"model":"claude-haiku-5-5"}',
                )
            )
        elif number < 5:
            await ledger.record(
                Settlement(
                    attempt_id=opened.attempt_id,
                    fingerprint=key,
                    reply=REPLY,
                    prompt=lambda: b'{"model":"claude-haiku-5-5"}',
                    stop_reason="end_turn",
                    usage=Usage(uncached_tokens=100, output_tokens=20, cache_read_tokens=50),
                    cost_micro_usd=120,
                    latency_ms=700,
                )
            )
            await ledger.record(Sighting(f"{number + 256:064x}", key))
        if number == 1:
            await ledger.record(
                InvalidAnswer(opened.attempt_id, "InvalidOutput", "The total is not a number.")
            )
        if number == 2:
            await ledger.record(Reopening(key, CallScope(dag_id="another")))
    await ledger.record(
        Saving(scope=SCOPE, model="claude-haiku-5-5", version="v1", reused=3, reused_micro_usd=360)
    )
    question = reviews.AskedQuestion(
        asked_hash="a" * 64, shown=b'"form"', content=b'"letter"', why="doubtful"
    )
    await ledger.write(lambda connection, _: reviews.store_question(connection, SCOPE, "letter", question))
    await ledger.write(partial(reviews.store_shown, scope=SCOPE, key="letter"))
    intent = effects.Intent(
        scope=SCOPE,
        item_id=None,
        call_id="c" * 32,
        tool_use_id="toolu_1",
        tool="send_mail",
        is_irreversible=True,
        arguments=b'{"to":"finance"}',
    )
    await ledger.write(partial(effects.begin, intent=intent, lease_ms=10_000))
    bucket = rate_limits.Bucket(
        connection_id="claude_default", model="claude-haiku-5-5", stated=rate_limits.Limits()
    )
    await ledger.write(
        partial(rate_limits.store_limits, bucket=bucket, limits=rate_limits.Limits(rpm=600, itpm=60_000))
    )


def write_dump(dialect: str, text: str) -> None:
    """Write a dump, unless there is one."""
    file = HERE / f"{LATEST_VERSION:04}.{dialect}.sql"
    with file.open("x") as out:
        out.write(text)


def sqlite_dump() -> str:
    """Return a ledger on SQLite as SQL."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ledger.db")
        ledger = Ledger(f"sqlite:///{path}", payload="full")
        asyncio.run(fill(ledger))
        ledger.close()
        with closing(sqlite3.connect(path)) as connection:
            return "\n".join(connection.iterdump()) + "\n"


def postgresql_dump() -> str:
    """Return a ledger on PostgreSQL as SQL, without the commands that only psql knows."""
    with LocalPostgres(durable=False) as server:
        ledger = Ledger(server.create_database("ledger"), payload="full")
        asyncio.run(fill(ledger))
        ledger.close()
        options = ["--inserts", "--no-owner", "--no-acl", "-h", "127.0.0.1", "-p", str(server.port)]
        done = subprocess.run(
            [str(server_programs() / "pg_dump"), *options, "-U", "postgres", "ledger"],
            capture_output=True,
            text=True,
            check=True,
        )
        return "\n".join(line for line in done.stdout.splitlines() if not line.startswith("\\")) + "\n"


if __name__ == "__main__":
    write_dump("sqlite", sqlite_dump())
    write_dump("postgresql", postgresql_dump())
