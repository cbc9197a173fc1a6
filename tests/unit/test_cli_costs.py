"""The commands on costs and the ledger's housekeeping, as far as they need no Airflow."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from test_maintenance import DAY, aged, left, said
from test_reports import MODELS, NOON, put, row
from typer.testing import CliRunner, Result

from airflow_llm_provider.cli import app
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.schema import budget, payload, schema_version
from airflow_llm_provider.pricing import Usage, rate_card, usd


@pytest.fixture
def database(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setattr(
        time, "sleep", lambda _: None
    )  # the pauses of pruning are for others who write: nobody does
    database = Database(ledger_url)
    database.migrate()
    put(
        database,
        row(item_id="=cmd|' /C calc'!A0", uncached_tokens=2_000_000, tags='["red"]'),
        row(dag_id="weekly", item_id="b.txt", cache_read_tokens=1_000_000, opened_ms=NOON + DAY),
        row(dag_id="weekly", model=MODELS[2], uncached_tokens=5),
        row(dag_id="weekly", state="unproven"),
    )
    yield database
    database.close()


def paid_usd() -> str:
    card = rate_card(MODELS[0])
    assert card is not None
    usages = Usage(uncached_tokens=2_000_000), Usage(cache_read_tokens=1_000_000)
    return str(usd(sum(card.price_micro_usd(usage) for usage in usages)))


def run(database: Database, *arguments: str, columns: int = 200) -> Result:
    url = database.url.render_as_string()
    return CliRunner().invoke(app, [*arguments, "--ledger-url", url], env={"COLUMNS": str(columns)})


def told(database: Database, *arguments: str) -> Any:
    result = run(database, *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_narrow_terminal_cuts_no_amount(database: Database) -> None:
    assert paid_usd() in run(database, "costs", "--by", "task", columns=70).stdout


def test_costs_are_a_table_with_a_total_and_its_caveats(database: Database) -> None:
    result = run(database, "costs")
    assert result.exit_code == 0
    for text in (
        "nightly",
        "weekly",
        "total",
        paid_usd(),
        "not included in any amount: 1",
        "at most $0.000900",
    ):
        assert text in result.stdout


@pytest.mark.parametrize(
    "by", ["document", "task", "run", "dag", "owner", "tag", "model", "version", "day", "purpose"]
)
def test_costs_in_json_add_up(database: Database, by: str) -> None:
    report = told(database, "costs", "--by", by, "--json")
    assert sum(one["calls"] for one in report["rows"]) == report["total"]["calls"] == 3
    assert report["total"]["cost_usd"] == paid_usd()
    assert report["total"]["unpriced"] == 1
    assert report["total"]["unproven_usd_at_most"] == "0.000900"


def test_costs_in_csv_run_nothing_in_a_spreadsheet(database: Database) -> None:
    lines = list(csv.DictReader(io.StringIO(run(database, "costs", "--by", "document", "--csv").stdout)))
    assert {line["item_id"] for line in lines} == {"'=cmd|' /C calc'!A0", "b.txt", ""}
    assert sum(float(line["cost_usd"]) for line in lines) == pytest.approx(float(paid_usd()))
    assert all(not line["saved_by_caching_usd"].startswith("'") for line in lines)


def test_costs_of_some_days_and_some_dags_only(database: Database) -> None:
    for arguments, calls in (
        (("--since", "2026-01-02"), 1),
        (("--until", "2026-01-02T00:00:00"), 2),
        (("--since", "2026-01-01T13:00+01:00", "--until", "2026-01-01T12:00:01"), 2),
        (("--dag", "weekly"), 2),
        (("--dag", "weekly", "--model", MODELS[0]), 1),
        (("--run", "run-9"), 0),
    ):
        assert told(database, "costs", *arguments, "--json")["total"]["calls"] == calls, arguments


def test_many_groups_are_cut_to_the_dearest_and_the_total_stays_true(database: Database) -> None:
    put(database, *(row(item_id=f"{n}.txt", uncached_tokens=1_000) for n in range(60)))
    shown = run(database, "costs", "--by", "document", "--top", "3").stdout
    assert "… 60 more" in shown
    assert len(told(database, "costs", "--by", "document", "--json")["rows"]) == 63


def test_the_size_and_the_calls_are_shown(database: Database) -> None:
    size = told(database, "ledger", "show", "--json")
    assert size["tables"]["call"]["rows"] == 4
    assert (size["oldest"][:10], size["newest"][:10]) == ("2026-01-01", "2026-01-02")
    shown = run(database, "ledger", "show")
    assert shown.exit_code == 0
    assert "call" in shown.stdout


def test_what_was_pruned_is_in_every_total(database: Database) -> None:
    before = told(database, "costs", "--json")["total"]
    assert told(database, "ledger", "show", "--json")["pruned"]["calls"] == 0
    told(database, "ledger", "prune", "--older-than", "1d", "--json")
    after = told(database, "costs", "--json")
    assert after["total"] == after["pruned"] == before
    assert f"{before['calls']} of the paid calls were pruned since" in run(database, "costs").stdout
    shown = told(database, "ledger", "show", "--json")
    assert (shown["calls"], shown["paid_usd"]) == ({}, "0.000000")
    assert shown["pruned"] == {
        "calls": before["calls"],
        "paid_usd": before["cost_usd"],
        "unproven_usd_at_most": before["unproven_usd_at_most"],
    }
    assert f"and of {before['calls']} calls that were pruned: $" in run(database, "ledger", "show").stdout


def test_a_backup_has_the_calls_that_stand_in_the_wal_and_a_copy_of_the_file_lacks_them(
    database: Database, tmp_path: Path
) -> None:
    shown = run(database, "ledger", "show").stdout
    assert "in the -wal beside the file" in shown
    assert told(database, "ledger", "show", "--json")["wal_bytes"] > 0
    shutil.copy(database.url.database, tmp_path / "copy.db")
    assert run(database, "ledger", "backup", str(tmp_path / "backup.db")).exit_code == 0
    found = {}
    for name in ("copy", "backup"):
        with closing(sqlite3.connect(tmp_path / f"{name}.db")) as connection:
            found[name] = connection.execute("SELECT count(*) FROM call").fetchone()[0]
    assert found == {"copy": 0, "backup": 4}
    assert (tmp_path / "backup.db").stat().st_mode & 0o077 == 0
    again = run(database, "ledger", "backup", str(tmp_path / "backup.db"))
    assert (again.exit_code, "File exists" in again.output) == (1, True)


def test_a_check_that_finds_something_ends_with_status_1(database: Database) -> None:
    broken = run(database, "ledger", "check")
    assert broken.exit_code == 1
    assert "3 answered calls without their reply" in broken.stdout
    with database.write() as connection:
        connection.exec_driver_sql("DELETE FROM call")
        connection.exec_driver_sql("DELETE FROM daily")
    assert run(database, "ledger", "check", "--full").stdout == "The ledger is sound.\n"
    assert told(database, "ledger", "check", "--json") == []


def test_an_export_is_one_call_a_line(database: Database, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in run(database, "ledger", "export").stdout.splitlines()]
    assert len(lines) == 4
    assert all("reply" not in line for line in lines)
    target = tmp_path / "calls.csv"
    assert run(database, "ledger", "export", str(target), "--csv", "--dag", "nightly").exit_code == 0
    (line,) = csv.DictReader(target.read_text().splitlines())
    assert (line["item_id"], line["tags"]) == ("'=cmd|' /C calc'!A0", "red")
    assert run(database, "ledger", "export", "--csv", "--with-payload").exit_code == 1
    assert run(database, "ledger", "export", str(tmp_path / "no" / "where.csv")).stderr.startswith("Error: ")


def test_pruning_says_first_what_it_would_remove(database: Database) -> None:
    old = [aged(database, 100, n, run_id="old") for n in range(3)]
    put(database, *old)
    put(database, *said(*old), table=payload)
    before = left(database)
    would = told(database, "ledger", "prune", "--older-than", "90d", "--dry-run", "--json")
    assert left(database) == before
    did = told(database, "ledger", "prune", "--older-than", "90d", "--json")
    assert (would["calls"], would["payloads"]) == (did["calls"], did["payloads"])
    assert {one["id"] for one in old}.isdisjoint(left(database))
    assert (
        "0 calls and 0 prompts and replies were removed"
        in run(database, "ledger", "prune", "--older-than", "90d").stdout
    )


def test_pruning_what_was_said_keeps_the_calls(database: Database) -> None:
    one = aged(database, 2, run_id="old")
    put(database, one)
    put(database, *said(one), table=payload)
    did = told(database, "ledger", "prune", "--older-than", "36h", "--payload-only", "--json")
    assert did["payloads"] == 1
    assert did["calls"] == 0
    assert one["id"] in left(database)


def test_what_is_no_age_and_no_date_is_one_line(database: Database) -> None:
    for arguments in (
        ("ledger", "prune", "--older-than", "0d"),
        ("ledger", "prune", "--older-than", "ninety"),
        ("costs", "--since", "yesterday"),
    ):
        result = run(database, *arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output


def test_a_ledger_of_an_older_version_is_left_as_it_is(database: Database) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE ledger_schema_version SET version = 0")
    for command in (
        ("costs",),
        ("effects", "list"),
        ("budgets", "list"),
        ("budgets", "remove", "cap"),
        ("budgets", "set", "cap", "--usd", "5", "--scope", "run"),
    ):
        result = run(database, *command)
        assert result.exit_code == 1, command
        assert "older version" in result.stderr, command
    assert left(database, schema_version.c.version) == {0}


def test_a_ledger_of_a_newer_version_is_left_as_it_is(database: Database) -> None:
    put(database, {"version": 99}, table=schema_version)
    for command in (("costs",), ("budgets", "set", "cap", "--usd", "5", "--scope", "run")):
        result = run(database, *command)
        assert result.exit_code == 1, command
        assert "newer version" in result.stderr, command
    assert left(database, budget.c.name) == set()
