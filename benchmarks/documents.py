"""Documents a CPU-second: one ClaudeDocumentsOperator against the official provider's mapped LLMOperator.

Both sides run in a real Airflow (api-server, scheduler with LocalExecutor, dag-processor, triggerer; SQLite), in
turn, and ask the same stand-in about the same documents with the same output schema: ours about all of them in one
task, the official one about the first few in mapped tasks, one document each. CPU is user and system of all
processes of that Airflow, those of ended tasks too, from the trigger until the run and its last task process have
ended; nothing is taken off. What these processes use while nothing runs is stated beside it (idle_cpu_per_s).
Before, each side has run a DAG over two other documents.

The official provider lives in .bench/rivals, a venv made from rivals.txt at the first use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from airflow_llm_provider.testing.airflow import LocalAirflow
from airflow_llm_provider.testing.books import balance
from airflow_llm_provider.testing.invoice import InvoiceLine
from airflow_llm_provider.testing.processes import wait_until

HERE = Path(__file__).parent
RIVALS = HERE.parent / ".bench" / "rivals"
MODEL = "claude-haiku-5-5"
WARM_UP = 2
TIMEOUT_S = 1800
PARAGRAPH = (
    "The vendor ACME Supplies Ltd. delivers {boxes} boxes of part {part} to the warehouse in Rotterdam, for a total "
    "of ${boxes}.50, due on 2026-0{month}-15. Late payment is charged at two per cent a month; any dispute about this "
    "delivery goes to the courts of Amsterdam. "
)

# What both DAG files begin with.
QUESTION = """
import pydantic
from datetime import date
from pathlib import Path
from typing import Literal
from airflow.sdk import DAG

PROMPT = "Read this delivery note and state its facts. Leave out what it does not say."


class Delivery(pydantic.BaseModel):
    vendor: str = pydantic.Field(description="who delivers")
    total: float = pydantic.Field(description="amount to pay")
    due: date | None = None
    kind: Literal["invoice", "delivery note", "contract", "other"]
    court: str = pydantic.Field(description="the courts for a dispute")
"""

OURS = (
    QUESTION
    + """
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator

for name in ("warm_up", "documents"):
    with DAG(name, schedule=None):
        ClaudeDocumentsOperator(
            task_id="ask",
            documents=f"{FOLDER}/{name}",
            prompt=PROMPT,
            output_type=Delivery,
            output=f"{FOLDER}/rows/{name}.jsonl",
            model="fast",
            max_in_flight=IN_FLIGHT,
        )
"""
)

# The stand-in answers structured output in the API's own format, so NativeOutput instead of a tool call.
PEER = (
    QUESTION
    + """
from airflow.providers.common.ai.operators.llm import LLMOperator
from pydantic_ai import NativeOutput

for name in ("warm_up", "documents"):
    files = sorted(Path(FOLDER, name).iterdir())[:PEERS]
    with DAG(name, schedule=None):
        LLMOperator.partial(
            task_id="ask",
            llm_conn_id="claude",
            system_prompt=PROMPT,
            output_type=NativeOutput(Delivery),
            model_settings={"max_tokens": 4096},
            serialize_output=True,
        ).expand(prompt=[file.read_text() for file in files])
