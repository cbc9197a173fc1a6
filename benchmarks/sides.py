"""The sides: ways to ask a model from Airflow, each run in a real Airflow of its own."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
import venv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
from machine import peak_pss_mb

from airflow_llm_provider.testing.processes import wait_until
from tests.support.airflow import AirflowUnderTest

HERE = Path(__file__).parent
MODEL = "claude-haiku-5-5"
TIMEOUT_S = 3600
# What a scheduler with these lines in its airflow_local_settings.py has loaded before it forks its tasks.
PRELOAD = """
import sys

if "scheduler" in sys.argv or "celery" in sys.argv:  # the process that workers are forked from
"""
PRELOAD_OURS = """
    import anthropic
    import anthropic.resources.messages
    import aiohttp
    import httpx2
    import genai_prices.data_snapshot
    import airflow_llm_provider.hooks.question
    import airflow_llm_provider.ledger.ledger
    import airflow_llm_provider.operators.claude
"""
PRELOAD_COMMON_AI = """
    import anthropic
    import anthropic.resources.beta.messages
    import pydantic_ai.models.anthropic
    import pydantic_ai.providers.anthropic
    import airflow.providers.common.ai.hooks.pydantic_ai
    import airflow.providers.common.ai.operators.llm
"""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way to do the work.

    title: as tables call it. dag: the file in benchmarks/dags that does it.
    preload: what its scheduler imports before it forks tasks.
    in_flight: calls at once, where one task makes many.
    """

    name: str
    title: str
    dag: str
    preload: str = ""
    in_flight: int = 256

    @property
    def is_ours(self) -> bool:
        """Say whether it is this package."""
        return self.dag == "ours"

    @property
    def python(self) -> str:
        """Return the interpreter whose Airflow runs it."""
        return str(rivals()) if self.dag.startswith("common_ai") else sys.executable

    def connection(self, url: str) -> dict[str, Any]:
        """Return its connection to the stand-in."""
        told: dict[str, Any] = {"conn_type": "claude", "password": "sk-bench", "host": url}
        if self.dag.startswith("common_ai"):
            told |= {"conn_type": "pydanticai", "extra": {"model": f"anthropic:{MODEL}"}}
        return told


SIDES = (
    Side(name="ours", title="this package", dag="ours"),
    Side(name="common_ai", title="common-ai, mapped", dag="common_ai"),
    Side(
        name="common_ai_preloaded",
        title="common-ai, mapped, preloaded",
        dag="common_ai",
        preload=PRELOAD_COMMON_AI,
    ),
    Side(name="common_ai_hook", title="common-ai's hook, asyncio in one `@task`", dag="common_ai_hook"),
    Side(name="task_mapped", title="SDK in a mapped `@task`", dag="task_mapped"),
    Side(name="task_threads", title="SDK, 256 threads in one `@task`", dag="task_threads"),
    Side(name="task_few_threads", title="SDK, 8 threads in one `@task`", dag="task_threads", in_flight=8),
)


