"""Processes for test_pace.py and benchmarks/pace.py: tasks of several DAGs that share a ledger and a rate limit.

Each asks about one document after the other until its time is up, and prints one JSON line: its DAG, how many
were answered and failed, and when each call was permitted and sent (seconds of the machine's monotonic clock).
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator

from airflow_llm_provider.engine.client import AnthropicClient, HeaderCallback
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.rate_limits import Limits
from airflow_llm_provider.ledger.records import CallScope
from tests.support.terms import make_terms


class WatchedClient(AnthropicClient):
    """Notes when each call was permitted and is sent."""

    async def send(
        self,
        request: Request,
        *,
        timeout_s: float,
        on_first_byte: Callable[[], object],
        on_headers: HeaderCallback,
    ) -> bytes:
        PERMITTED.append(on_headers.__self__.at_s)  # it is its permit's
        SENT.append(time.monotonic())
        return await super().send(
            request, timeout_s=timeout_s, on_first_byte=on_first_byte, on_headers=on_headers
        )


PERMITTED: list[float] = []
SENT: list[float] = []


async def ask(options: argparse.Namespace, number: int) -> None:
    """Be a task with `in_flight` calls at a time, until the time is up."""
    dag_id = options.dags[number]
    scope = CallScope(dag_id=dag_id, run_id="run", task_id="ask", map_index=number, connection_id="claude")
    limits = Limits(rpm=options.rpm, itpm=options.itpm, otpm=options.otpm)
    engine = Engine(
        endpoint=Endpoint(client=WatchedClient(api_key="sk-ant-any", base_url=options.server), limits=limits),
        ledger=Ledger(options.ledger, synchronous="NORMAL"),
    )
    end_s = time.monotonic() + options.seconds
    outcomes = {"answered": 0, "failed": 0}

    def documents() -> Iterator[Request]:
        count = 0
        while time.monotonic() < end_s:
            count += 1
            text = f"{dag_id} {number} {count}: due on 2026-03-04. {'word ' * options.words}"
            yield Request(
                model="claude-haiku-5-5", messages=[{"role": "user", "content": text}], max_tokens=50
            )

    def done(_: int, outcome: object) -> None:
        outcomes["answered" if isinstance(outcome, Reply) else "failed"] += 1
        if not isinstance(outcome, Reply):
            print(repr(outcome), file=sys.stderr)

    try:
        async with asyncio.timeout(options.seconds):
            await engine.map(documents(), done, make_terms(scope), max_in_flight=options.in_flight)
    except TimeoutError:
        pass  # what waits for a permit when the time is up was not asked
    await engine.close()
    say({"dag": dag_id, **outcomes, "permitted": PERMITTED, "sent": SENT})


def say(told: object) -> None:
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        data = json.dumps(told).encode() + b"\n"
        while data:
            data = data[out.write(data) :]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ledger")
    parser.add_argument("--server")
    parser.add_argument("--dags", nargs="+", help="one process each")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rpm", type=int)
    parser.add_argument("--itpm", type=int)
    parser.add_argument("--otpm", type=int)
    parser.add_argument("--words", type=int, default=0)
    parser.add_argument("--in-flight", type=int, default=32)
    options = parser.parse_args()
    import aiohttp  # noqa: F401  # once, before the fork: each import costs two seconds of CPU
    import anthropic  # noqa: F401
    import genai_prices  # noqa: F401

    children = []
    for number in range(len(options.dags)):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                asyncio.run(ask(options, number))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


if __name__ == "__main__":
    main()
