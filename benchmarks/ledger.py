"""What the ledger costs: durable settles, lookups and waits for the write lock, against the naive way.

The naive way is the same tables and the same durability with one commit a row and one query a key. Settling
has 256 waiting; looking up is `Ledger.find_reply` by 10,000 coroutines at once; eight processes on one SQLite
file open and settle as fast as they can while each times its every wait for the write transaction (its turn
and BEGIN IMMEDIATE). Nothing is idle meanwhile: a wait holds what the machine's other work costs too.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.engine.concurrency import calm_collector
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope, NewAttempt, OpenedAttempt, Settlement
from airflow_llm_provider.ledger.schema import call, payload
from airflow_llm_provider.pricing import Usage

KEYS, WAITING, WRITERS = 10_000, 256, 8
NAIVE_KEYS = 1_000
SCOPE = CallScope(dag_id="bench", run_id="run", task_id="ask", trace_id="0" * 32)
REPLY = json.dumps({"content": [{"type": "text", "text": "An answer of some length. " * 40}]}).encode()
PAID = Usage(uncached_tokens=300, output_tokens=60)


def entry(name: object) -> NewAttempt:
    """Return an attempt at a key made of `name`."""
    key = hashlib.sha256(str(name).encode()).hexdigest()
    return NewAttempt(
        fingerprint=key, scope=SCOPE, reuse="always", model="claude-haiku-5-5", ceiling_micro_usd=900
    )


def settlement(attempt: NewAttempt, opened: OpenedAttempt) -> Settlement:
    """Return a reply of about 1 kB."""
    return Settlement(
        attempt_id=opened.attempt_id,
        fingerprint=attempt.fingerprint,
        reply=REPLY,
        prompt=lambda: b"",
        stop_reason="end_turn",
        usage=PAID,
        cost_micro_usd=60,
        latency_ms=900,
    )


async def settles_a_second(ledger: Ledger, entries: Sequence[NewAttempt]) -> float:
    """Settle all with 256 waiting at any time, each told when its own is durable."""
    opened = await asyncio.gather(*(ledger.open(e) for e in entries))
    assert all(isinstance(outcome, OpenedAttempt) for outcome in opened)
    todo = iter([settlement(e, outcome) for e, outcome in zip(entries, opened, strict=True)])

    async def one_waiting() -> None:
        for write in todo:
            await ledger.record(write)

    started = time.perf_counter()
    await asyncio.gather(*(one_waiting() for _ in range(WAITING)))
    return len(entries) / (time.perf_counter() - started)


async def lookup_s(ledger: Ledger, entries: Sequence[NewAttempt]) -> float:
    """Look all up at once, one coroutine a key, as an operator's documents do."""
    started = time.perf_counter()
    found = await asyncio.gather(*(ledger.find_reply(e.fingerprint, SCOPE, "always") for e in entries))
    took = time.perf_counter() - started
    assert all(answer is not None for answer in found)
    return took


async def ours(url: str, rounds: int) -> dict[str, float]:
    """Measure the ledger: medians of so many rounds."""
    ledger = Ledger(url)
    calm_collector()
    every = [[entry((number, n)) for n in range(KEYS)] for number in range(rounds)]
    settled = [await settles_a_second(ledger, entries) for entries in every]
    looked_up = [await lookup_s(ledger, entries) for entries in every]
    await asyncio.to_thread(ledger.close)
    return {"settles_per_s": statistics.median(settled), "lookup_10k_s": statistics.median(looked_up)}


def naive(url: str) -> dict[str, float]:
    """Measure one commit a row, and one query a key, on the same tables; 10,000 keys reckoned from 1,000."""
    database = Database(url)
    database.migrate()
    entries = [entry(("naive", n)) for n in range(NAIVE_KEYS)]
    shared = {"state": "open", "holder": "naive", "lease_until_ms": 0, "purpose": "answer", "model": "m"}
    shared |= {"connection_id": "", "dag_id": "bench", "run_id": "run", "task_id": "ask", "map_index": -1}
    shared |= {"try_number": 1, "trace_id": "", "opened_ms": 0}
    with database.write() as connection:
        keys = [
            {"id": e.fingerprint[:32], "fingerprint": e.fingerprint, "claim": e.fingerprint} for e in entries
        ]
        connection.execute(call.insert(), [{**shared, **key} for key in keys])
    settle = (
        call.update().where(call.c.id == sa.bindparam("attempt")).values(state="settled", cost_micro_usd=60)
    )
    find = (
        sa.select(call.c.id, payload.c.reply)
        .join_from(call, payload, call.c.id == payload.c.call_id)
        .where(call.c.fingerprint == sa.bindparam("key"), call.c.state.in_(["settled", "late"]))
    )
    started = time.perf_counter()
    for e in entries:
        with database.write() as connection:
            connection.execute(settle, {"attempt": e.fingerprint[:32]})
            connection.execute(payload.insert(), {"call_id": e.fingerprint[:32], "reply": REPLY})
    settled = NAIVE_KEYS / (time.perf_counter() - started)
    started = time.perf_counter()
    for e in entries:
        with database.read() as connection:
            connection.execute(find, {"key": e.fingerprint}).one()
    took = (time.perf_counter() - started) * KEYS / NAIVE_KEYS
    database.close()
    return {"settles_per_s": settled, "lookup_10k_s": took}


