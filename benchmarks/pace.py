"""How much of a rate limit eight processes of two DAGs use together, what is refused, and the CPU time of a permit.

The stand-in enforces 600 requests a minute with a burst of 100; each process keeps 32 calls in flight. Ours share
one ledger. The peer is the official provider's way without its Airflow: the anthropic SDK as it comes (two retries
of its own), and above it a task's retries, three after five seconds each; a document whose retries are used up has
failed. Then a bucket of input tokens; then the silence after one 429 with a Retry-After of 20 s; then what the
limiter adds to a call with 256 in flight, alone: the CPU of permits, with all they do in the ledger, over that of the
same waiting without them.

What was refused is counted after the first 20 s. `busiest` is the most in one and in five seconds, after the burst:
permits that were given, and calls that were sent, which on a busy machine come later and in heaps.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2

from tests.support.postgres import LocalPostgres

HERE = Path(__file__).parent
PROCESS = HERE.parent / "tests" / "integration" / "pace_process.py"
MODEL = "claude-haiku-5-5"
DAGS = ["invoices"] * 4 + ["letters"] * 4
RPM, BURST, IN_FLIGHT, LATENCY_S = 600, 100, 32, 0.3
ITPM = 120_000
START_S, RETRY_AFTER_S = 20, 20
TASK_RETRIES, TASK_DELAY_S = 3, 5.0
PERMITS, WAITING = 6_000, 256


# -- one bucket, many processes ----------------------------------------------------------------------


def load(command: list[str], url: str, seconds: float, *, fault_at_s: float | None = None) -> dict[str, Any]:
    """Run the processes of one side and return what they and the stand-in say."""
    control = httpx2.Client(base_url=url, timeout=60)

    def counted() -> dict[str, int]:
        told: dict[str, int] = control.get("/stand-in/invoice").json()
        return told

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while not counted()["seen"]:
            time.sleep(0.05)
        began_s, refused_s = time.monotonic(), 0.0
        if fault_at_s is not None:
            time.sleep(fault_at_s)
            order = {"kind": "error", "status": 429, "retry_after": RETRY_AFTER_S, "times": 1}
            refused_s = time.monotonic()
            control.post("/stand-in/fail", json=order).raise_for_status()
        time.sleep(max(0.0, began_s + min(START_S, seconds / 2) - time.monotonic()))
        early = counted()
        said, _ = process.communicate(timeout=seconds + 120)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode}")
    told = [json.loads(line) for line in said.splitlines()]
    after = counted()
    sent = times(told, "sent")
    by_dag = {dag: sum(one["answered"] for one in told if one["dag"] == dag) for dag in dict.fromkeys(DAGS)}
    late_seen = after["seen"] - early["seen"]
    late_paid = after["paid"] - early["paid"]
    return {
        "seen": after["seen"],
        "paid": after["paid"],
        "answered": sum(by_dag.values()),
        "failed": sum(one["failed"] for one in told),
        "refused_share": round(max(0, late_seen - late_paid) / max(1, late_seen), 4),
        "least_dag_share": round(min(by_dag.values()) / max(1, sum(by_dag.values())), 3),
        "took_s": round(sent[-1] - sent[0], 1),
        "busiest": {of: [busiest(times(told, of), s) for s in (1, 5)] for of in ("permitted", "sent")},
        "_sent": sent,
        "_refused_s": refused_s,
    }


def times(told: list[dict[str, Any]], of: str) -> list[float]:
    """Return when all processes' calls were permitted or sent."""
    return sorted(at for one in told for at in one.get(of, ()))


def busiest(sent: list[float], stretch_s: float) -> int:
    """Return the most calls in any stretch, once the burst is over."""
    later = sent[bisect_left(sent, sent[0] + START_S / 2) :] if sent else []
    return max((bisect_left(later, at + stretch_s) - n for n, at in enumerate(later)), default=0)


def ours(ledger: str, url: str, seconds: float, **limits: int) -> list[str]:
    """Return the command of our side."""
    given = [part for name, value in limits.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, str(PROCESS), "--ledger", ledger, "--server", url, "--seconds", str(seconds)]
    return [*command, "--in-flight", str(IN_FLIGHT), *given, "--dags", *DAGS]


