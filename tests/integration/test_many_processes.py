"""Many processes on one ledger: each answer is bought once, and what one was told is never lost."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.migrations import LATEST_VERSION
from airflow_llm_provider.ledger.records import ClaimHeld, Failure, OpenedAttempt
from airflow_llm_provider.ledger.schema import call, schema_version
from airflow_llm_provider.testing.standin import StandIn
from tests.support.books import balance

sys.path.insert(0, str(Path(__file__).parent))
from ledger_process import SCOPE, entry


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres_url")


def start(role: str, ledger_url: str, *arguments: str) -> subprocess.Popen[str]:
    program = str(Path(__file__).parent / "ledger_process.py")
    return subprocess.Popen(
        [sys.executable, program, role, "--ledger", ledger_url, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def told_by(role: str, ledger_url: str, *arguments: str) -> list[dict]:
    """Run processes to their end and return what each said."""
    process = start(role, ledger_url, *arguments)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return [json.loads(line) for line in said.splitlines()]


def rows(ledger: Ledger) -> list[sa.Row]:
    with ledger.database.read() as connection:
        return list(connection.execute(sa.select(call).order_by(call.c.opened_ms)))


def test_sixteen_processes_asking_about_the_same_two_hundred_documents_pay_two_hundred_times(
    ledger_url: str, claude_server: StandIn
) -> None:
    claude_server.validate, claude_server.keep_requests = False, False
    claude_server.latency_s = 0.05
    told = told_by("ask", ledger_url, "--server", claude_server.url, "--processes", "16")
    assert [one["other"] for one in told] == [[]] * 16
    assert [one["answered"] for one in told] == [200] * 16
    assert claude_server.invoice.paid == sum(one["paid"] for one in told) == 200
    books = balance(ledger_url, claude_server.invoice)
    assert (books.paid, books.unproven) == (200, 0)
    assert books.cost_micro_usd == claude_server.invoice.cost_micro_usd > 0


async def test_sixteen_first_users_make_the_tables_once(ledger_url: str) -> None:
    told = await asyncio.to_thread(told_by, "first", ledger_url, "--processes", "16")
    assert told == [{"settled": 1}] * 16
    ledger = Ledger(ledger_url)
    assert [row.state for row in rows(ledger)] == ["settled"] * 16
    with ledger.database.read() as connection:
        assert connection.scalars(sa.select(schema_version.c.version)).all() == list(
            range(1, LATEST_VERSION + 1)
        )
    ledger.close()


async def test_what_a_process_was_told_is_settled_is_there_after_kill_nine(ledger_url: str) -> None:
    dice = random.Random(11)  # seeded: what fails once fails again
    told: list[str] = []
    for _ in range(3):
        process = await asyncio.to_thread(start, "settle", ledger_url)
        assert process.stdout
        told.append(await asyncio.to_thread(process.stdout.readline))  # it works
        await asyncio.sleep(dice.random() * 0.5)
        for child in psutil.Process(process.pid).children():
            child.kill()
        told += await asyncio.to_thread(process.stdout.readlines)
        await asyncio.to_thread(process.communicate)
    keys = [line.strip() for line in told]
    assert len(keys) > 100
    ledger = Ledger(ledger_url)
    found = await asyncio.gather(*(ledger.find_reply(key, SCOPE, "run") for key in keys))
    assert [answer and answer.reply.decode() for answer in found] == keys
    ledger.close()


async def test_a_stopped_holder_loses_its_key_and_books_late(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    process = await asyncio.to_thread(start, "hold", ledger_url)
    assert process.stdin
    assert process.stdout
    assert await asyncio.to_thread(process.stdout.readline) == "opened\n"
    [holder] = psutil.Process(process.pid).children()
    holder.send_signal(signal.SIGSTOP)
    key = "f" * 64
    assert isinstance(await ledger.open(entry(key)), ClaimHeld)
    deadline = time.monotonic() + 30
    while isinstance(opened := await ledger.open(entry(key)), ClaimHeld):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert isinstance(opened, OpenedAttempt)
    assert [row.state for row in rows(ledger)] == ["unproven", "open"]

    holder.send_signal(signal.SIGCONT)
    await asyncio.sleep(1)  # time for a beat, which must not take the key back
    process.stdin.write("\n")
    process.stdin.flush()
    assert await asyncio.to_thread(process.stdout.readline) == "settled\n"
    await asyncio.to_thread(process.communicate)
    late, mine = rows(ledger)
    assert (late.state, late.cost_micro_usd, mine.state) == ("late", 4, "open")
    answer = await ledger.find_reply(key, SCOPE, "always")
    assert answer is not None
    assert answer.attempt_id == late.id
    failed = Failure(
        attempt_id=opened.attempt_id,
        fingerprint=key,
        billed=False,
        error_class="Overloaded",
        error="",
        prompt=lambda: b"",
    )
    await ledger.record(failed)
    ledger.close()


async def test_a_live_holder_in_another_process_is_waited_for(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    process = await asyncio.to_thread(start, "hold", ledger_url)
    assert process.stdin
    assert process.stdout
    await asyncio.to_thread(process.stdout.readline)
    await asyncio.sleep(2.5)  # well beyond its lease of 1.5 s
    assert isinstance(await ledger.open(entry("f" * 64)), ClaimHeld)
    process.stdin.write("\n")
    process.stdin.flush()
    await asyncio.to_thread(process.communicate)
    assert [row.state for row in rows(ledger)] == ["settled"]
    ledger.close()
