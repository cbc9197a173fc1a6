"""What a task says of its costs, and what reports make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException
from typer.testing import CliRunner

from airflow_llm_provider.cli import app
from airflow_llm_provider.hooks.retention import prune_ledger, retention_ms
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.maintenance import prune
from airflow_llm_provider.ledger.schema import saving
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.options import Budget
from airflow_llm_provider.pricing import usd


def costs(deployment: Any, by: str) -> dict[Any, dict[str, Any]]:
    arguments = ["costs", "--by", by, "--json", "--ledger-url", deployment.ledger_url]
    report = json.loads(CliRunner().invoke(app, arguments).stdout)
    return {one[next(iter(one)) if by != "run" else "run_id"]: one for one in report["rows"]}


def savings(deployment: Any) -> list[Any]:
    engine = sa.create_engine(deployment.ledger_url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return list(connection.execute(sa.select(saving.c.task_id, saving.c.reused).order_by(saving.c.id)))


def test_the_log_ends_with_what_it_cost_and_what_is_left(deployment: Any) -> None:
    ran = deployment.ask(deployment.texts(3), budget=Budget(task_usd=1, run_usd=2))
    paid = deployment.server.invoice.cost_micro_usd
    usd = f"0.{paid:06}"
    left = f"0.{1_000_000 - paid:06} of the task's budget left; $1.{1_000_000 - paid:06} of the run's budget left"
    assert f"It cost ${usd} in 3 calls; the run has cost ${usd} so far; ${left}." in ran.log
    again = deployment.ask(deployment.texts(3))
    assert "It cost $0.000000 in 0 calls; the run has cost $0.000000 so far." in again.log


def test_what_was_paid_and_what_may_have_been_billed_stand_apart_everywhere(deployment: Any) -> None:
    deployment.server.fail(kind="drop", matching="Letter 1:", times=1)
    ran = deployment.ask(deployment.texts(3))
    paid = usd(deployment.server.invoice.cost_micro_usd - lost_micro_usd(deployment))
    [most] = {call["ceiling_micro_usd"] for call in deployment.calls if call["state"] == "unproven"}
    assert (ran.manifest["cost_usd"], ran.manifest["unproven_usd_at_most"]) == (paid, usd(most))
    assert (
        f"It cost ${paid} in 3 calls; 1 more may have been billed without a reply, at most ${usd(most)}"
        in ran.log
    )
    assert f"the run has cost ${paid} paid and at most ${usd(most)} unproven so far" in ran.log
    report = costs(deployment, "dag")["nightly"]
    assert (report["cost_usd"], report["unproven_usd_at_most"]) == (paid, usd(most))


def test_a_ledger_from_a_backup_says_since_when_answers_are_missing(deployment: Any, tmp_path: Path) -> None:
    deployment.ask(deployment.texts(2))
    file, backup = Path(sa.make_url(deployment.ledger_url).database), tmp_path / "backup.db"
    arguments = ["ledger", "backup", str(backup), "--ledger-url", deployment.ledger_url]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    later = deployment.ask(deployment.texts(5))
    assert later.outcomes == {"answered": 3, "reused": 2}
    assert "this ledger lacks it" not in later.log
    for suffix in ("", "-wal", "-shm"):
        Path(f"{file}{suffix}").unlink(missing_ok=True)
    backup.rename(file)
    after = deployment.ask(deployment.texts(5))
    assert after.outcomes == {"answered": 3, "reused": 2}
    assert "and this ledger lacks it. Its newest call before that is of 20" in after.log
    assert "this ledger lacks it" not in deployment.ask(deployment.texts(5)).log
    deployment.server.invoice._lines.clear()  # what is no longer in the books can't balance
    # What was pruned is not missing.
    prune_ledger_before_now(deployment)
    assert "this ledger lacks it" not in deployment.ask(deployment.texts(5)).log


def prune_ledger_before_now(deployment: Any) -> None:
    database = Database(deployment.ledger_url)
    with database.read() as connection:
        now_ms = database.now_ms(connection)
    assert prune(database, rows_before_ms=now_ms + 1_000).rows == 5
    database.close()


def lost_micro_usd(deployment: Any) -> int:
    """Return what the server has charged for calls whose reply was lost."""
    paid = sum(call["cost_micro_usd"] for call in deployment.calls if call["state"] == "settled")
    return int(deployment.server.invoice.cost_micro_usd - paid)


def test_a_single_question_says_so_too(deployment: Any) -> None:
    for calls in (1, 0):
        with DAG("asked", schedule=None) as dag:
            ClaudeOperator(task_id="ask", prompt="How are you?", model="fast", reuse="always")
        ran = deployment.run(dag)
        assert ran.state == "success"
        assert f"in {calls} call" in ran.log
        assert "the run has cost" in ran.log
    assert savings(deployment) == [("ask", 1)]


def test_what_the_ledger_saved_is_in_every_report(deployment: Any) -> None:
    first = deployment.ask(deployment.texts(4), tags=("money",), task_tags=["docs"], version="7")
    second = deployment.ask(deployment.texts(5), tags=("money",), task_tags=["docs"], version="7")
    assert savings(deployment) == [("read", 4)]
    saved = second.manifest["saved_usd"]
    assert float(saved) > 0
    for by, key in (
        ("dag", "nightly"),
        ("tag", "money"),
        ("tag", "docs"),
        ("version", "7"),
        ("run", second.run_id),
    ):
        row = costs(deployment, by)[key]
        assert (row["reused"], row["saved_by_ledger_usd"]) == (4, saved), by
    assert costs(deployment, "run")[first.run_id]["reused"] == 0
    assert costs(deployment, "version")["7"]["calls"] == 5


def test_a_cascade_says_what_it_saved(deployment: Any) -> None:
    deployment.ask(deployment.texts(3), model=None, route=["fast", "strong"])
    (row,) = costs(deployment, "task").values()
    assert float(row["saved_by_routing_usd"]) > 0
    assert row["reused"] == 0


def test_retention_comes_from_the_configuration(deployment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert retention_ms() == (None, None)
    deployment.ask(deployment.texts(2))
    assert prune_ledger() == {"rows": 0, "payloads": 0, "documents": 0, "kept": 0}
    engine = sa.create_engine(deployment.ledger_url, poolclass=sa.NullPool)
    with engine.begin() as connection:  # as if it had been long ago
        connection.exec_driver_sql("UPDATE payload SET call_id = '000' || substr(call_id, 4)")
        connection.exec_driver_sql(
            "UPDATE call SET id = '000' || substr(id, 4), closed_ms = 1, opened_ms = 1"
        )
    monkeypatch.setenv("AIRFLOW__LLM__PAYLOAD_RETENTION_DAYS", "30")
    assert retention_ms() == (None, 30 * 86_400_000)
    assert prune_ledger()["payloads"] == 2
    arguments = ["ledger", "prune", "--json", "--ledger-url", deployment.ledger_url]
    monkeypatch.setenv("AIRFLOW__LLM__RETENTION_DAYS", "0")
    with pytest.raises(AirflowFailException, match="retention_days is '0'"):
        retention_ms()
    assert CliRunner().invoke(app, arguments).exit_code == 1
    deployment.server.invoice._lines.clear()  # what is no longer in the books can't balance
    monkeypatch.setenv("AIRFLOW__LLM__RETENTION_DAYS", "365")
    told = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert told["calls"] == 2
    monkeypatch.delenv("AIRFLOW__LLM__RETENTION_DAYS")
    monkeypatch.delenv("AIRFLOW__LLM__PAYLOAD_RETENTION_DAYS")
    nothing = CliRunner().invoke(app, arguments)
    assert nothing.exit_code == 1
    assert "Everything is kept" in nothing.stderr


def test_the_bare_command_shows_the_configured_ledger(
    deployment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.ask(deployment.texts(2))
    monkeypatch.setenv("AIRFLOW__LLM__LEDGER_URL", deployment.ledger_url)
    shown = CliRunner().invoke(app, ["ledger"])
    assert shown.exit_code == 0
    assert f"paid ${usd(deployment.server.invoice.cost_micro_usd)}" in shown.stdout


def test_what_a_call_in_the_triggerer_saved_is_noted_too(deployment: Any) -> None:
    for _ in range(2):
        with DAG("deferred", schedule=None) as dag:
            ClaudeOperator(
                task_id="ask", prompt="How are you?", model="fast", reuse="always", deferrable=True
            )
        assert deployment.run(dag).state == "success"
    assert deployment.server.invoice.paid == 1
    assert savings(deployment) == [("ask", 1)]
