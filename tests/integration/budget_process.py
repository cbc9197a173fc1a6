"""Processes for test_budgets.py: they share nothing with each other but a ledger and a budget.

Each buys documents of its own until they are all answered or the budget has no room, and prints one JSON line.
"""

import argparse
import asyncio
import json
import os
import sys

from airflow_llm_provider.engine.ceiling import ceiling_micro_usd
from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.errors import BudgetExceeded
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from tests.support.terms import make_terms

MODEL = "claude-sonnet-5-5"


def document(number: int) -> Request:
    """Return a question whose ceiling is below $0.03."""
    asked = Request(
        model=MODEL,
        messages=[{"role": "user", "content": f"Document {number}: {number + 7} boxes, due on 2026-03-04."}],
        max_tokens=1_500,
    )
    assert 0.02e6 < (ceiling_micro_usd(asked) or 0) <= 0.03e6
    return asked


def scope(cap_usd: float) -> CallScope:
    return CallScope(
        dag_id="nightly",
        run_id="run-1",
        task_id="ask",
        trace_id="0" * 32,
        run_budget_micro_usd=int(cap_usd * 1e6),
    )


async def spend(options: argparse.Namespace, number: int) -> None:
    """Ask about this process's share of the documents."""
    ledger = await asyncio.to_thread(
        lambda: Ledger(options.ledger, lease_s=options.lease_s, beat_s=options.lease_s / 4.5)
    )
    client = AnthropicClient(api_key="sk-ant-any", base_url=options.server)
    engine = Engine(endpoint=Endpoint(client=client), ledger=ledger)
    outcomes: list[object] = []
    mine = range(number, options.documents, options.processes)
    await engine.map(
        (document(n) for n in mine),
        lambda _, outcome: outcomes.append(outcome),
        make_terms(scope(options.cap_usd)),
        max_in_flight=options.in_flight,
    )
    paid = engine.tally.requests
    await engine.close()
    told = {
        "answered": sum(isinstance(outcome, Reply) for outcome in outcomes),
        "pending": sum(isinstance(outcome, BudgetExceeded) for outcome in outcomes),
        "paid": paid,
        "other": [repr(o) for o in outcomes if not isinstance(o, (Reply, BudgetExceeded))],
    }
    os.write(1, f"{json.dumps(told)}\n".encode())  # one write a line: processes don't mix theirs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ledger", required=True)
    parser.add_argument("--server", required=True)
    parser.add_argument("--documents", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--cap-usd", type=float, default=1.0)
    parser.add_argument("--lease-s", type=float, default=45.0)
    options = parser.parse_args()
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
                asyncio.run(spend(options, number))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    os.close(go)
    for child in children:
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
