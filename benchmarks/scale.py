"""Documents per second, CPU, memory and ledger of one task over 1,000, 10,000 and 100,000 documents: ours alone.

A real Airflow (api-server, scheduler with LocalExecutor, dag-processor, triggerer; SQLite) runs one
ClaudeDocumentsOperator over folders of files of about 1.2 kB, one folder after the other, no two documents alike; then
the largest once more, with nothing changed. The ledger is a file of SQLite beside Airflow, or a PostgreSQL that is
started for it, durable. Afterwards ledger and invoice are held against each other, line by line.

The stand-in answers at once, from a process on the same machine: documents a second are what is left of its cores, and
its CPU is stated beside ours. The clock runs from the trigger until Airflow calls the run a success; `task_seconds` are
those of the task's own work. CPU is user and system of all processes of that Airflow until the task process has ended.
Peak RSS is the task process's VmHWM, read five times a second while it lives.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil  # type: ignore[import-untyped]  # no stubs among our dependencies
import sqlalchemy as sa

from airflow_llm_provider.testing.invoice import InvoiceLine
from airflow_llm_provider.testing.processes import wait_until
from tests.support.airflow import AirflowUnderTest
from tests.support.books import balance
from tests.support.postgres import LocalPostgres

TARGET = {"documents_per_s": 400, "peak_rss_mb": 400, "pace_ratio": 0.9}
LEDGERS = ("sqlite", "postgresql")
SIZES = [1_000, 10_000, 100_000]
MB = 1024 * 1024
WARM_UP, FEW = "warm_up", 200  # enough for what a process loads and PostgreSQL allocates only once
TIMEOUT_S = 3600
DAGS = Path(__file__).parent / "dags"


def main() -> None:
    """Measure every size with each ledger, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--ledger", nargs="+", choices=LEDGERS, default=LEDGERS)
    parser.add_argument(
        "--keep", action="store_true", help="write results/scale.json, and the page's tables anew"
    )
    options = parser.parse_args()
    if options.keep and (set(options.ledger), options.sizes) != (set(LEDGERS), SIZES):
        parser.error("--keep takes all ledgers and sizes: the page compares them")
    import sizing
    from machine import machine

    sizes = sorted(options.sizes)
    figures = {name: _measure(name, sizes) for name in options.ledger}
    result = {
        "name": "scale",
        "date": datetime.now(UTC).date().isoformat(),
        "ours": {name: found["runs"][-1]["documents_per_s"] for name, found in figures.items()},
        "unit": f"documents/s over {sizes[-1]} documents",
        "target": TARGET,
        **figures,
        "latency_s": 0,
        "machine": machine(Path(tempfile.gettempdir())),
    }
    if options.keep:
        sizing.keep(result)
    print(json.dumps(result))


# Ledgers: where one is, how many bytes it takes, and what it counts of its own.


@dataclass(kw_only=True)
class SqliteLedger:
    """A ledger in a file beside Airflow."""

    url: str

    def bytes(self) -> int:
        """Return what its files take, the log that is not yet worked in too."""
        path = Path(sa.make_url(self.url).database or "")
        return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))

    def counters(self) -> dict[str, float]:
        """Return nothing: its work is done in the task."""
        return {}


@dataclass(kw_only=True)
class PostgresLedger:
    """A ledger in a PostgreSQL server of its own."""

    url: str
    server: LocalPostgres

    def bytes(self) -> int:
        """Return what its tables and indexes take; the server's write-ahead log is recycled."""
        return int(self._ask("SELECT pg_database_size(current_database())")[0])

    def counters(self) -> dict[str, float]:
        """Return commits, rows written and the server's CPU-seconds up to now."""
        commits, rows = self._ask(
            "SELECT xact_commit, tup_inserted + tup_updated FROM pg_stat_database WHERE datname = current_database()"
        )
        used = []
        for process in self.server.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # one that cleans up has just ended
                used.append(process.cpu_times())
        ended = used[0].children_user + used[0].children_system
        cpu_s = ended + sum(times.user + times.system for times in used)
        return {"commits": commits, "rows_written": rows, "server_cpu_s": cpu_s}

    def _ask(self, query: str) -> Sequence[Any]:
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        try:
            with engine.connect() as connection:
                return connection.execute(sa.text(query)).one()
        finally:
            engine.dispose()


# The runs.


def _measure(name: str, sizes: Sequence[int]) -> dict[str, Any]:
    """Run every size, and the largest again, in one Airflow with a ledger of this kind."""
    from machine import stand_in
    from notes import write_notes

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-scale-")))
        url = stack.enter_context(stand_in())
        [server] = psutil.Process().children()
        ledger: SqliteLedger | PostgresLedger
        if name == "sqlite":
            ledger = SqliteLedger(url=f"sqlite:///{folder}/ledger.db")
        else:
            database = stack.enter_context(LocalPostgres())
            ledger = PostgresLedger(url=database.create_database("ledger"), server=database)
        works = [
            {"dag_id": dag_id, "folder": str(folder / dag_id)} for dag_id in (WARM_UP, *map(_dag_id, sizes))
        ]
        for work, size in zip(works, (FEW, *sizes), strict=True):
            write_notes(Path(work["folder"]), range(size))
        shutil.copytree(DAGS, folder / "dags", ignore=lambda _, names: {*names} - {"question.py", "ours.py"})
        airflow = stack.enter_context(
            AirflowUnderTest(
                folder / "home",
                folder / "dags",
                connections={"claude_default": {"conn_type": "claude", "password": "sk-bench", "host": url}},
                config={"AIRFLOW__LLM__LEDGER_URL": ledger.url, "BENCHMARK_WORKS": json.dumps(works)},
            )
        )
        bench = Bench(airflow=airflow, ledger=ledger, stand_in=server, stand_in_url=url)
        bench.run(WARM_UP, FEW, outcome="answered")
        runs = []
        for size in sizes:
            runs.append(bench.run(_dag_id(size), size, outcome="answered"))
            _tell(f"{name}, {size}", runs[-1])
        again = bench.run(_dag_id(sizes[-1]), sizes[-1], outcome="reused")
        _tell(f"{name}, {sizes[-1]} again", again)
        books = bench.books()
        _tell(f"{name}, books", books)
    return {"runs": runs, "again": again, "books": books, "linear": _linearity(runs)}