@contextlib.contextmanager
def ledger_url(database: str) -> Iterator[str]:
    """Give a new ledger on SQLite or PostgreSQL."""
    if database == "postgresql":
        with LocalPostgres() as server:
            yield server.url
        return
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/ledger.db"


def requests_part(database: str, seconds: float) -> dict[str, Any]:
    """Measure 600 requests a minute."""
    from machine import stand_in

    arguments = ("--rpm", str(RPM), "--burst", str(BURST))
    with stand_in(latency_s=LATENCY_S, arguments=arguments) as url, ledger_url(database) as ledger:
        told = load(ours(ledger, url, seconds, rpm=RPM), url, seconds)
    told["used"] = round(told["paid"] / (BURST + RPM / 60 * told["took_s"]), 3)
    return told


def tokens_part(database: str, seconds: float) -> dict[str, Any]:
    """Measure a bucket of input tokens, ten seconds' worth at once; requests are no limit."""
    from machine import stand_in

    arguments = ("--rpm", "60000", "--burst", "10000", "--itpm", str(ITPM))
    with stand_in(latency_s=LATENCY_S, arguments=arguments) as url, ledger_url(database) as ledger:
        told = load(ours(ledger, url, seconds, itpm=ITPM, words=200), url, seconds)
        lines = httpx2.get(f"{url}/stand-in/invoice?lines=1", timeout=60).json()["lines"]
    tokens = sum(line["input_tokens"] for line in lines)
    told["used"] = round(tokens / (ITPM / 6 + ITPM / 60 * told["took_s"]), 3)
    return told


def peer_part(seconds: float) -> dict[str, Any]:
    """Measure the SDK's retries and a task's above them."""
    from machine import stand_in

    with stand_in(latency_s=LATENCY_S, arguments=("--rpm", str(RPM), "--burst", str(BURST))) as url:
        command = [sys.executable, __file__, "--peer", url, "--seconds", str(seconds)]
        told = load(command, url, seconds)
    told["used"] = round(told["paid"] / (BURST + RPM / 60 * told["took_s"]), 3)
    return told


def hearing_part(database: str) -> dict[str, Any]:
    """Measure how long after a 429 the last call goes, and when the next one does."""
    from machine import stand_in

    seconds, fault_at_s = 40.0, 8.0
    with stand_in(latency_s=LATENCY_S) as url, ledger_url(database) as ledger:
        command = ours(ledger, url, seconds, **{"in-flight": 4})
        told = load(command, url, seconds, fault_at_s=fault_at_s)
    after = [at - told["_refused_s"] for at in told["_sent"] if at > told["_refused_s"]]
    return {
        "last_sent_after_s": round(max(at for at in after if at < RETRY_AFTER_S / 2), 2),
        "sent_in_silence": sum(2 < at < RETRY_AFTER_S for at in after),
        "sent_again_after_s": round(min(at for at in after if at > RETRY_AFTER_S / 2), 2),
    }


# -- the peer's processes ----------------------------------------------------------------------------


def peers(url: str, seconds: float) -> None:
    """Fork a process for each of DAGS and wait for them."""
    import anthropic  # noqa: F401

    children = []
    for dag_id in DAGS:
        if (child := os.fork()) == 0:
            asyncio.run(peer(url, dag_id, seconds))
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


async def peer(url: str, dag_id: str, seconds: float) -> None:
    """Ask about documents, as many at a time as ours, each with the retries of a task; print what came of it."""
    import anthropic

    client = anthropic.AsyncAnthropic(api_key="sk-bench", base_url=url)
    counts, sent, end_s = {"answered": 0, "failed": 0}, [], time.monotonic() + seconds

    async def document(number: int) -> None:
        question = {"role": "user", "content": f"{dag_id} {os.getpid()} {number}: due on 2026-03-04."}
        for tried in range(1 + TASK_RETRIES):
            sent.append(time.monotonic())
            try:
                await client.messages.create(model=MODEL, max_tokens=50, messages=[question])
            except anthropic.APIStatusError:
                if tried == TASK_RETRIES:
                    counts["failed"] += 1
                    return
                await asyncio.sleep(TASK_DELAY_S)
            else:
                counts["answered"] += 1
                return

    async def slot(number: int) -> None:
        while time.monotonic() < end_s:
            await document(number)
            number += IN_FLIGHT

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(slot(number) for number in range(IN_FLIGHT)))
    os.write(1, (json.dumps({"dag": dag_id, **counts, "sent": sent}) + "\n").encode())


