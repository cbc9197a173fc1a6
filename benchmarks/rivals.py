"""The same work done by this package, by the official provider's LLMOperator and by plain tasks with the SDK.

Each side runs in a real Airflow of its own (api-server, scheduler with LocalExecutor and `--parallelism` slots,
dag-processor, triggerer; SQLite) and does its works one after the other, against the same stand-in. A side that is one
task does all of each work; a mapped side, whose cost is by the task, does the first `--few` documents of it, or more
where each of the work's faults is to come once. Before, each side has run a DAG over two other documents; what its
Airflow uses while nothing runs is stated beside it (idle_cpu_per_s). Our books are held against the stand-in's invoice
after every work.

The results go into results/rivals.json after every side, and from there into docs/benchmarks.md (report.py). Those of
some works or sides (`--works`, `--sides`) take the place of what was measured of them before: on the same day, machine,
versions and options, else nothing is kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine, stand_in
from notes import first_line, write_notes
from report import keep
from sides import HERE, SIDES, Side, airflow_of, ask, idle_cpu_per_s, order, rivals, run_and_measure

from airflow_llm_provider.testing.invoice import InvoiceLine
from tests.support.books import balance

WARM_UP = "warm_up"
DOCUMENTS, QUESTIONS = 2000, 300
LIMITS = {"rpm": 600, "burst": 100}
INVALID = ({"kind": "wrong_shape"}, {"kind": "truncated_json"}, {"kind": "prose"})
TRANSIENT = ({"status": 529}, {"status": 500}, {"kind": "drop"}, {"status": 429, "retry_after": 1})


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What every side named in `few` or `all` is to do.

    all, few: the sides that do all of it, and those that do the first few.
    questions: single questions instead of documents.
    latency_s: that the stand-in takes for an answer. limits: that it enforces.
    faults: what happens, in turn, to the first request about every `every`-th document.
    again: how often it is done once more; before the last time every hundredth document is changed.
    """

    name: str
    title: str
    all: tuple[str, ...] = ("ours", "task_threads")  # one task
    few: tuple[str, ...] = ("common_ai",)
    questions: bool = False
    latency_s: float = 0.8
    limits: Mapping[str, float] | None = None
    faults: tuple[Mapping[str, Any], ...] = ()
    every: int = 0
    again: tuple[str, ...] = ()

    def count(self, side: Side, few: int) -> int:
        """Return how many documents or questions a side is asked about; 0 when it has no part in it."""
        if side.name in self.all:
            return QUESTIONS if self.questions else DOCUMENTS
        # Each fault must come once at least, at its rate.
        return max(few, self.every * len(self.faults)) if side.name in self.few else 0


MAPPED = ("common_ai", "common_ai_preloaded", "task_mapped")
WORKS = (
    Work(
        name="unlimited",
        title="2,000 documents, 0.8 s per answer",
        all=("ours", "common_ai_hook", "task_threads"),
        few=MAPPED,
    ),
    Work(
        name="small",
        title="a few documents, 0.8 s per answer",
        all=(),
        few=("ours", "common_ai_hook", "task_threads", *MAPPED),
    ),
    Work(
        name="limited",
        title="2,000 documents under 600 requests per minute",
        all=("ours", "task_threads", "task_few_threads"),
        few=(),
        limits=LIMITS,
    ),
    Work(
        name="questions",
        title="300 single questions, 5 s per answer",
        all=("ours",),
        few=MAPPED,
        questions=True,
        latency_s=5.0,
    ),
    Work(name="rerun", title="2,000 documents again", again=("unchanged", "changed"), latency_s=0.2),
    Work(name="invalid", title="5 % invalid answers", faults=INVALID, every=20),
    Work(name="transient", title="3 % transient errors", faults=TRANSIENT, every=33),
)


