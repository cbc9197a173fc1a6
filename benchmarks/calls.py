"""CPU-seconds a slow call: mapped ClaudeOperators that start and end in the triggerer, against mapped LLMOperators.

Both sides run in a real Airflow (api-server, scheduler with LocalExecutor and `--parallelism` slots, dag-processor,
triggerer; SQLite), one after the other, and ask the same stand-in, which takes `--latency` seconds an answer: ours in
`--calls` deferrable tasks mapped over an XCom, the official ones in `--peer-calls` tasks. CPU is user and system of
all processes of that Airflow, those of ended tasks too, from the trigger until the run and its last task process have
ended; nothing is taken off. What these processes use while nothing runs is stated beside it (idle_cpu_per_s). Before,
each side has run a DAG over two other calls.

The official provider lives in .bench/rivals, see documents.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from documents import MODEL, _rivals
from machine import machine, stand_in

from airflow_llm_provider.testing.airflow import LocalAirflow
from airflow_llm_provider.testing.books import balance
from airflow_llm_provider.testing.invoice import InvoiceLine
from airflow_llm_provider.testing.processes import wait_until

TIMEOUT_S = 1800
WARM_UP = 2
PROMPTS = """
from airflow.sdk import DAG, task


@task
def prompts(name, count):
    return [f"{name} {n}: what is owed for {n} boxes at $3 each?" for n in range(count)]


for name, count in (("warm_up", WARM_UP), ("calls", CALLS)):
    with DAG(name, schedule=None, default_args={"retries": 2}):
"""
OURS = (
    "from airflow_llm_provider.operators.claude import ClaudeOperator\n"
    + PROMPTS
    + """
        ClaudeOperator.partial(task_id="ask", model="fast", deferrable=True).expand(prompt=prompts(name, count))
"""
)
PEER = (
    "from airflow.providers.common.ai.operators.llm import LLMOperator\n"
    + PROMPTS
    + """
        LLMOperator.partial(
            task_id="ask", llm_conn_id="claude", model_settings={"max_tokens": 4096}
        ).expand(prompt=prompts(name, count))
"""
)


def main() -> None:
    """Run both sides and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=300, help="of ours")
    parser.add_argument("--peer-calls", type=int, default=8, help="of the official operator")
    parser.add_argument("--latency", type=float, default=30.0, help="seconds an answer takes")
    parser.add_argument("--parallelism", type=int, default=4, help="worker slots")
    parser.add_argument("--side", choices=["ours", "peer"], help="only this one")
    options = parser.parse_args()
    figures = {side: _measure(side, options) for side in ("ours", "peer") if options.side in (None, side)}
    if options.side:
        return
    ours, peer = figures["ours"]["cpu_s_a_call"], figures["peer"]["cpu_s_a_call"]
    print(
        json.dumps(
            {
                "name": "calls",
                "ours": round(ours, 4),
                "peer": round(peer, 4),
                "ratio": round(peer / ours, 1),
                "unit": "CPU-seconds a call",
                "target": {"ours": 0.1, "ratio": 20, "calls_per_s": 4, "max_in_flight": options.calls},
                **{name: {side: figures[side][name] for side in figures} for name in figures["ours"]},
                "latency_s": options.latency,
                "parallelism": options.parallelism,
                "machine": machine(Path(tempfile.gettempdir())),
            }
        )
    )


def _measure(side: str, options: argparse.Namespace) -> dict[str, Any]:
    is_ours = side == "ours"
    calls = options.calls if is_ours else options.peer_calls
    with (
        tempfile.TemporaryDirectory(prefix="bench-calls-") as folder,
        stand_in(latency_s=options.latency) as url,
    ):
        Path(folder, "dags").mkdir()
        Path(folder, "dags", "bench.py").write_text(
            f"WARM_UP, CALLS = {WARM_UP}, {calls}\n{OURS if is_ours else PEER}"
        )
        connection = {"conn_type": "claude" if is_ours else "pydanticai", "password": "sk-bench", "host": url}
        if not is_ours:
            connection["extra"] = {"model": f"anthropic:{MODEL}"}
        with LocalAirflow(
            Path(folder, "home"),
            Path(folder, "dags"),
            python=sys.executable if is_ours else str(_rivals()),
            parallelism=options.parallelism,
            connections={"claude": connection, "claude_default": connection},
            config={"AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "2000"},
        ) as airflow:
            figures = _run(airflow, url, calls)
        if is_ours:
            books = balance(
                f"sqlite:///{folder}/home/llm_ledger.db",
                [InvoiceLine(**line) for line in _invoice(url, lines=1)["lines"]],
            )
            assert (books.paid, books.unproven) == (calls + WARM_UP, 0), books
    print(
        f"{side}: " + ", ".join(f"{name} {value}" for name, value in figures.items()),
        file=sys.stderr,
        flush=True,
    )
    return figures


def _run(airflow: LocalAirflow, url: str, calls: int) -> dict[str, Any]:
    """Warm up, look at the idle components, and run the DAG."""
    _run_dag(airflow, "warm_up")
    airflow.unpause("calls")
    time.sleep(5)
    before, started = airflow.cpu_seconds(), time.perf_counter()
    time.sleep(10)
    idle = (airflow.cpu_seconds() - before) / (time.perf_counter() - started)

    paid = _invoice(url)["paid"]
    parts = _by_component(airflow)
    before, started = airflow.cpu_seconds(), time.perf_counter()
    run = _run_dag(airflow, "calls")
    took = time.perf_counter() - started
    # A task reports success before its process has ended; what that still costs is its own.
    assert wait_until(lambda: not airflow.task_pids(), 30)
    cpu = airflow.cpu_seconds() - before
    told = _invoice(url)
    return {
        "cpu_s_a_call": round(cpu / calls, 4),
        "calls": calls,
        "calls_per_s": round(calls / took, 2),
        "seconds": round(took, 1),
        "cpu_s": round(cpu, 1),
        "cpu_s_by_component": {
            name: round(now - parts[name], 1) for name, now in _by_component(airflow).items()
        },
        "idle_cpu_per_s": round(idle, 3),
        "max_in_flight": told["max_in_flight"],
        "requests": told["paid"] - paid,
        "in_workers": sum(bool(ti["hostname"]) for ti in airflow.task_instances("calls", run)) - 1,
    }


def _by_component(airflow: LocalAirflow) -> dict[str, float]:
    from airflow_llm_provider.testing.processes import cpu_seconds

    return {name: cpu_seconds({pid}) for name, pid in airflow.pids().items()}


def _run_dag(airflow: LocalAirflow, dag_id: str) -> str:
    run = airflow.trigger(dag_id)
    # Asking costs the API server CPU, which counts: seldom.
    if airflow.wait(dag_id, run, TIMEOUT_S, poll_s=2.0) != "success":
        failed = [ti for ti in airflow.task_instances(dag_id, run) if ti["state"] == "failed"]
        raise SystemExit(airflow.log(dag_id, run, "ask", map_index=failed[0]["map_index"]))
    return run


def _invoice(url: str, **params: int) -> dict[str, Any]:
    told: dict[str, Any] = httpx.get(
        f"{url}/stand-in/invoice", params=params, timeout=60, trust_env=False
    ).json()
    return told


if __name__ == "__main__":
    main()
