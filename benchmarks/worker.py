"""CPU-seconds of a whole task with one call in a worker: ClaudeOperator against the official LLMOperator.

Each side runs in a real Airflow (api-server, scheduler with LocalExecutor, dag-processor; SQLite), in turn, asks the
same stand-in the same question, and runs its task `--tasks` times, one after the other. CPU is user and system of
LocalExecutor's worker process and of the task process it forks, start to end: what a task costs on a worker, without
the scheduler and the API server, which are the same Airflow on both sides. Before, each side has run its task once.

Then again with what a task imports loaded beforehand, in the process that workers are forked from. That takes nothing
but a file: Airflow runs `airflow_local_settings.py` from the `config` folder of its home in every component, and there

    import sys
    if "scheduler" in sys.argv or "celery" in sys.argv:
        import anthropic, aiohttp, airflow_llm_provider.hooks.question, airflow_llm_provider.ledger.ledger

will do (PRELOAD_OURS in sides.py is the whole list). The official provider is preloaded the same way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import machine, stand_in
from sides import PRELOAD, PRELOAD_COMMON_AI, PRELOAD_OURS, Side

from airflow_llm_provider.testing.processes import session_members, title, wait_until
from tests.support.airflow import AirflowUnderTest

TIMEOUT_S = 300
QUESTION = "We owe you $7.00 for two boxes. What is owed?"
OURS = f"""
from airflow.sdk import DAG
from airflow_llm_provider.operators.claude import ClaudeOperator

with DAG("worker", schedule=None):
    ClaudeOperator(task_id="ask", model="fast", prompt={QUESTION!r})
"""
PEER = f"""
from airflow.sdk import DAG
from airflow.providers.common.ai.operators.llm import LLMOperator

with DAG("worker", schedule=None):
    LLMOperator(task_id="ask", llm_conn_id="claude", model_settings={{"max_tokens": 4096}}, prompt={QUESTION!r})
"""
SIDES = {
    "ours": Side(name="ours", title="ours", dag="ours"),
    "peer": Side(name="peer", title="common-ai", dag="common_ai"),
    "ours_preloaded": Side(name="ours_preloaded", title="ours", dag="ours", preload=PRELOAD_OURS),
    "peer_preloaded": Side(
        name="peer_preloaded", title="common-ai", dag="common_ai", preload=PRELOAD_COMMON_AI
    ),
}


def main() -> None:
    """Measure each side in turn, cold and preloaded, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=5, help="measured in each round")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=SIDES)
    options = parser.parse_args()
    figures: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(options.rounds):
        for side, tasks in figures.items():
            if options.only in (None, side):
                tasks += _measure(SIDES[side], options.tasks)
                print(f"{side}: {[round(cpu, 2) for cpu in tasks]}", file=sys.stderr, flush=True)
    if options.only:
        return
    median = {side: round(statistics.median(tasks), 3) for side, tasks in figures.items()}
    print(
        json.dumps(
            {
                "name": "worker",
                "ours": median["ours"],
                "peer": median["peer"],
                "ratio": round(median["peer"] / median["ours"], 2),
                "unit": "CPU-seconds a task",
                "target": {"ratio": 1.3, "ours_preloaded": 0.5},
                "ours_preloaded": median["ours_preloaded"],
                "peer_preloaded": median["peer_preloaded"],
                "ratio_preloaded": round(median["peer_preloaded"] / median["ours_preloaded"], 2),
                "tasks": {side: len(tasks) for side, tasks in figures.items()},
                "spread": {
                    side: [round(min(tasks), 3), round(max(tasks), 3)] for side, tasks in figures.items()
                },
                "machine": machine(Path(tempfile.gettempdir())),
            }
        )
    )


def _measure(side: Side, tasks: int) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="bench-worker-") as folder, stand_in() as url:
        Path(folder, "dags").mkdir()
        Path(folder, "dags", "bench.py").write_text(OURS if side.is_ours else PEER)
        if side.preload:
            Path(folder, "home", "config").mkdir(parents=True)
            Path(folder, "home", "config", "airflow_local_settings.py").write_text(PRELOAD + side.preload)
        connection = side.connection(url)
        with AirflowUnderTest(
            Path(folder, "home"),
            Path(folder, "dags"),
            python=side.python,
            parallelism=1,
            connections={"claude": connection, "claude_default": connection},
            components=("api-server", "scheduler", "dag-processor"),
        ) as airflow:
            _run_task(airflow)
            return [_run_task(airflow) for _ in range(tasks)]


def _run_task(airflow: AirflowUnderTest) -> float:
    """Run the task once and return what it cost its worker."""
    before = _cpu_of_workers(airflow)
    run = airflow.trigger("worker")
    if airflow.wait("worker", run, TIMEOUT_S) != "success":
        raise SystemExit(airflow.log("worker", run, "ask"))
    # A task reports success before its process has ended; what that still costs is its own.
    assert wait_until(lambda: not airflow.task_pids() and _is_idle(airflow), 30)
    return _cpu_of_workers(airflow) - before


def _workers(airflow: AirflowUnderTest) -> list[Any]:
    """Return LocalExecutor's worker processes, which await the tasks that they fork."""
    members = session_members({airflow.pids()["scheduler"]})
    return [member for member in members if "LocalExecutor" in title(member)]


def _is_idle(airflow: AirflowUnderTest) -> bool:
    return all(title(worker).endswith("<idle>") for worker in _workers(airflow))


def _cpu_of_workers(airflow: AirflowUnderTest) -> float:
    total = 0.0
    for worker in _workers(airflow):
        times = worker.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


if __name__ == "__main__":
    main()