def main() -> None:
    """Let each side do its works, and keep what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--works", nargs="+", choices=[*(work.name for work in WORKS), "parse"])
    parser.add_argument("--sides", nargs="+", choices=[side.name for side in SIDES])
    parser.add_argument("--few", type=int, default=40, help="documents or questions of a mapped side")
    parser.add_argument("--parallelism", type=int, default=32, help="tasks at once; 32 is Airflow's default")
    options = parser.parse_args()
    sides = [side for side in SIDES if options.sides is None or side.name in options.sides]
    works = [work for work in WORKS if options.works is None or work.name in options.works]
    rivals()  # what can't be installed shows before anything is measured
    about = {
        "name": "rivals",
        "titles": {"parse": "parsing the DAG file", **{work.name: work.title for work in WORKS}},
        "sides": {side.name: side.title for side in SIDES},
        "few": options.few,
        "parallelism": options.parallelism,
        "versions": _versions(),
        "machine": machine(Path(tempfile.gettempdir())),
    }
    told: dict[str, Any] = {}
    for side in sides:
        figures: dict[str, Any] = {}
        idle = {}
        if any(work.count(side, options.few) for work in works):
            idle[side.name] = _do(side, works, figures, options)
        if not (side.preload or (options.works and "parse" not in options.works)):
            figures["parse"] = _parse_s(side)
        works_of_side = {name: {side.name: one} for name, one in figures.items()}
        told = keep(
            {**about, "works": works_of_side, "idle_cpu_per_s": idle},
            is_part=bool(options.works or options.sides),
        )
    print(json.dumps(told))


def _do(side: Side, works: list[Work], figures: dict[str, Any], options: argparse.Namespace) -> float:
    """Let one side do its part of every work, into `figures`; return its Airflow's CPU-s a second while idle."""
    todo = {work: count for work in works if (count := work.count(side, options.few))}
    with tempfile.TemporaryDirectory(prefix="bench-rivals-") as name, stand_in() as url:
        folder = Path(name)
        for work, count in [(WARM_UP, 2), *((w.name, n) for w, n in todo.items() if not w.questions)]:
            write_notes(folder / work, range(count))
        dags = [{"dag_id": WARM_UP, "folder": str(folder / WARM_UP)}]
        dags += [
            {"dag_id": w.name, "folder": str(folder / w.name), "questions": n * w.questions}
            for w, n in todo.items()
        ]
        with airflow_of(side, folder, url, dags, parallelism=options.parallelism) as airflow:
            run_and_measure(side, airflow, url, WARM_UP)
            idle = idle_cpu_per_s(airflow)
            for work, count in todo.items():
                _prepare(url, work, count)

                def once(kind: str, work: Work = work, count: int = count) -> dict[str, Any]:
                    told = _rounded(run_and_measure(side, airflow, url, work.name), count, work)
                    if side.is_ours:
                        _balance(folder, url)
                    print(f"{side.name} {work.name} {kind}: {told}", file=sys.stderr, flush=True)
                    return told

                told = once("")
                for kind in work.again:
                    if kind == "changed":
                        for path in sorted((folder / work.name).iterdir())[::100]:
                            path.write_text(path.read_text() + "PS: two boxes were damaged.\n")
                    told[kind] = once(kind)
                figures[work.name] = told
    return round(idle, 3)


def _prepare(url: str, work: Work, count: int) -> None:
    """Have the stand-in behave as the work wants it."""
    order(url, "heal")
    order(url, "settings", {"latency_s": work.latency_s, "limits": work.limits or {}})
    hit = range(work.every // 2, count, work.every) if work.every else ()
    for turn, number in enumerate(hit):
        fault = work.faults[turn % len(work.faults)]
        order(url, "fail", {"matching": first_line(work.name, number), "times": 1, **fault})


def _rounded(told: Mapping[str, Any], count: int, work: Work) -> dict[str, Any]:
    asked = told["requests"] - LIMITS["burst"]
    return {
        "documents": count,
        "documents_per_cpu_s": round(told["answered"] / told["cpu_s"], 4),
        "documents_per_s": round(told["answered"] / told["seconds"], 3),
        "cpu_s_a_document": round(told["cpu_s"] / count, 5),
        "limit_used": round(asked / told["asking_s"] / LIMITS["rpm"] * 60, 4) if work.limits else None,
        **{name: round(value, 6 if name == "invoice_usd" else 2) for name, value in told.items()},
    }


def _balance(folder: Path, url: str) -> None:
    """Hold our ledger against the invoice."""
    lines = [InvoiceLine(**line) for line in ask(url, "invoice", lines=1)["lines"]]
    balance(f"sqlite:///{folder}/home/llm_ledger.db", lines)


def _parse_s(side: Side, times: int = 7) -> dict[str, float]:
    """Return the median CPU seconds, modules and memory that parsing the side's DAG file adds to Airflow's SDK."""
    script = """
import json, resource, runpy, sys, time
import airflow.sdk, pydantic
pages = lambda: int(open("/proc/self/statm").read().split()[1])
modules, memory = len(sys.modules), pages()
began = time.process_time()
runpy.run_path(sys.argv[1])
took = time.process_time() - began
memory = (pages() - memory) * resource.getpagesize() / 2**20
print(json.dumps({"cpu_s": took, "modules": len(sys.modules) - modules, "mb": memory}))
"""
    with tempfile.TemporaryDirectory(prefix="bench-parse-") as folder:
        write_notes(Path(folder, "documents"), range(1))
        work = {"dag_id": "parse", "folder": f"{folder}/documents"}
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{HERE / 'dags'}:{HERE.parent}",
            "AIRFLOW_HOME": f"{folder}/home",
            "BENCHMARK_WORKS": json.dumps([work]),
            "BENCHMARK_IN_FLIGHT": str(side.in_flight),
        }
        file = str(HERE / "dags" / f"{side.dag}.py")
        command = [side.python, "-c", script, file]
        told = []
        for _ in range(times + 1):  # the first compiles
            said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            told.append(json.loads(said.splitlines()[-1]))
    return {name: round(sorted(each[name] for each in told[1:])[times // 2], 3) for name in told[0]}


def _versions() -> dict[str, str]:
    script = (
        "import importlib.metadata as m, json, sys;print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    )
    theirs = ["apache-airflow-providers-common-ai", "pydantic-ai-slim"]
    both = {
        sys.executable: ["apache-airflow-core", "anthropic", "airflow-provider-llm"],
        str(rivals()): theirs,
    }
    told: dict[str, str] = {}
    for python, names in both.items():
        told |= json.loads(subprocess.check_output([python, "-c", script, *names], text=True))
    return told


if __name__ == "__main__":
    main()
