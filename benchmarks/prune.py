"""How long writers wait while a million old rows are pruned, and how long with one DELETE."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.maintenance import prune
from airflow_llm_provider.ledger.records import (
    CallScope,
    NewAttempt,
    OpenedAttempt,
    Settlement,
)
from airflow_llm_provider.ledger.schema import call, payload
from airflow_llm_provider.pricing import Usage

DAY_MS = 86_400_000
SCOPE = CallScope(dag_id="tonight", run_id="run", task_id="read", trace_id="0" * 32)
REPLY = b'{"content":[{"type":"text","text":"' + b"An answer of some length. " * 30 + b'"}]}'


def fill(database: Database, rows: int) -> None:
    """Write so many old calls with their replies, the way a hundred nights would have."""
    began_ms = int(time.time() * 1000) - 200 * DAY_MS
    columns = {
        "holder": "h" * 32,
        "lease_until_ms": 0,
        "purpose": "answer",
        "connection_id": "claude_default",
        "dag_id": "nightly",
        "task_id": "read",
        "map_index": -1,
        "try_number": 1,
        "trace_id": "0" * 32,
        "model": "claude-haiku-5-5",
        "state": "settled",
        "output_tokens": 40,
        "uncached_tokens": 900,
        "cost_micro_usd": 200,
        "family": "f" * 16,
    }
    for start in range(0, rows, 10_000):
        calls = []
        for n in range(start, min(start + 10_000, rows)):
            opened_ms = began_ms + n * 100 * DAY_MS // rows
            key = os.urandom(32).hex()
            calls.append(
                {
                    **columns,
                    "id": f"{opened_ms * 1000 + n % 1000:014x}{n:018x}",
                    "fingerprint": key,
                    "claim": key,
                    "item_id": f"documents/{n}.txt",
                    "run_id": f"night-{n * 100 // rows}",
                    "opened_ms": opened_ms,
                    "closed_ms": opened_ms + 900,
                }
            )
        with database.write() as connection:
            connection.execute(call.insert(), calls)
            connection.execute(
                payload.insert(), [{"call_id": one["id"], "reply": REPLY, "prompt": None} for one in calls]
            )


async def write_beside(url: str, until: Path) -> list[float]:
    """Open and settle calls, one after the other in each of four lanes; return how long each write took, in ms."""
    ledger = Ledger(url)
    took_ms: list[float] = []

    async def lane() -> None:
        while not until.exists():  # noqa: ASYNC240  # a look is quick, and the signal is from another process
            entry = NewAttempt(
                fingerprint=os.urandom(32).hex(), scope=SCOPE, reuse="always", model="claude-haiku-5-5"
            )
            started = time.perf_counter()
            opened = await ledger.open(entry)
            took_ms.append((time.perf_counter() - started) * 1000)
            assert isinstance(opened, OpenedAttempt)
            settled = Settlement(
                attempt_id=opened.attempt_id,
                fingerprint=entry.fingerprint,
                reply=REPLY,
                prompt=lambda: b"",
                stop_reason="end_turn",
                usage=Usage(uncached_tokens=900, output_tokens=40),
                cost_micro_usd=200,
                latency_ms=900,
            )
            started = time.perf_counter()
            await ledger.record(settled)
            took_ms.append((time.perf_counter() - started) * 1000)
            await asyncio.sleep(0.02)

    await asyncio.gather(*(lane() for _ in range(4)))
    await asyncio.to_thread(ledger.close)
    return took_ms


def beside_writers(url: str, work: Callable[[], None]) -> dict[str, float]:
    """Do `work` while a process of its own writes; return how long that one waited, and how long the work took."""
    with tempfile.TemporaryDirectory() as folder:
        until = Path(folder) / "done"
        command = [sys.executable, __file__, "--role", "writer", "--url", url, "--until", str(until)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        told: list[str] = []
        reader = threading.Thread(target=lambda: told.append(writer.communicate()[0]))
        reader.start()
        time.sleep(2)
        started = time.perf_counter()
        try:
            work()
        finally:
            took_s = time.perf_counter() - started
            until.touch()
            reader.join(60)
    waits = sorted(json.loads(told[0]))
    return {
        "seconds": took_s,
        "writes": len(waits),
        "median_ms": statistics.median(waits),
        "p99_ms": waits[int(len(waits) * 0.99)],
        "worst_ms": waits[-1],
    }


def at_once(database: Database) -> None:
    """Delete the same rows as most would: in one transaction."""
    before = int(time.time() * 1000) - 90 * DAY_MS
    old = sa.select(call.c.id).where(call.c.closed_ms < before)
    with database.write() as connection:
        connection.execute(payload.delete().where(payload.c.call_id.in_(old)))
        connection.execute(call.delete().where(call.c.closed_ms < before))


def measure(make_url: Callable[[str], str], rows: int) -> dict[str, dict[str, float]]:
    """Prune in steps, then at once, each a ledger of its own; and write with nobody pruning."""
    told = {}
    for name in ("idle", "ours", "peer"):
        database = Database(make_url(name))
        database.migrate()
        fill(database, rows if name != "idle" else 1_000)

        def work(name: str = name, database: Database = database) -> None:
            if name == "idle":
                time.sleep(5)
            elif name == "peer":
                at_once(database)
            else:
                gone = prune(database, rows_before_ms=int(time.time() * 1000) - 90 * DAY_MS)
                print(f"{gone}", file=sys.stderr)
                assert gone.rows == rows

        told[name] = beside_writers(database.url.render_as_string(hide_password=False), work)
        print(f"{name}: {json.dumps({k: round(v, 1) for k, v in told[name].items()})}", file=sys.stderr)
        database.close()
    return told


def main() -> None:
    """Measure on both databases, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["sqlite", "postgres"])
    parser.add_argument("--role", choices=["writer"])
    parser.add_argument("--url")
    parser.add_argument("--until", type=Path)
    options = parser.parse_args()
    if options.role:
        print(json.dumps(asyncio.run(write_beside(options.url, options.until))))
        return
    from machine import machine

    from tests.support.postgres import LocalPostgres

    told: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        disk = machine(Path(folder))
        if options.only != "postgres":
            told["sqlite"] = measure(lambda name: f"sqlite:///{folder}/{name}.db", options.rows)
    if options.only != "sqlite":
        with LocalPostgres() as server:
            told["postgres"] = measure(server.create_database, options.rows)
    first = next(iter(told.values()))
    rounded = {
        database: {name: {k: round(v, 1) for k, v in one.items()} for name, one in sides.items()}
        for database, sides in told.items()
    }
    print(
        json.dumps(
            {
                "name": "prune",
                "ours": round(first["ours"]["worst_ms"], 1),
                "peer": round(first["peer"]["worst_ms"], 1),
                "ratio": round(first["peer"]["worst_ms"] / first["ours"]["worst_ms"], 1),
                "unit": f"ms, the longest write beside the pruning of {options.rows:,} rows, against one DELETE",
                **rounded,
                "machine": disk,
                "load_average": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
