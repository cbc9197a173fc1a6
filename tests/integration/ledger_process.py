"""Processes for test_many_processes.py: they share nothing with each other but a ledger.

Each role prints one JSON line a process, or what its docstring says.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import uuid
from collections.abc import Callable

from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope, NewAttempt, OpenedAttempt, Settlement
from airflow_llm_provider.pricing import Usage
from tests.support.terms import make_terms

SCOPE = CallScope(dag_id="nightly", run_id="run-1", task_id="ask", trace_id="0" * 32)


def document(number: int) -> Request:
    return Request(
        model="claude-haiku-5-5",
        messages=[{"role": "user", "content": f"Document {number}: {number + 7} boxes, due on 2026-03-04."}],
        max_tokens=100,
    )


def entry(key: str) -> NewAttempt:
    return NewAttempt(
        fingerprint=key, scope=SCOPE, reuse="always", model="claude-haiku-5-5", ceiling_micro_usd=900
    )


def settlement(opened: OpenedAttempt, key: str) -> Settlement:
    return Settlement(
        attempt_id=opened.attempt_id,
        fingerprint=key,
        reply=key.encode(),
        prompt=lambda: b"",
        stop_reason="end_turn",
        usage=Usage(uncached_tokens=10, output_tokens=5),
        cost_micro_usd=4,
        latency_ms=1,
    )


async def ask(options: argparse.Namespace, number: int) -> None:
    """Ask about all documents, in an order of its own."""
    order = list(range(options.documents))
    random.Random(number).shuffle(order)
    client = AnthropicClient(api_key="sk-ant-any", base_url=options.server)
    engine = Engine(endpoint=Endpoint(client=client), ledger=Ledger(options.ledger))
    outcomes: list[object] = []
    await engine.map(
        (document(n) for n in order),
        lambda _, outcome: outcomes.append(outcome),
        make_terms(SCOPE),
        max_in_flight=64,
    )
    paid = engine.tally.requests
    await engine.close()
    answered = sum(isinstance(outcome, Reply) for outcome in outcomes)
    told = {
        "answered": answered,
        "paid": paid,
        "other": [repr(o) for o in outcomes if not isinstance(o, Reply)],
    }
    say(json.dumps(told))


async def first(options: argparse.Namespace, number: int) -> None:
    """Be among the first to use a ledger, and put one answer in."""
    ledger = Ledger(options.ledger)
    key = f"{number:064x}"
    opened = await ledger.open(entry(key))
    assert isinstance(opened, OpenedAttempt)
    await ledger.record(settlement(opened, key))
    ledger.close()
    say(json.dumps({"settled": 1}))


async def settle(options: argparse.Namespace, number: int) -> None:
    """Settle for ever, with 32 waiting; print each key as soon as one is told that it is settled."""
    ledger = Ledger(options.ledger)

    async def one() -> None:
        while True:
            key = uuid.uuid4().hex * 2
            opened = await ledger.open(entry(key))
            assert isinstance(opened, OpenedAttempt)
            await ledger.record(settlement(opened, key))
            say(key)

    await asyncio.gather(*(one() for _ in range(32)))


async def hold(options: argparse.Namespace, number: int) -> None:
    """Open one attempt, print "opened", and settle it when a line is read."""
    ledger = Ledger(options.ledger, lease_s=1.5, beat_s=0.5)
    key = "f" * 64
    opened = await ledger.open(entry(key))
    assert isinstance(opened, OpenedAttempt)
    say("opened")
    await asyncio.to_thread(sys.stdin.readline)
    await ledger.record(settlement(opened, key))
    say("settled")
    ledger.close()


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # one write a line: processes that share a pipe don't mix theirs


def main() -> None:
    roles: dict[str, Callable] = {"ask": ask, "first": first, "settle": settle, "hold": hold}
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=roles)
    parser.add_argument("--ledger")
    parser.add_argument("--server")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    if options.role == "ask":
        import aiohttp  # noqa: F401  # once, before the fork: each import costs two seconds of CPU
        import anthropic  # noqa: F401
        import genai_prices  # noqa: F401
    ready, go = os.pipe()
    children = []
    for number in range(options.processes):
        child = os.fork()
        if child == 0:
            os.close(go)
            os.read(ready, 1)  # until the parent closes its end: all start at once
            status = 1
            try:
                asyncio.run(roles[options.role](options, number))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    os.close(go)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


if __name__ == "__main__":
    main()