def rivals() -> Path:
    """Return the interpreter of the official provider's venv; make it where it is not as pinned."""
    folder, pins = HERE.parent / ".bench" / "rivals", HERE / "rivals.txt"
    python, stamp = folder / "bin" / "python", folder / "rivals.txt"
    if not stamp.exists() or stamp.read_text() != pins.read_text():
        print("Installing the official provider into .bench/rivals …", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--requirement", pins], check=True)
        stamp.write_text(pins.read_text())
    return python


@contextlib.contextmanager
def airflow_of(
    side: Side, folder: Path, url: str, works: Sequence[Mapping[str, Any]], *, parallelism: int
) -> Iterator[AirflowUnderTest]:
    """Run an Airflow in `folder` with the side's DAGs, one for each of `works`; see dags/question.py."""
    home, dags = folder / "home", folder / "dags"
    for path in (home / "config", dags):
        path.mkdir(parents=True)
    for name in ("question.py", f"{side.dag}.py"):
        shutil.copy(HERE / "dags" / name, dags)
    (dags / ".airflowignore").write_text("question.py\n")
    if side.preload:
        (home / "config" / "airflow_local_settings.py").write_text(PRELOAD + side.preload)
    connection = side.connection(url)
    with AirflowUnderTest(
        home,
        dags,
        python=side.python,
        parallelism=parallelism,
        connections={"claude": connection, "claude_default": connection},
        config={
            "BENCHMARK_WORKS": json.dumps(works),
            "BENCHMARK_IN_FLIGHT": str(side.in_flight),
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "2000",
        },
    ) as airflow:
        yield airflow


def run_and_measure(side: Side, airflow: AirflowUnderTest, url: str, dag_id: str) -> dict[str, Any]:
    """Run a DAG to its end and return what it took: by the kernel, the stand-in's invoice and Airflow.

    CPU is user and system of every process of that Airflow, those of ended tasks too, from the trigger until
    the run and its last task process have ended; nothing is taken off.
    """
    airflow.unpause(dag_id)
    before, cpu = ask(url, "invoice"), airflow.cpu_seconds()
    with peak_pss_mb(lambda: [pid for task in airflow.task_pids() for pid in task]) as peak:
        started = time.perf_counter()
        run = airflow.trigger(dag_id)
        airflow.wait(dag_id, run, TIMEOUT_S, poll_s=1.0)
        seconds = time.perf_counter() - started
        # A task reports success before its process has ended; what that still costs is its own.
        assert wait_until(lambda: not airflow.task_pids(), 60)
    cpu = airflow.cpu_seconds() - cpu
    after = ask(url, "invoice", lines=1)
    lines = after["lines"][before["paid"] :]
    items = Counter(line["item"] for line in lines)
    times = sorted(datetime.fromisoformat(line["time"]).timestamp() for line in lines)
    tasks = [ti for ti in airflow.task_instances(dag_id, run) if ti["task_id"] == "ask"]
    answered = _answered(side, airflow, dag_id, run, tasks)
    return {
        "answered": answered,
        "seconds": seconds,
        "cpu_s": cpu,
        "peak_task_mb": peak.mb,
        "requests": len(lines),
        "duplicates": items.total() - len(items),
        "refused": after["seen"] - before["seen"] - len(lines),
        "asking_s": times[-1] - times[0] if times else 0.0,
        "invoice_usd": (after["cost_micro_usd"] - before["cost_micro_usd"]) / 1e6,
        "tries": sum(ti["try_number"] for ti in tasks),
    }


def idle_cpu_per_s(airflow: AirflowUnderTest, seconds: float = 10.0) -> float:
    """Return what the Airflow's processes use while nothing runs."""
    time.sleep(5)
    before = airflow.cpu_seconds()
    time.sleep(seconds)
    return (airflow.cpu_seconds() - before) / seconds


def ask(url: str, what: str, **params: Any) -> dict[str, Any]:
    """Ask the stand-in about itself."""
    told: dict[str, Any] = httpx2.get(
        f"{url}/stand-in/{what}", params=params, timeout=120, trust_env=False
    ).json()
    return told


def order(url: str, what: str, body: Mapping[str, Any] | None = None) -> None:
    """Tell the stand-in how to behave."""
    httpx2.post(f"{url}/stand-in/{what}", json=body or {}, timeout=30, trust_env=False).raise_for_status()


def _answered(
    side: Side, airflow: AirflowUnderTest, dag_id: str, run: str, tasks: Sequence[Mapping[str, Any]]
) -> int:
    """Count the documents or questions that have an answer."""
    if side.dag in ("task_threads", "common_ai_hook"):
        return int(airflow.xcom(dag_id, run, "ask")) if tasks[0]["state"] == "success" else 0
    if side.is_ours and len(tasks) == 1:
        outcomes = airflow.xcom(dag_id, run, "ask")["outcomes"]
        return sum(outcomes.get(name, 0) for name in ("answered", "reused", "repaired"))
    return sum(ti["state"] == "success" for ti in tasks)