# -- what a permit costs -----------------------------------------------------------------------------


async def permit_cpu_ms(**limits: Any) -> float:
    """Return the CPU-ms a permit adds to waiting, with 256 who wait for one another's."""
    from airflow_llm_provider.engine.rate_limiter import RateLimiter
    from airflow_llm_provider.engine.request import Request
    from airflow_llm_provider.ledger.ledger import Ledger
    from airflow_llm_provider.ledger.rate_limits import Limits
    from airflow_llm_provider.ledger.records import CallScope
    from airflow_llm_provider.pricing import Usage

    scope = CallScope(dag_id="bench", run_id="run", task_id="ask", connection_id="claude")
    request = Request(model=MODEL, messages=[{"role": "user", "content": "How much?"}], max_tokens=500)
    took = Usage(uncached_tokens=100, output_tokens=20)
    todo: Iterator[Request] = iter(())

    async def alone() -> None:
        for _ in todo:
            await asyncio.sleep(0.2)

    async def paced(pace: RateLimiter) -> None:
        for asked in todo:
            permit = await pace.acquire(asked, scope)
            await asyncio.sleep(0.2)
            permit.record_usage(took)

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(f"sqlite:///{folder}/ledger.db")
        pace = RateLimiter(ledger, Limits(**limits))
        cpu_s = []
        for work in (lambda: paced(pace), alone, lambda: paced(pace)):  # the first warms up
            todo = iter([replace(request) for _ in range(PERMITS)])
            began = time.process_time()
            await asyncio.gather(*(work() for _ in range(WAITING)))
            cpu_s.append(time.process_time() - began)
        await pace.close()
        ledger.close()
    return (cpu_s[2] - cpu_s[1]) / PERMITS * 1000


def cost_part(rounds: int) -> dict[str, float]:
    """Measure permits while there is room, while there is none, and while no limit is known."""
    ways: dict[str, dict[str, Any]] = {
        "room": {"rpm": 600_000, "itpm": 1_000_000_000, "otpm": 1_000_000_000},
        "no_room": {"rpm": 36_000, "burst_s": 0.1},
        "no_limit": {},
    }
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, limits in ways.items():
            measured[name].append(asyncio.run(permit_cpu_ms(**limits)))
    return {name: round(statistics.median(values), 3) for name, values in measured.items()}


def main() -> None:
    """Run the parts in turn and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--rounds", type=int, default=3, help="of what a permit costs")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        peers(options.peer, options.seconds)
        return
    from machine import machine

    parts: dict[str, Any] = {"permit_cpu_ms": cost_part(options.rounds)}
    print(parts, file=sys.stderr)
    for name, part in (
        ("requests", lambda: requests_part(options.database, options.seconds)),
        ("retries", lambda: peer_part(options.seconds)),
        ("tokens", lambda: tokens_part(options.database, options.seconds)),
        ("hearing", lambda: hearing_part(options.database)),
    ):
        parts[name] = {key: value for key, value in part().items() if not key.startswith("_")}
        print({name: parts[name]}, file=sys.stderr)
    mine, theirs = parts["requests"], parts["retries"]
    print(
        json.dumps(
            {
                "name": "pace",
                "ours": round(mine["seen"] / mine["answered"], 3),
                "peer": round(theirs["seen"] / theirs["answered"], 3),
                "ratio": round(theirs["seen"] / theirs["answered"] / (mine["seen"] / mine["answered"]), 2),
                "unit": "requests sent for each that was answered",
                "answered_ratio": round(mine["answered"] / theirs["answered"], 3),
                "database": options.database,
                **parts,
                "machine": machine(Path(tempfile.gettempdir())),
            }
        )
    )


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
