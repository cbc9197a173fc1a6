"""How many requests per second the stand-in answers at zero latency, and the CPU time of one.

The stand-in runs in a process of its own; a plain aiohttp client in this one drives it. There is no
peer to compare with: the floor is the 1,000 requests/s of issue 2, so that the stand-in is never what a
benchmark of ours measures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from typing import Any

import aiohttp
import psutil

SENTENCE = "The vendor ACME delivers {n} boxes on 2026-03-0{d} for $1,{n}.00; any dispute goes to court. "
SCHEMA = {
    "type": "object",
    "properties": {
        "vendor": {"type": "string", "description": "who delivers"},
        "total": {"type": "number", "description": "amount to pay"},
        "due": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]},
        "kind": {"enum": ["invoice", "contract", "other"]},
        "quote": {"type": "string", "description": "the sentence about a dispute"},
    },
    "required": ["vendor", "total", "due", "kind", "quote"],
    "additionalProperties": False,
}


def body(number: int, chars: int, *, structured: bool) -> bytes:
    """Return the request about one document of about `chars` characters."""
    text = "".join(
        SENTENCE.format(n=100 + number + n, d=1 + n % 9) for n in range(1 + chars // len(SENTENCE))
    )
    request: dict[str, Any] = {
        "model": "claude-haiku-5-5",
        "max_tokens": 1024,
        "system": "Read the document and answer in the given form.",
        "messages": [
            {
                "role": "user",
                "content": [
                    {
                        "type": "document",
                        "source": {"type": "text", "media_type": "text/plain", "data": text},
                    },
                    {"type": "text", "text": f"What does document {number} say?"},
                ],
            }
        ],
    }
    if structured:
        request["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
    return json.dumps(request).encode()


async def drive(url: str, bodies: list[bytes], *, in_flight: int) -> float:
    """Send every body, `in_flight` at a time; return the seconds it took."""
    headers = {
        "x-api-key": "benchmark",
        "anthropic-version": "2023-06-01",
        "content-type": "application/json",
    }
    waiting = iter(bodies)

    async def one_after_the_other(session: aiohttp.ClientSession) -> None:
        for sent in waiting:
            async with session.post("/v1/messages", data=sent) as response:
                answer = await response.read()
                assert response.status == 200, answer

    async with aiohttp.ClientSession(
        url, headers=headers, connector=aiohttp.TCPConnector(limit=in_flight)
    ) as session:
        begun = time.perf_counter()
        await asyncio.gather(*(one_after_the_other(session) for _ in range(in_flight)))
        return time.perf_counter() - begun


def measure(*, requests: int, chars: int, in_flight: int, structured: bool) -> dict[str, float]:
    """Measure one sort of request against a fresh stand-in."""
    bodies = [body(number, chars, structured=structured) for number in range(requests)]
    command = [sys.executable, "-m", "airflow_llm_provider.testing.standin", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            url = server.stdout.readline().strip()
            asyncio.run(drive(url, bodies[: requests // 10], in_flight=in_flight))
            cpu = psutil.Process(server.pid)
            before = cpu.cpu_times()
            took = asyncio.run(drive(url, bodies, in_flight=in_flight))
            after = cpu.cpu_times()
        finally:
            server.terminate()
    cpu_s = after.user + after.system - before.user - before.system
    return {"per_second": requests / took, "server_cpu_ms": 1000 * cpu_s / requests}


def main() -> None:
    """Print the figures; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4_000)
    parser.add_argument("--chars", type=int, default=2_000)
    parser.add_argument("--in-flight", type=int, default=64)
    chosen = parser.parse_args()
    figures = {}
    for name, structured in (("text", False), ("structured", True)):
        figures[name] = measure(
            requests=chosen.requests, chars=chosen.chars, in_flight=chosen.in_flight, structured=structured
        )
        print(f"{name}: {figures[name]['per_second']:.0f} /s, {figures[name]['server_cpu_ms']:.2f} ms CPU")
    print(
        json.dumps(
            {
                "name": "standin",
                "ours": round(figures["structured"]["per_second"]),
                "peer": None,
                "ratio": None,
                "unit": "requests/s",
                "floor": 1_000,
                "text": round(figures["text"]["per_second"]),
                "server_cpu_ms": round(figures["structured"]["server_cpu_ms"], 3),
                "requests": chosen.requests,
                "document_chars": chosen.chars,
                "in_flight": chosen.in_flight,
            }
        )
    )


if __name__ == "__main__":
    main()
