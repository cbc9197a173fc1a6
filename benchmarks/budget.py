"""What budgets cost: CPU per call with three of them against none, and whether any of it grows with the history.

Both sides ask the same questions of the same stand-in, 256 in flight at 0.2 s latency over plain HTTP, with a
durable SQLite ledger, each in a process of its own, in turn. CPU is the client process's, user and system. The
budgets are the task's, the run's and a standing one for the month, none of them near its cap.

`--flat` looks up, reserves and settles on PostgreSQL with 10,000 rows in the ledger and with 5 million.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.terms import Terms
from airflow_llm_provider.ledger.budgets import Budget, set_budget
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope, NewAttempt, OpenedAttempt, Settlement
from airflow_llm_provider.ledger.schema import OPEN, call
from airflow_llm_provider.pricing import Usage

IN_FLIGHT = 256
FREE = CallScope(
    dag_id="bench", run_id="run", task_id="ask", connection_id="claude_default", trace_id="0" * 32
)
BOUND = dataclasses.replace(FREE, budget_micro_usd=10**12, run_budget_micro_usd=10**12)
PLENTY = Budget(name="month", cap_micro_usd=10**12, scope="all", per="month", timezone="Europe/Berlin")


async def side(url: str, calls: int, *, bound: bool) -> dict[str, float]:
    """Ask with budgets or without, and return the CPU a call."""
    from engine import cpu_s, engine_calm, messages

    from airflow_llm_provider.engine.client import AnthropicClient
    from airflow_llm_provider.engine.engine import Engine
    from airflow_llm_provider.engine.request import Request

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(f"sqlite:///{folder}/ledger.db")
        if bound:
            with ledger.database.write() as connection:
                set_budget(connection, PLENTY)
        engine = Engine(
            endpoint=Endpoint(client=AnthropicClient(api_key="sk-bench", base_url=url)), ledger=ledger
        )

        def raise_errors(_: int, outcome: object) -> None:
            if isinstance(outcome, Exception):
                raise outcome

        async def ask(numbers: range) -> None:
            requests = (
                Request(model="claude-haiku-5-5", messages=messages(n), max_tokens=64) for n in numbers
            )
            await engine.map(
                requests, raise_errors, Terms(scope=BOUND if bound else FREE), max_in_flight=IN_FLIGHT
            )

        await ask(range(IN_FLIGHT))
        engine_calm()
        cpu = cpu_s()
        await ask(range(IN_FLIGHT, IN_FLIGHT + calls))
        cpu_ms = (cpu_s() - cpu) / calls * 1000
        await engine.close()
    return {"cpu_ms": cpu_ms}


def run_side(name: str, url: str, calls: int) -> float:
    """Run one side in a process of its own; return its CPU milliseconds a call."""
    command = [sys.executable, __file__, "--side", name, "--url", url, "--calls", str(calls)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    cpu_ms: float = json.loads(done.stdout.splitlines()[-1])["cpu_ms"]
    print(f"{name}: {cpu_ms:.3f} CPU-ms a call", file=sys.stderr)
    return cpu_ms


_HISTORY = """
INSERT INTO call (id, fingerprint, claim, state, holder, lease_until_ms, purpose, connection_id, dag_id, run_id,
    task_id, map_index, try_number, trace_id, model, ceiling_micro_usd, opened_ms, closed_ms, latency_ms,
    stop_reason, uncached_tokens, output_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens,
    cost_micro_usd)
SELECT lpad(to_hex(1700000000000000 + n), 14, '0') || substr(md5(n::text), 1, 18), md5(n::text) || md5('f' || n),
    md5(n::text) || md5('f' || n), 'settled', 'history', 0, 'answer', 'claude_default', 'dag-' || n % 50,
    'run-' || n / 2000, 'ask', -1, 1, md5(n::text), 'claude-haiku-5-5', 900, 1700000000000 + n,
    1700000000700 + n, 700, 'end_turn', 300, 60, 0, 0, 0, 60
FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n
"""
_REPLIES = """
INSERT INTO payload (call_id, reply) SELECT id, CAST(:reply AS bytea) FROM call
WHERE id >= lpad(to_hex(1700000000000000 + CAST(:first AS bigint)), 14, '0')
"""


def grow(url: str, rows: int) -> None:
    """Write history rows, with replies of 400 bytes."""
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text("SET synchronous_commit = off"))
        for first in range(1, rows + 1, 500_000):
            last = min(rows, first + 499_999)
            connection.execute(sa.text(_HISTORY), {"first": first, "last": last})
            connection.execute(sa.text(_REPLIES), {"reply": b"x" * 400, "first": first})
            print(f"{last:,} rows", file=sys.stderr)
        connection.execute(sa.text("VACUUM (ANALYZE) call, payload"))
    engine.dispose()


async def round_of(ledger: Ledger, known: list[str], size: int) -> dict[str, float]:
    """Look up, open and settle `size` calls at once; return milliseconds a call of each."""
    entries = [
        NewAttempt(
            fingerprint=os.urandom(32).hex(),
            scope=BOUND,
            reuse="always",
            model="claude-haiku-5-5",
            ceiling_micro_usd=900,
        )
        for _ in range(size)
    ]
    took: dict[str, float] = {}

    async def timed(name: str, work: list[Any]) -> list[Any]:
        started = time.perf_counter()
        done = await asyncio.gather(*work)
        took[name] = (time.perf_counter() - started) / size * 1000
        return done

    found = await timed("lookup", [ledger.find_reply(key, FREE, "always") for key in known])
    assert all(answer is not None for answer in found)
    opened = await timed("reserve", [ledger.open(entry) for entry in entries])
    assert all(isinstance(outcome, OpenedAttempt) for outcome in opened)
    await timed(
        "settle",
        [
            ledger.record(
                Settlement(
                    attempt_id=outcome.attempt_id,
                    fingerprint=entry.fingerprint,
                    reply=b"x" * 400,
                    prompt=lambda: b"",
                    stop_reason="end_turn",
                    usage=Usage(uncached_tokens=300, output_tokens=60),
                    cost_micro_usd=60,
                    latency_ms=700,
                )
            )
            for entry, outcome in zip(entries, opened, strict=True)
        ],
    )
    return took


async def measured(ledger: Ledger, rows: int, rounds: int, size: int = 256) -> dict[str, float]:
    """Return the median milliseconds a call at so many rows, keys of all ages looked up."""
    taken: list[dict[str, float]] = []
    for number in range(rounds + 2):
        numbers = [hash((number, n)) % rows + 1 for n in range(size)]
        known = [
            hashlib.md5(str(n).encode()).hexdigest() + hashlib.md5(f"f{n}".encode()).hexdigest()
            for n in numbers
        ]
        taken.append(await round_of(ledger, known, size))
    warm = taken[2:]
    return {name: statistics.median(one[name] for one in warm) for name in ("lookup", "reserve", "settle")}


def flat(rows: int, rounds: int) -> dict[str, Any]:
    """Compare a ledger of 10,000 rows with one of `rows`, the two in turn on one PostgreSQL."""
    from tests.support.postgres import LocalPostgres

    with LocalPostgres() as server:
        sizes = (10_000, rows)
        urls = [server.create_database(f"rows_{size}") for size in sizes]
        ledgers = [Ledger(url) for url in urls]
        for ledger, url, size in zip(ledgers, urls, sizes, strict=True):
            with ledger.database.write() as connection:
                set_budget(connection, PLENTY)
            grow(url, size)
        figures: list[list[dict[str, float]]] = [[], []]
        for _ in range(3):
            for at, (ledger, size) in enumerate(zip(ledgers, sizes, strict=True)):
                figures[at].append(asyncio.run(measured(ledger, size, rounds)))
        for ledger in ledgers:
            with ledger.database.read() as connection:
                left = connection.scalar(sa.select(sa.func.count()).where(call.c.state == OPEN))
                assert left == 0
            ledger.close()
    short, long = (
        {name: statistics.median(one[name] for one in rounds_) for name in rounds_[0]} for rounds_ in figures
    )
    return {
        "rows": rows,
        "ms_a_call_at_10000_rows": {name: round(value, 4) for name, value in short.items()},
        "ms_a_call": {name: round(value, 4) for name, value in long.items()},
        "ratio": {name: round(long[name] / short[name], 2) for name in short},
    }


def main() -> None:
    """Run both sides in turn, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flat", action="store_true", help="measure how it grows with the history")
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--side", choices=["bound", "free"])
    parser.add_argument("--url", default="")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(asyncio.run(side(options.url, options.calls, bound=options.side == "bound"))))
        return
    if options.flat:
        told = flat(options.rows, options.rounds)
        name, unit = "budget-flat", "times as long at so many rows as at 10,000, PostgreSQL"
        print(json.dumps({"name": name, "unit": unit, **told, "load_average": os.getloadavg()[0]}))
        return
    from machine import stand_in

    with stand_in(latency_s=0.2) as url:
        pairs = [
            (run_side("bound", url, options.calls), run_side("free", url, options.calls))
            for _ in range(options.rounds)
        ]
    added = statistics.median(bound - free for bound, free in pairs)
    bound, free = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        json.dumps(
            {
                "name": "budget",
                "ours": round(bound, 3),
                "peer": round(free, 3),
                "ratio": round(bound / free, 3),
                "added": round(added, 3),
                "unit": "CPU-ms a call with three budgets against none, 256 in flight",
                "load_average": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
