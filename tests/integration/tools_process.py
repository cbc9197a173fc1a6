"""Processes for test_tools_over_http.py: each asks one question with one irreversible tool, as one task instance.

The tool writes a line into a file when it begins, and another before it returns; between the two it waits until
a second file is there. What the process was told is its one line of output, as JSON.
"""

import argparse
import asyncio
import json
import os
import time
from pathlib import Path

from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.tool_loop import Toolbox
from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.tools import by_name, tool
from tests.support.terms import make_terms

SCOPE = CallScope(dag_id="nightly", run_id="run-1", task_id="pay", trace_id="0" * 32)


def write(path: str, line: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{line}\n".encode())
    os.fsync(file)
    os.close(file)


async def main(options: argparse.Namespace) -> dict[str, object]:
    @tool(irreversible=True)
    def pay(amount: int) -> str:
        """Pay an invoice."""
        write(options.journal, f"begun {amount}")
        while not Path(options.go).exists():
            time.sleep(0.02)
        write(options.journal, f"ended {amount}")
        return f"paid {amount}"

    client = AnthropicClient(api_key="sk-ant-any", base_url=options.server)
    engine = Engine(endpoint=Endpoint(client=client), ledger=Ledger(options.ledger))
    toolbox = Toolbox(tools=by_name([pay]))
    request = Request(
        model="claude-haiku-5-5",
        messages=[{"role": "user", "content": "Pay what is owed: 12 euros."}],
        tools=[pay.definition],
        endpoint=client.endpoint,
        max_tokens=options.max_tokens,
    )
    try:
        reply = await engine.ask(request, make_terms(SCOPE, toolbox=toolbox))
        return {"answer": reply.value, "paid": engine.tally.requests}
    except LLMError as error:
        return {"error": type(error).__name__, "message": str(error), "paid": engine.tally.requests}
    finally:
        await engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("ledger", "server", "journal", "go"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--max-tokens", type=int, default=500)
    print(json.dumps(asyncio.run(main(parser.parse_args()))), flush=True)
