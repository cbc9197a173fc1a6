"""Peak memory of a task over 20,000 documents of 10 kB, against the same task over 200.

Each run is a process of its own that does what the operator does, from the listing of the folder to the landed
rows, with a SQLite ledger; the stand-in is another process and answers at once. The documents share no line of
text. Peak RSS is the kernel's (`ru_maxrss`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pydantic

MODEL = "claude-haiku-5-5"
CHARACTERS = 10_000
LIMIT_MB = 150


class Note(pydantic.BaseModel):
    """What is asked of each document."""

    vendor: str
    total: float
    kind: str


def main() -> None:
    """Measure both sizes, and print the difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--few", type=int, default=200)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--run", nargs=2, metavar=("FOLDER", "URL"), help="be one of the measured processes")
    options = parser.parse_args()
    if options.run:
        folder, url = options.run
        print(json.dumps(asyncio.run(_ask(Path(folder), url, options.in_flight))))
        return
    from machine import machine

    few = _measure(options.few, options.in_flight)
    many = _measure(options.documents, options.in_flight)
    difference = many["peak_mb"] - few["peak_mb"]
    print(
        json.dumps(
            {
                "name": "memory",
                "ours": round(many["peak_mb"], 1),
                "peer": round(few["peak_mb"], 1),
                "ratio": round(many["peak_mb"] / few["peak_mb"], 2),
                "unit": f"MB peak RSS at {options.documents} documents, and at {options.few}",
                "difference_mb": round(difference, 1),
                "limit_mb": LIMIT_MB,
                "ok": difference <= LIMIT_MB,
                "documents": options.documents,
                "document_bytes": CHARACTERS,
                "in_flight": options.in_flight,
                "seconds": round(many["seconds"], 1),
                "cpu_ms_a_document": round(1000 * many["cpu_s"] / options.documents, 2),
                "machine": machine(Path(tempfile.gettempdir())),
            }
        )
    )


def _measure(documents: int, in_flight: int) -> dict[str, Any]:
    from machine import stand_in

    with tempfile.TemporaryDirectory(prefix="bench-memory-") as name, stand_in() as url:
        folder = Path(name)
        _write_documents(folder / "inbox", documents)
        command = [sys.executable, __file__, "--in-flight", str(in_flight), "--run", str(folder), url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if figures["outcomes"]["answered"] != documents:
        raise SystemExit(f"not all of {documents} were answered: {figures['outcomes']}")
    print(f"{documents} documents: {figures}", file=sys.stderr, flush=True)
    return figures


async def _ask(folder: Path, url: str, in_flight: int) -> dict[str, Any]:
    """Do what the operator does in its task process."""
    from airflow_llm_provider.documents.output import RowWriter
    from airflow_llm_provider.documents.prompt import DocumentPrompt
    from airflow_llm_provider.documents.run import Run
    from airflow_llm_provider.documents.sources import list_documents
    from airflow_llm_provider.engine.client import AnthropicClient
    from airflow_llm_provider.engine.endpoint import Endpoint
    from airflow_llm_provider.engine.engine import Engine
    from airflow_llm_provider.engine.output_type import OutputType
    from airflow_llm_provider.ledger.ledger import Ledger
    from airflow_llm_provider.ledger.records import CallScope
    from airflow_llm_provider.options import Options

    started = time.monotonic()
    output = OutputType(Note)
    client = AnthropicClient(api_key="sk-bench", base_url=url)
    endpoint = Endpoint(client=client, address=client.endpoint)
    engine = Engine(endpoint=endpoint, ledger=Ledger(f"sqlite:///{folder}/ledger.db"))
    run = Run(
        engine=engine,
        scope=CallScope(dag_id="bench", run_id="run", task_id="ask", trace_id="0" * 32),
        prompt=DocumentPrompt(
            prompt="Read this note and state its facts.",
            output=output,
            endpoint=endpoint,
            options=Options(model=MODEL, reuse="always"),
        ),
        max_in_flight=in_flight,
    )
    with RowWriter(folder / "rows" / "rows.jsonl", schema=output.item_schema) as sink:
        manifest = await run.run(list_documents(folder / "inbox"), sink)
        await asyncio.to_thread(sink.publish, manifest)
    await engine.close()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "peak_mb": used.ru_maxrss / 1024,
        "cpu_s": used.ru_utime + used.ru_stime,
        "seconds": time.monotonic() - started,
        "outcomes": manifest["outcomes"],
    }


def _write_documents(folder: Path, documents: int) -> None:
    """Write documents of random words, CHARACTERS long, always the same ones."""
    folder.mkdir()
    draws = random.Random(20_000)
    words = [f"{draws.getrandbits(36):x}" for _ in range(50_000)]
    for number in range(documents):
        head = f"The vendor ACME {number} asks for ${number}.50. "
        (folder / f"{number:05}.txt").write_text(
            (head + " ".join(draws.choices(words, k=CHARACTERS // 9)))[:CHARACTERS]
        )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