"""
)


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two providers.

    dag: the text of its DAG file, which knows FOLDER. documents: how many it is asked about.
    """

    name: str
    python: str
    dag: str
    documents: int
    connection: dict[str, Any]
    names: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    """Run both sides in turn, several times, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=2000, help="that our operator is asked about")
    parser.add_argument("--peer-documents", type=int, default=40, help="that the official one is asked about")
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--parallelism", type=int, default=4, help="tasks at once, for the mapped side")
    parser.add_argument("--side", choices=["ours", "peer"], help="only this one")
    options = parser.parse_args()
    from machine import machine

    figures: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for _ in range(options.rounds):
        for side in ("ours", "peer"):
            if options.side in (None, side):
                figures[side].append(_measure(side, options))
    if options.side:
        return

    def median(side: str, figure: str) -> float:
        return round(statistics.median(each[figure] for each in figures[side]), 4)

    ours, peer = median("ours", "documents_per_cpu_s"), median("peer", "documents_per_cpu_s")
    last = figures["ours"][-1]
    print(
        json.dumps(
            {
                "name": "documents",
                "ours": round(ours, 1),
                "peer": peer,
                "ratio": round(ours / peer),
                "unit": "documents per CPU-second",
                "target": 500,
                "documents": {"ours": options.documents, "peer": options.peer_documents},
                "documents_per_s": {side: median(side, "documents_per_s") for side in figures},
                "seconds": {side: median(side, "seconds") for side in figures},
                "cpu_s": {side: median(side, "cpu_s") for side in figures},
                "idle_cpu_per_s": {side: median(side, "idle_cpu_per_s") for side in figures},
                "requests": {side: figures[side][-1]["requests"] for side in figures},
                "duplicates": {side: figures[side][-1]["duplicates"] for side in figures},
                "invoice_usd": {side: figures[side][-1]["invoice_usd"] for side in figures},
                "ledger_usd": last["ledger_usd"],
                "in_flight": options.in_flight,
                "latency_s": options.latency,
                "rounds": options.rounds,
                "machine": machine(Path(tempfile.gettempdir())),
            }
        )
    )


def _measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    from machine import stand_in

    with (
        tempfile.TemporaryDirectory(prefix="bench-documents-") as folder,
        stand_in(latency_s=options.latency) as url,
    ):
        side = _side(name, url, options)
        _write_documents(Path(folder, "warm_up"), range(-WARM_UP, 0))
        _write_documents(Path(folder, "documents"), range(options.documents))
        values = {"FOLDER": folder, **side.names}
        Path(folder, "dags").mkdir()
        Path(folder, "dags", "bench.py").write_text(
            "".join(f"{key} = {value!r}\n" for key, value in values.items()) + side.dag
        )
        with LocalAirflow(
            Path(folder, "home"),
            Path(folder, "dags"),
            python=side.python,
            parallelism=options.parallelism,
            connections={"claude": side.connection, "claude_default": side.connection},
        ) as airflow:
            figures = _run(airflow, side, url)
        if name == "ours":
            lines = [InvoiceLine(**line) for line in _invoice(url, lines=1)["lines"]]
            books = balance(f"sqlite:///{folder}/home/llm_ledger.db", lines)
            assert books.unproven == 0, books
            figures["ledger_usd"] = books.cost_micro_usd / 1e6
    told = ", ".join(f"{key} {value}" for key, value in figures.items())
    print(f"{name}: {told}", file=sys.stderr, flush=True)
    return figures


def _run(airflow: LocalAirflow, side: Side, url: str) -> dict[str, Any]:
    """Warm up, look at the idle components, and run the DAG."""
    _run_dag(airflow, "warm_up")
    airflow.unpause("documents")
    time.sleep(5)
    before, started = airflow.cpu_seconds(), time.perf_counter()
    time.sleep(10)
    idle = (airflow.cpu_seconds() - before) / (time.perf_counter() - started)

    paid = _invoice(url)
    before, started = airflow.cpu_seconds(), time.perf_counter()
    run = _run_dag(airflow, "documents")
    took = time.perf_counter() - started
    # A task reports success before its process has ended; what that still costs is its own.
    assert wait_until(lambda: not airflow.task_pids(), 30)
    cpu = airflow.cpu_seconds() - before
    if side.name == "ours":
        assert airflow.xcom("documents", run, "ask")["outcomes"]["answered"] == side.documents
    told = _invoice(url, lines=1)
    items = Counter(line["item"] for line in told["lines"][paid["paid"] :])
    return {
        "documents_per_cpu_s": side.documents / cpu,
        "documents_per_s": side.documents / took,
        "cpu_s": cpu,
        "seconds": took,
        "idle_cpu_per_s": idle,
        "requests": told["paid"] - paid["paid"],
        "duplicates": items.total() - len(items),
        "invoice_usd": told["cost_micro_usd"] / 1e6,
    }


def _run_dag(airflow: LocalAirflow, dag_id: str) -> str:
    run = airflow.trigger(dag_id)
    if airflow.wait(dag_id, run, TIMEOUT_S) != "success":
        failed = [ti for ti in airflow.task_instances(dag_id, run) if ti["state"] == "failed"]
        raise SystemExit(airflow.log(dag_id, run, "ask", map_index=failed[0]["map_index"]))
    return run


def _side(name: str, url: str, options: argparse.Namespace) -> Side:
    if name == "ours":
        return Side(
            name=name,
            python=sys.executable,
            dag=OURS,
            documents=options.documents,
            connection={"conn_type": "claude", "password": "sk-bench", "host": url},
            names={"IN_FLIGHT": options.in_flight},
        )
    return Side(
        name=name,
        python=str(_rivals()),
        dag=PEER,
        documents=options.peer_documents,
        connection={
            "conn_type": "pydanticai",
            "password": "sk-bench",
            "host": url,
            "extra": {"model": f"anthropic:{MODEL}"},
        },
        names={"PEERS": options.peer_documents},
    )


def _rivals() -> Path:
    """Return the interpreter of the official provider's venv; make it where it is not as pinned."""
    python, pins = RIVALS / "bin" / "python", HERE / "rivals.txt"
    stamp = RIVALS / "rivals.txt"
    if not stamp.exists() or stamp.read_text() != pins.read_text():
        print(f"Installing the official provider into {RIVALS} …", file=sys.stderr, flush=True)
        venv.create(RIVALS, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", pins], check=True)
        stamp.write_text(pins.read_text())
    return python


def _write_documents(folder: Path, numbers: range) -> None:
    """Write documents of about 1.2 kB, no two alike; the number comes first, so that invoices tell them apart."""
    folder.mkdir()
    for number in numbers:
        text = "".join(
            PARAGRAPH.format(boxes=100 + number + n, part=f"{number:05}-{n}", month=1 + n) for n in range(4)
        )
        Path(folder, f"{number:05}.txt").write_text(f"Delivery note {number}.\n{text}")


def _invoice(url: str, **params: int) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(
        f"{url}/stand-in/invoice", params=params, timeout=60, trust_env=False
    ).json()
    return told


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
