"""A call in a worker and a call that lives in the triggerer come to the same: in XComs, rows and money."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from airflow_llm_provider.ledger.schema import call
from airflow_llm_provider.testing.processes import kill_sessions, wait_until
from airflow_llm_provider.testing.question import Question
from airflow_llm_provider.testing.standin import StandIn
from tests.support.airflow import AirflowUnderTest
from tests.support.books import balance

pytestmark = pytest.mark.system

SHAPES = ("plain", "literal", "xcom", "templated")
FATES = ("ok", "invalid", "busy", "refusal", "truncation")
WAYS = ("w", "d")
LEASE_S = 6.0

# How each fate ends, either way: state, what the log says, and the rows of the ledger.
ENDS: dict[str, tuple[str, str | None, list[tuple[str, str, str | None]]]] = {
    "ok": ("success", None, [("settled", "answer", None)]),
    "invalid": ("success", None, [("settled", "answer", "InvalidOutput"), ("settled", "repair", None)]),
    "busy": ("success", None, [("failed", "answer", "RateLimited"), ("settled", "answer", None)]),
    "refusal": ("failed", "Refused: The model refused to answer", [("settled", "answer", "Refused")]),
    "truncation": ("failed", "Truncated: ", [("settled", "answer", "Truncated")]),
}
# Where the two ways differ: an answer that a trigger brings ends its task there, so no worker has a name.
RAN_IN_WORKER = {
    ("w", "success"): True,
    ("w", "failed"): True,
    ("d", "success"): False,
    ("d", "failed"): True,
}
SAME = (
    *("state", "purpose", "error_class", "model", "stop_reason", "try_number", "uncached_tokens"),
    *("output_tokens", "cache_read_tokens", "cache_write_5m_tokens", "cost_micro_usd", "ceiling_micro_usd"),
    *("connection_id", "dag_id", "run_id", "map_index", "owner", "tags", "trace_id"),
)
# A worker's start in a quarter of the time: what a task imports is there when it is forked.
PRELOAD = """
import sys
if "scheduler" in sys.argv:
    import anthropic, aiohttp, httpx2, airflow_llm_provider.hooks.question, airflow_llm_provider.ledger.ledger