@dataclass(kw_only=True)
class Bench:
    """What every run is measured in."""

    airflow: AirflowUnderTest
    ledger: SqliteLedger | PostgresLedger
    stand_in: psutil.Process
    stand_in_url: str

    def run(self, dag_id: str, documents: int, *, outcome: str) -> dict[str, Any]:
        """Run the DAG once, require this outcome and a row for every document, and return the figures."""
        airflow = self.airflow
        paid, size, counters = self._invoice()["paid"], self.ledger.bytes(), self.ledger.counters()
        cpu_s, stand_in_cpu_s = airflow.cpu_seconds(), _cpu_s(self.stand_in)
        started = time.perf_counter()
        with TaskWatch(airflow) as watch:
            run = airflow.trigger(dag_id)
            if airflow.wait(dag_id, run, TIMEOUT_S) != "success":
                raise SystemExit(airflow.log(dag_id, run, "ask"))
            seconds = time.perf_counter() - started
            # A task reports success before its process has ended; what that still costs is its own.
            assert wait_until(lambda: not airflow.task_pids(), 60)
        cpu_s, stand_in_cpu_s = airflow.cpu_seconds() - cpu_s, _cpu_s(self.stand_in) - stand_in_cpu_s
        manifest = airflow.xcom(dag_id, run, "ask")
        with Path(manifest["output"]).open("rb") as file:
            rows = sum(1 for _ in file)
        assert manifest["outcomes"][outcome] == rows == documents, manifest
        return {
            "documents": documents,
            "documents_per_s": round(documents / seconds, 1),
            "seconds": round(seconds, 1),
            "task_seconds": manifest["seconds"],
            "task_cpu_s": round(watch.cpu_s, 2),
            "task_cpu_ms_a_document": round(1000 * watch.cpu_s / documents, 3),
            "airflow_cpu_s": round(cpu_s, 2),
            "airflow_cpu_ms_a_document": round(1000 * cpu_s / documents, 3),
            "stand_in_cpu_s": round(stand_in_cpu_s, 2),
            "peak_rss_mb": round(watch.peak_bytes / MB, 1),
            "rows": rows,
            "requests": self._invoice()["paid"] - paid,
            "ledger_bytes_a_document": round((self.ledger.bytes() - size) / documents),
            **{
                f"ledger_{name}": round(count - counters[name], 2)
                for name, count in self.ledger.counters().items()
            },
        }

    def books(self) -> dict[str, Any]:
        """Hold the ledger against the invoice, line by line, and return what both sides agree on."""
        lines = [InvoiceLine(**line) for line in self._invoice(lines=1)["lines"]]
        books = balance(self.ledger.url, lines)
        assert (books.paid, books.unproven) == (len(lines), 0), books
        return {"paid": books.paid, "usd": books.cost_micro_usd / 1e6, "unproven": books.unproven}

    def _invoice(self, **params: int) -> dict[str, Any]:
        # It prices its lines when asked, 0.2 ms each: outside of what is measured.
        told: dict[str, Any] = httpx2.get(
            f"{self.stand_in_url}/stand-in/invoice", params=params, timeout=600, trust_env=False
        ).json()
        return told


class TaskWatch:
    """The CPU and the peak memory of the first task process that Airflow starts, as last seen alive."""

    def __init__(self, airflow: AirflowUnderTest) -> None:
        self.cpu_s = 0.0
        self.peak_bytes = 0
        self._airflow = airflow
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="task-watch")

    def __enter__(self) -> TaskWatch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._left.set()
        self._thread.join()

    def _watch(self) -> None:
        while not (tasks := self._airflow.task_pids()):
            if self._left.wait(0.2):
                return
        process = psutil.Process(tasks[0].runner)
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            while process.status() != psutil.STATUS_ZOMBIE:
                self.cpu_s, self.peak_bytes = _cpu_s(process), _peak_bytes(process.pid) or self.peak_bytes
                time.sleep(0.2)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _peak_bytes(pid: int) -> int:
    """Return a process's highest RSS so far; 0 when its memory is gone already."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def _linearity(runs: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Return how the largest run compares with the next: its task's pace, its CPU, the memory of one more document."""
    if len(runs) < 2:
        return None
    less, more = runs[-2:]
    pace = (more["documents"] / more["task_seconds"]) / (less["documents"] / less["task_seconds"])
    growth = (more["peak_rss_mb"] - less["peak_rss_mb"]) * MB / (more["documents"] - less["documents"])
    return {
        "pace_ratio": round(pace, 3),
        "task_cpu_ratio": round(more["task_cpu_ms_a_document"] / less["task_cpu_ms_a_document"], 3),
        "rss_bytes_a_document": round(growth),
    }


def _dag_id(size: int) -> str:
    return f"notes_{size}"


def _tell(what: str, figures: Mapping[str, Any]) -> None:
    told = ", ".join(f"{key} {value}" for key, value in figures.items())
    print(f"{what}: {told}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
