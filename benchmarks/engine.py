"""What a call costs: the whole engine with a durable ledger, against the bare SDK client.

Both sides ask the same questions of the same stand-in, 256 in flight at 0.2 s latency over plain HTTP, each
in a process of its own, in turn. CPU is the client process's, user and system.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MODEL = "claude-haiku-5-5"
TEXT = "The vendor ACME delivers 12 boxes on 2026-03-04 for $1,200.00; disputes go to court. " * 10


def cpu_s() -> float:
    """Return the CPU-seconds this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def messages(number: int) -> list[dict[str, Any]]:
    """Return one question of about 900 characters."""
    return [{"role": "user", "content": [{"type": "text", "text": f"Document {number}: {TEXT}"}]}]


async def ours(url: str, calls: int, in_flight: int) -> None:
    """Ask through the engine, ledger on disk with synchronous=FULL."""
    from airflow_llm_provider.engine.client import AnthropicClient
    from airflow_llm_provider.engine.endpoint import Endpoint
    from airflow_llm_provider.engine.engine import Engine
    from airflow_llm_provider.engine.request import Request
    from airflow_llm_provider.engine.terms import Terms
    from airflow_llm_provider.ledger.ledger import Ledger
    from airflow_llm_provider.ledger.records import CallScope

    scope = CallScope(dag_id="bench", run_id="run", task_id="ask", trace_id="0" * 32)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(f"sqlite:///{folder}/ledger.db")
        engine = Engine(
            endpoint=Endpoint(client=AnthropicClient(api_key="sk-bench", base_url=url)), ledger=ledger
        )

        def requests(numbers: range) -> Any:
            return (Request(model=MODEL, messages=messages(n), max_tokens=64) for n in numbers)

        done = 0

        def count(_: int, outcome: object) -> None:
            nonlocal done
            if isinstance(outcome, Exception):
                raise outcome
            done += 1

        await engine.map(
            requests(range(in_flight)), count, Terms(scope=scope), max_in_flight=in_flight
        )  # warm up
        engine_calm()
        started, cpu = time.perf_counter(), cpu_s()
        numbers = range(in_flight, in_flight + calls)
        await engine.map(requests(numbers), count, Terms(scope=scope), max_in_flight=in_flight)
        report(calls, started, cpu)
        await engine.close()


def engine_calm() -> None:
    """Do as the hook does before a long run."""
    from airflow_llm_provider.engine.concurrency import calm_collector

    calm_collector()


async def bare(url: str, calls: int, in_flight: int) -> None:
    """Ask through the SDK's default asynchronous client, remembering nothing."""
    import anthropic

    client = anthropic.AsyncAnthropic(api_key="sk-bench", base_url=url, max_retries=0)
    slots = asyncio.Semaphore(in_flight)

    async def one(number: int) -> None:
        async with slots:
            await client.messages.create(model=MODEL, max_tokens=64, messages=messages(number))

    await asyncio.gather(*(one(n) for n in range(in_flight)))
    started, cpu = time.perf_counter(), cpu_s()
    await asyncio.gather(*(one(n) for n in range(calls)))
    report(calls, started, cpu)
    await client.close()


def report(calls: int, started: float, cpu: float) -> None:
    """Print one side's figures as JSON."""
    elapsed = time.perf_counter() - started
    print(json.dumps({"cpu_ms": (cpu_s() - cpu) / calls * 1000, "calls_per_s": calls / elapsed}))


def run_side(side: str, url: str, calls: int, in_flight: int) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--url", url, "--calls", str(calls)]
    done = subprocess.run(
        [*command, "--in-flight", str(in_flight)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{side}: {figures['cpu_ms']:.2f} CPU-ms a call, {figures['calls_per_s']:.0f} calls/s",
        file=sys.stderr,
    )
    return figures


def main() -> None:
    """Run both sides in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["ours", "bare"])
    parser.add_argument("--url")
    options = parser.parse_args()
    if options.side:
        asyncio.run({"ours": ours, "bare": bare}[options.side](options.url, options.calls, options.in_flight))
        return
    from machine import machine, stand_in

    with stand_in(latency_s=0.2) as url:
        rounds = [
            {side: run_side(side, url, options.calls, options.in_flight) for side in ("ours", "bare")}
            for _ in range(options.rounds)
        ]

    def median(side: str, figure: str) -> float:
        return round(statistics.median(r[side][figure] for r in rounds), 3)

    print(
        json.dumps(
            {
                "name": "engine",
                "ours": median("ours", "cpu_ms"),
                "peer": median("bare", "cpu_ms"),
                "ratio": round(median("bare", "cpu_ms") / median("ours", "cpu_ms"), 2),
                "unit": "CPU-ms a call",
                "ours_calls_per_s": median("ours", "calls_per_s"),
                "peer_calls_per_s": median("bare", "calls_per_s"),
                "calls": options.calls,
                "in_flight": options.in_flight,
                "machine": machine(Path(tempfile.gettempdir())),
            }
        )
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    gc.collect()
    main()