"""


@dataclass(frozen=True)
class Stage:
    """A real Airflow, and the stand-in it asks; `is_slow`: what repairs must wait for."""

    airflow: AirflowUnderTest
    server: StandIn
    is_slow: list[bool]

    @property
    def ledger_url(self) -> str:
        return f"sqlite:///{self.airflow.home}/llm_ledger.db"

    def rows(self, run_id: str) -> list[dict[str, Any]]:
        engine = sa.create_engine(self.ledger_url, poolclass=sa.NullPool)
        try:
            with engine.connect() as connection:
                query = sa.select(call).where(call.c.run_id == run_id).order_by(call.c.opened_ms)
                return [dict(row) for row in connection.execute(query).mappings()]
        finally:
            engine.dispose()

    def instances(self, dag_id: str, run_id: str) -> dict[tuple[str, int], dict[str, Any]]:
        return {
            (ti["task_id"], ti["map_index"]): ti
            for ti in self.airflow.task_instances(dag_id, run_id)
            if not ti["task_id"].startswith("prompts_")
        }

    def xcom(self, run_id: str, dag_id: str, task_id: str, map_index: int, key: str) -> Any:
        try:
            return self.airflow.xcom(dag_id, run_id, task_id, key, map_index)
        except LookupError:
            return None


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("deferral")
    (folder / "dags").mkdir()
    shutil.copy(Path(__file__).with_name("deferral_dag.py"), folder / "dags" / "deferral.py")
    (folder / "home" / "config").mkdir(parents=True)
    (folder / "home" / "config" / "airflow_local_settings.py").write_text(PRELOAD)
    with StandIn(validate=True) as server:
        stage = Stage(
            airflow=AirflowUnderTest(
                folder / "home",
                folder / "dags",
                parallelism=6,
                connections={
                    "claude_default": {"conn_type": "claude", "password": "sk-deferral", "host": server.url}
                },
                config={
                    "AIRFLOW__LLM__LEASE_S": str(LEASE_S),
                    # So soon another triggerer takes over what a killed one had.
                    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "5",
                    "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
                },
            ),
            server=server,
            is_slow=[False],
        )
        script(stage)
        with stage.airflow:
            yield stage


def script(stage: Stage) -> None:
    """Give every fate to the prompts that name it."""

    def is_repair(question: Question) -> bool:
        return "was not valid" in question.text

    def needs_repair(question: Question) -> bool:
        asked = question.text
        return (" invalid]" in asked or " killed]" in asked) and not is_repair(question)

    server = stage.server
    server.fail(kind="wrong_shape", matching=needs_repair)
    server.fail(kind="refusal", matching=" refusal]")
    server.fail(kind="max_tokens", matching=" truncation]")
    for way in WAYS:
        for shape in SHAPES:
            server.fail(429, retry_after=1.0, matching=f"[{way} {shape} busy]", times=1)
        server.fail(429, retry_after=6.0, matching=f"[{way} later]", times=1)
    server.fail(
        kind="slow",
        duration_s=30.0,
        matching=lambda q: stage.is_slow[0] and (is_repair(q) or "time" in q.text),
    )


def place(shape: str, fate: str, way: str) -> tuple[str, int]:
    """Return task id and map index of a case."""
    if shape in ("literal", "xcom"):
        return f"{shape}_{way}", FATES.index(fate) if fate in FATES else 0
    return (f"{shape}_{fate}_{way}" if fate in FATES else f"{shape}_{way}"), -1


def test_a_worker_and_a_trigger_come_to_the_same(stage: Stage) -> None:
    airflow = stage.airflow
    run = airflow.trigger("deferral")
    airflow.wait("deferral", run, timeout_s=120)
    instances, rows = stage.instances("deferral", run), stage.rows(run)
    wrong: list[str] = []
    for shape in SHAPES:
        for fate in FATES:
            state, cause, ledger = ENDS[fate]
            came: dict[str, Any] = {}
            for way in WAYS:
                task_id, map_index = at = place(shape, fate, way)
                ti, case = instances[at], f"{shape} {fate} {way}"
                mine = [row for row in rows if (row["task_id"], row["map_index"]) == at]
                usage = stage.xcom(run, "deferral", *at, "llm_usage")
                came[way] = {
                    "return_value": stage.xcom(run, "deferral", *at, "return_value"),
                    "llm_checks": stage.xcom(run, "deferral", *at, "llm_checks"),
                    "llm_usage": usage and {k: v for k, v in usage.items() if k != "latency_s"},
                    "rows": [{name: row[name] for name in SAME} for row in mine],
                }
                seen = {
                    "state": ti["state"],
                    "try": ti["try_number"],
                    "rows": [(row["state"], row["purpose"], row["error_class"]) for row in mine],
                    "in a worker": bool(ti["hostname"]),
                    "answer": came[way]["return_value"],
                }
                expected = {
                    "state": state,
                    "try": 1,  # what no retry can mend is not retried
                    "rows": ledger,
                    "in a worker": RAN_IN_WORKER[way, state],
                    "answer": {"date": "March 4, 2026"} if state == "success" else None,
                }
                if seen != expected:
                    wrong.append(f"{case}: {seen}, not {expected}")
                if cause and cause not in (log := airflow.log("deferral", run, task_id, 1, map_index)):
                    wrong.append(f"{case}: no {cause!r} in\n{log}")
            if came["w"] != came["d"]:
                wrong.append(f"{shape} {fate}: worker {came['w']}\n  triggerer {came['d']}")
    assert not wrong, "\n".join(wrong)
    books = balance(stage.ledger_url, stage.server.invoice)
    assert (books.unproven, books.lost) == (0, 0)


def test_what_was_settled_is_not_bought_again_when_either_process_is_killed(stage: Stage) -> None:
    airflow, server = stage.airflow, stage.server
    stage.is_slow[0] = True
    seen = server.seen
    run = airflow.trigger("killed")
    # Eight first answers are settled, eight repairs are in flight: one for each shape, both ways.
    assert wait_until(lambda: server.seen - seen == 16 and server.in_flight == 8, 60), server.summary()
    assert {row["state"] for row in stage.rows(run) if row["purpose"] == "answer"} == {"settled"}
    stage.is_slow[0] = False
    kill_sessions([airflow.pids()["triggerer"]])
    for process in airflow.task_pids():
        os.kill(process.runner, signal.SIGKILL)
    airflow.kill("triggerer")
    airflow.restart("triggerer")
    assert airflow.wait("killed", run, timeout_s=90) == "success"

    rows = stage.rows(run)
    came = {way: {} for way in WAYS}
    for shape in SHAPES:
        for way in WAYS:
            at = place(shape, "killed", way)
            mine = [row for row in rows if (row["task_id"], row["map_index"]) == at]
            usage = stage.xcom(run, "killed", *at, "llm_usage")
            came[way][shape] = {
                "answer": stage.xcom(run, "killed", *at, "return_value"),
                "usage": {k: v for k, v in usage.items() if k != "latency_s"},
                "rows": [(r["state"], r["purpose"], r["output_tokens"], r["cost_micro_usd"]) for r in mine],
            }
            # The first answer once; the repair twice at most, since it was in flight.
            assert [(row["state"], row["purpose"]) for row in mine] == [
                ("settled", "answer"),
                ("unproven", "repair"),
                ("settled", "repair"),
            ]
            assert came[way][shape]["answer"] == {"date": "March 4, 2026"}
    assert came["w"] == came["d"]
    # Where the two ways differ: a killed worker costs a try, a killed triggerer none.
    tries = {at[0][-1]: ti["try_number"] for at, ti in stage.instances("killed", run).items()}
    assert tries == {"w": 2, "d": 1}
    assert wait_until(lambda: server.in_flight == 0, 40)
    books = balance(stage.ledger_url, server.invoice)
    assert (books.unproven, books.lost) == (8, 8)


def test_a_deferred_task_that_is_cleared_or_marked_failed_drops_its_call(stage: Stage) -> None:
    airflow, server = stage.airflow, stage.server
    stage.is_slow[0] = True
    run = airflow.trigger("stopped")
    assert wait_until(lambda: server.in_flight == 2, 30)
    stage.is_slow[0] = False
    airflow.mark("stopped", run, "failed", "failed")
    airflow.clear("stopped", run, ["cleared"])
    # Dropped long before the slow reply is through, which may still be charged.
    assert wait_until(lambda: len([r for r in stage.rows(run) if r["state"] == "unproven"]) == 2, 15)
    assert airflow.wait("stopped", run, timeout_s=60) == "failed"
    rows = {
        task_id: [r for r in stage.rows(run) if r["task_id"] == task_id] for task_id in ("cleared", "failed")
    }
    assert [(r["state"], r["error"]) for r in rows["failed"]] == [("unproven", "CancelledError in flight.")]
    assert [(r["state"], r["error"]) for r in rows["cleared"]] == [
        ("unproven", "CancelledError in flight."),
        ("settled", None),
    ]
    assert {t: ti["state"] for (t, _), ti in stage.instances("stopped", run).items()} == {
        "cleared": "success",
        "failed": "failed",
    }
    assert wait_until(lambda: server.in_flight == 0, 40)
    balance(stage.ledger_url, server.invoice)


def test_the_next_try_comes_when_the_api_asked_for_it(stage: Stage) -> None:
    airflow = stage.airflow
    run = airflow.trigger("limited")
    assert airflow.wait("limited", run, timeout_s=90) == "success"  # retry_delay alone is five minutes
    for way in WAYS:
        failed, settled = [row for row in stage.rows(run) if row["task_id"] == f"busy_{way}"]
        assert (failed["state"], failed["try_number"], settled["try_number"]) == ("failed", 1, 2)
        assert 6.0 <= (settled["opened_ms"] - failed["closed_ms"]) / 1000 < 25
        assert "RateLimited" in airflow.log("limited", run, f"busy_{way}", 1)
    balance(stage.ledger_url, stage.server.invoice)


def test_what_is_broken_fails_in_a_worker_with_its_real_cause(stage: Stage) -> None:
    run = stage.airflow.trigger("broken")
    assert stage.airflow.wait("broken", run, timeout_s=60) == "failed"
    for task_id, cause in (
        ("no_connection", "The conn_id `nowhere` isn't defined"),
        ("no_name", "'nobody' is undefined"),
    ):
        log = stage.airflow.log("broken", run, task_id)
        assert cause in log
        assert "TaskDeferralError" not in log
    assert stage.rows(run) == []