class TimedDatabase(Database):
    """A database that writes down how long each write transaction waited to begin."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.waits_ms: list[float] = []

    def write(self) -> Any:
        """Open a write transaction as ever; the time until it is open is the wait."""
        return _Timed(super().write(), self.waits_ms)


class _Timed:
    def __init__(self, transaction: Any, waits_ms: list[float]) -> None:
        self._transaction, self._waits_ms = transaction, waits_ms

    def __enter__(self) -> Any:
        started = time.perf_counter()
        connection = self._transaction.__enter__()
        self._waits_ms.append((time.perf_counter() - started) * 1000)
        return connection

    def __exit__(self, *error: object) -> Any:
        return self._transaction.__exit__(*error)


async def write_beside_others(url: str, seconds: float) -> dict[str, Any]:
    """Be one of eight: 32 lanes open and settle until the time is up."""
    ledger = Ledger(url)
    ledger.database.close()
    timed = ledger.database = TimedDatabase(url)
    calm_collector()
    done, errors, until = 0, 0, time.monotonic() + seconds

    async def lane(number: int) -> None:
        nonlocal done, errors
        while time.monotonic() < until:
            attempt = entry((os.getpid(), number, done))
            try:
                opened = await ledger.open(attempt)
                assert isinstance(opened, OpenedAttempt)
                await ledger.record(settlement(attempt, opened))
                done += 1
            except Exception as error:  # noqa: BLE001  # counted, and shown
                errors += 1
                print(repr(error), file=sys.stderr)

    await asyncio.gather(*(lane(number) for number in range(32)))
    waits = timed.waits_ms[1:]  # the first one opens the file
    await asyncio.to_thread(ledger.close)
    return {"done": done, "errors": errors, "waits_ms": waits}


def eight_writers(url: str, seconds: float) -> dict[str, float]:
    """Let eight processes write one file; return errors, throughput and waits."""
    Ledger(url).close()
    command = [sys.executable, __file__, "--role", "writer", "--url", url, "--seconds", str(seconds)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(WRITERS)]
    told = [
        json.loads(process.communicate(timeout=seconds + 120)[0].splitlines()[-1]) for process in processes
    ]
    waits = sorted(wait for one in told for wait in one["waits_ms"])
    return {
        "errors": sum(one["errors"] for one in told),
        "settles_per_s": sum(one["done"] for one in told) / seconds,
        "worst_wait_ms": waits[-1],
        "p99_wait_ms": waits[int(len(waits) * 0.99)],
    }


def run_role(role: str, url: str, *arguments: str) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--role", role, "--url", url, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    shown = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
    print(f"{role} on {url.split(':')[0]}: {shown}", file=sys.stderr)
    return figures


def main() -> None:
    """Run both sides on both databases, then the eight writers, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the eight write")
    parser.add_argument("--no-postgres", action="store_true")
    parser.add_argument("--role", choices=["ours", "naive", "writer"])
    parser.add_argument("--url")
    options = parser.parse_args()
    if options.role == "ours":
        print(json.dumps(asyncio.run(ours(options.url, options.rounds))))
        return
    if options.role == "naive":
        print(json.dumps(naive(options.url)))
        return
    if options.role == "writer":
        print(json.dumps(asyncio.run(write_beside_others(options.url, options.seconds))))
        return
    from machine import machine

    from tests.support.postgres import LocalPostgres

    rounds = ("--rounds", str(options.rounds))
    with tempfile.TemporaryDirectory() as folder:
        disk = machine(Path(folder))
        sqlite = run_role("ours", f"sqlite:///{folder}/ours.db", *rounds)
        sqlite_naive = run_role("naive", f"sqlite:///{folder}/naive.db")
        eight = [eight_writers(f"sqlite:///{folder}/eight-{n}.db", options.seconds) for n in range(3)]
    for one in eight:
        print(f"{WRITERS} writers: {json.dumps(one)}", file=sys.stderr)
    postgres: dict[str, float] | None = None
    postgres_naive: dict[str, float] | None = None
    if not options.no_postgres:
        with LocalPostgres() as server:  # fsync on, synchronous_commit on
            postgres = run_role("ours", server.create_database("ours"), *rounds)
            postgres_naive = run_role("naive", server.create_database("naive"))

    def rounded(figures: dict[str, float] | None) -> dict[str, float] | None:
        return figures and {name: round(value, 3) for name, value in figures.items()}

    print(
        json.dumps(
            {
                "name": "ledger",
                "ours": round(sqlite["settles_per_s"]),
                "peer": round(sqlite_naive["settles_per_s"]),
                "ratio": round(sqlite["settles_per_s"] / sqlite_naive["settles_per_s"], 1),
                "unit": "durable settles/s on SQLite, 256 waiting, against one commit a row",
                "sqlite": rounded(sqlite),
                "sqlite_naive": rounded(sqlite_naive),
                "postgres": rounded(postgres),
                "postgres_naive": rounded(postgres_naive),
                "eight_processes": {
                    "errors": sum(one["errors"] for one in eight),
                    "settles_per_s": round(statistics.median(one["settles_per_s"] for one in eight)),
                    "worst_wait_ms": [round(one["worst_wait_ms"], 1) for one in eight],
                    "p99_wait_ms": round(statistics.median(one["p99_wait_ms"] for one in eight), 1),
                },
                "lookups": "Ledger.find_reply by 10,000 coroutines at once; naive: one query a key",
                "machine": disk,
                "load_average": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
