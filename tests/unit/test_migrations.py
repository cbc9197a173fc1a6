"""The schema's versions: what an upgrade keeps and refuses; tests/integration holds PostgreSQL to it, too."""

import asyncio
import dataclasses
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from test_ledger_claims import KEY, NIGHTLY, bought, entry, failure

from airflow_llm_provider.errors import LedgerUnusable
from airflow_llm_provider.ledger import effects, rate_limits, reviews
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.maintenance import prune
from airflow_llm_provider.ledger.migrations import LATEST_VERSION, LedgerTooNew, migrations, statements
from airflow_llm_provider.ledger.records import (
    InvalidAnswer,
    OpenedAttempt,
    PromptToKeep,
    Reopening,
    Saving,
    Sighting,
)
from airflow_llm_provider.ledger.schema import metadata, schema_version

DUMPS = Path(__file__).parent / "ledgers"
DIALECTS = ("postgresql", "sqlite")
VERSIONS = range(1, LATEST_VERSION + 1)
# Read whole on purpose: the budgets that somebody stored, and, once a night by the pruning, what people were asked
# and what tools did.
SMALL = {"budget", "review", "effect"}


def load(url: str, version: int) -> None:
    """Load the dumped ledger of a version."""
    where = sa.make_url(url)
    dump = (DUMPS / f"{version:04}.{where.get_backend_name()}.sql").read_text()
    if where.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(where.database or "")) as connection:
            connection.executescript(dump)
        return
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execution_options(no_parameters=True).exec_driver_sql(dump)


def described(connection: sa.Connection) -> dict[str, Any]:
    """Return all that is known of the tables: columns, types, nullability, keys and indexes."""
    inspector = sa.inspect(connection)
    where = f"{connection.dialect.name}_where"
    return {
        name: {
            "columns": {
                column["name"]: (str(column["type"]), column["nullable"], column["default"])
                for column in inspector.get_columns(name)
            },
            "key": inspector.get_pk_constraint(name)["constrained_columns"],
            "foreign keys": inspector.get_foreign_keys(name),
            "unique": inspector.get_unique_constraints(name),
            "checks": inspector.get_check_constraints(name),
            "indexes": {
                index["name"]: (
                    index["column_names"],
                    bool(index["unique"]),
                    # PostgreSQL moves its casts when a condition goes through a dump.
                    re.sub(r"::[a-z ]+(\[\])?|[()]", "", str(index["dialect_options"].get(where))),
                )
                for index in inspector.get_indexes(name)
            },
        }
        for name in inspector.get_table_names()
    }


def rows(connection: sa.Connection) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of every table, by the columns that it has."""
    found = sa.MetaData()
    found.reflect(connection)
    return {
        name: [
            dict(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key)).mappings()
        ]
        for name, table in found.tables.items()
    }


@pytest.fixture
def ledger_url(tmp_path: Path) -> str:
    """Return where no ledger is yet: the tables are what is tested here."""
    return f"sqlite:///{tmp_path / 'ledger.db'}"


@pytest.fixture
def database(ledger_url: str) -> Iterator[Database]:
    database = Database(ledger_url)
    yield database
    database.close()


def versions_in(database: Database) -> list[int]:
    with database.read() as connection:
        return list(connection.scalars(sa.select(schema_version.c.version)))


# The files.


def test_every_version_has_its_files_and_its_dumped_ledgers() -> None:
    expected = {f"{version:04}.{dialect}.sql" for version in VERSIONS for dialect in DIALECTS}
    folder = resources.files("airflow_llm_provider.ledger.migrations")
    assert {file.name for file in folder.iterdir() if file.name.endswith(".sql")} == expected
    assert {file.name for file in DUMPS.glob("*.sql")} == expected


def test_a_file_is_cut_at_the_end_of_each_statement_and_nowhere_else() -> None:
    text = "-- a comment; with more\nCREATE TABLE a (\n    b TEXT\n);\nINSERT INTO a VALUES ('x;y');\nDROP TABLE a"
    create, insert, drop = statements(text)
    assert create == "CREATE TABLE a (\n    b TEXT\n)"
    assert (insert, drop) == ("INSERT INTO a VALUES ('x;y')", "DROP TABLE a")


def test_the_tables_that_the_files_make_are_those_that_the_statements_know(database: Database) -> None:
    database.migrate()
    with database.write() as connection:
        by_files = described(connection)
        metadata.drop_all(connection)
    with database.write() as connection:
        metadata.create_all(connection)
        by_metadata = described(connection)
    assert by_files == by_metadata
    assert by_files["call"]["indexes"].keys() == {
        "call_answered",
        "call_claim",
        "call_family",
        "call_open",
        "call_run",
    }


# What an upgrade does.


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_upgraded_ledger_is_like_a_new_one_and_keeps_its_rows(ledger_url: str, version: int) -> None:
    load(ledger_url, version)
    database = Database(ledger_url)
    with database.read() as connection:
        before = rows(connection)
    assert all(before.values()), "every table has a row in the dump"
    ledger = Ledger(ledger_url)
    with database.read() as connection:
        after, upgraded = rows(connection), described(connection)
    for name in before.keys() - {schema_version.name}:
        kept = [{column: row[column] for column in before[name][0]} for row in after[name]]
        assert kept == before[name], name
    scope = dataclasses.replace(NIGHTLY, dag_id="invoices", run_id="scheduled__2026-01-01")
    assert (await ledger.find_reply_by_sighting(f"{256:064x}", scope, "run")).cost_micro_usd == 120
    await asyncio.to_thread(ledger.close)
    with database.write() as connection:
        metadata.drop_all(connection)
    database.migrate()
    with database.read() as connection:
        assert upgraded == described(connection)
    database.close()


def test_a_migration_runs_once_and_keeps_what_is_there(database: Database) -> None:
    database.migrate()
    add = "ALTER TABLE \"call\" ADD COLUMN mood TEXT DEFAULT 'calm';\nCREATE INDEX moody ON call (mood);\n"
    for _ in range(2):  # a second run would add the column again
        database.migrate([*migrations(database.dialect), add])
    with database.read() as connection:
        assert "mood" in described(connection)["call"]["columns"]
        assert "moody" in described(connection)["call"]["indexes"]
    assert versions_in(database) == [*VERSIONS, LATEST_VERSION + 1]


def test_a_migration_that_fails_leaves_nothing_half_done(database: Database) -> None:
    database.migrate()
    with pytest.raises(sa.exc.DBAPIError):
        database.migrate(
            [*migrations(database.dialect), "CREATE TABLE half (done INTEGER);\nDROP TABLE no_such;\n"]
        )
    with database.read() as connection:
        assert not sa.inspect(connection).has_table("half")
    assert versions_in(database) == [*VERSIONS]


# What is refused.


def test_a_ledger_of_a_newer_version_is_refused(database: Database, ledger_url: str) -> None:
    database.migrate()
    with database.write() as connection:
        connection.execute(schema_version.insert().values(version=99))
    with pytest.raises(LedgerTooNew, match=r"version 99.*Upgrade the package"):
        Ledger(ledger_url)


def test_a_ledger_of_an_unreleased_version_is_refused_and_left_as_it_is(
    database: Database, ledger_url: str
) -> None:
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE ledger_version (version INTEGER PRIMARY KEY)")
        connection.exec_driver_sql("INSERT INTO ledger_version VALUES (1), (2)")
        connection.exec_driver_sql('CREATE TABLE "call" (id TEXT)')
        before = described(connection)
    with pytest.raises(
        LedgerUnusable, match=r"before its first release.*ledger_url at a new file or database"
    ):
        Ledger(ledger_url)
    with database.read() as connection:
        assert described(connection) == before


# What the indexes are for.


class Heard:
    """The statements that a ledger sends, each once, with the parameters that it first had."""

    def __init__(self, database: Database) -> None:
        self.statements: dict[str, Any] = {}
        for engine in {database._reader, database._writer}:
            sa.event.listen(engine, "before_cursor_execute", self._note)

    def _note(self, _c: object, _cu: object, statement: str, parameters: Any, _x: object, many: bool) -> None:
        if re.match(r"SELECT .*FROM|INSERT|UPDATE|DELETE", statement, re.DOTALL):
            self.statements.setdefault(statement, parameters[0] if many else parameters)


def fill(database: Database) -> None:
    """Put in many calls and documents, of times to come: of small tables a planner reads all."""
    numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
    key = "'9' || CAST(i + 1000000 AS TEXT)"
    with database.write() as connection:
        connection.exec_driver_sql(
            "INSERT INTO call (id, fingerprint, claim, state, holder, lease_until_ms, purpose, connection_id, dag_id,"
            " run_id, task_id, map_index, try_number, trace_id, model, opened_ms, closed_ms)"
            f" {numbers} SELECT {key}, {key}, {key},"
            " 'settled', 'h', 0, 'answer', 'c', 'd', 'r', 't', -1, 1, '', 'm', 1, 1 FROM n"
        )
        connection.exec_driver_sql(f"INSERT INTO payload (call_id) {numbers} SELECT {key} FROM n")
        connection.exec_driver_sql(f"INSERT INTO document {numbers} SELECT {key}, {key} FROM n")
        if database.dialect == "postgresql":
            connection.exec_driver_sql("ANALYZE")


def plan_of(connection: sa.Connection, statement: str, parameters: Any) -> Any:
    how = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN (FORMAT JSON)"
    return connection.exec_driver_sql(f"{how} {statement}", parameters).all()


def scans_of_sqlite(connection: sa.Connection, statement: str, parameters: Any) -> list[tuple[str, str]]:
    """Return what a statement reads whole: tables, and indexes where not even the start is given."""
    plan = plan_of(connection, statement, parameters)
    scans = [re.match(r"SCAN (\w+)(?: USING (?:COVERING )?INDEX (\w+))?", row.detail) for row in plan]
    return [(scan[1], scan[2] or "") for scan in scans if scan and scan[1] != "CONSTANT"]


def scans_of_postgresql(connection: sa.Connection, statement: str, parameters: Any) -> list[tuple[str, str]]:
    """Return what a statement reads whole even where PostgreSQL would rather do anything else."""
    [[plans]] = plan_of(connection, statement, parameters)
    waiting, scans = [one["Plan"] for one in plans], []
    while waiting:
        node = waiting.pop()
        waiting += node.get("Plans", [])
        # The condition of a bitmap is in the node below it; other nodes without table and index read what was read.
        is_read = node["Node Type"] != "Bitmap Heap Scan" and {"Relation Name", "Index Name"} & node.keys()
        if is_read and node["Node Type"] != "ModifyTable" and "Index Cond" not in node:
            scans.append((node.get("Relation Name", ""), node.get("Index Name", "")))
    return scans


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_an_upgraded_ledger_does_all_the_time_uses_its_indexes(
    ledger_url: str, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)  # pruning pauses for other writers: there are none
    """The renewal of leases once read the whole table: in ledgers that an early version had made."""
    load(ledger_url, version)
    ledger = Ledger(ledger_url, payload="full")
    fill(ledger.database)
    heard = Heard(ledger.database)
    scope = dataclasses.replace(NIGHTLY, run_budget_micro_usd=5_000_000)

    paid = await bought(ledger, scope=scope)
    await ledger.open(entry(scope=scope))
    failed = await ledger.open(entry("f" * 64, scope=scope))
    await ledger.record(failure(failed, fingerprint="f" * 64))
    for reuse in ("always", "run", "never"):
        await ledger.find_reply(KEY, scope, reuse)
    await ledger.record(Sighting("a" * 64, KEY))
    await ledger.find_reply_by_sighting("a" * 64, scope, "run")
    await ledger.record(PromptToKeep(paid.attempt_id, KEY, lambda: b"the prompt"))
    await ledger.record(InvalidAnswer(paid.attempt_id, "InvalidOutput", "The total is not a number."))
    await ledger.record(Reopening(KEY, dataclasses.replace(scope, run_id="another")))
    await ledger.record(Saving(scope=scope, model="claude-haiku-5-5", reused=1))
    await asyncio.to_thread(ledger._beat)
    assert isinstance(await ledger.open(entry("e" * 64, scope=scope)), OpenedAttempt)

    bucket = rate_limits.Bucket(connection_id="c", model="m", stated=rate_limits.Limits())
    request = rate_limits.PermitRequest(bucket=bucket, holder="h", dag_id="d", costs=[(1.0, 10.0, 10.0)])
    await ledger.write(partial(rate_limits.take_permits, request=request))
    await ledger.write(partial(rate_limits.correct, bucket=bucket, correction=(0.0, 5.0, 5.0)))
    await ledger.write(partial(rate_limits.pause, bucket=bucket, quiet_s=0.1))
    cut = rate_limits.Cut(share=0.5, sent_rpm=60.0, accepted=0.5, sent_ago_s=0.0)
    await ledger.write(partial(rate_limits.slow_down, bucket=bucket, cut=cut))
    await ledger.read(partial(rate_limits.read_state, bucket=bucket))

    question = reviews.AskedQuestion(asked_hash="a" * 64, shown=b'"form"', content=b'"letter"', why="")
    await ledger.write(lambda connection, _: reviews.store_question(connection, scope, "", question))
    await ledger.write(partial(reviews.store_shown, scope=scope, key=""))
    intent = effects.Intent(
        scope=scope,
        item_id=None,
        call_id=paid.attempt_id,
        tool_use_id="toolu_1",
        tool="look_up",
        is_irreversible=False,
        arguments=b"{}",
    )
    await ledger.write(partial(effects.begin, intent=intent, lease_ms=10_000))
    await ledger.write(partial(effects.renew, intent=intent, lease_ms=10_000))
    await ledger.write(
        partial(effects.end, effect_id=intent.id, outcome=effects.Outcome(content="It is.", is_error=False))
    )

    before: list[int] = []
    for run in ("1" * 64, "2" * 64):
        await bought(ledger, run, scope=dataclasses.replace(scope, run_id=run))
        await asyncio.sleep(0.002)
        before.append(await ledger.read(lambda _, now_ms: now_ms))
    pruned = await asyncio.to_thread(
        prune, ledger.database, rows_before_ms=before[0], payloads_before_ms=before[1]
    )
    assert (pruned.rows, pruned.payloads) == (1, 2)

    scans_of = scans_of_sqlite if ledger.database.dialect == "sqlite" else scans_of_postgresql
    sent = heard.statements.copy()  # explaining them is sending, too
    assert len(sent) > 40
    with ledger.database.read() as connection:
        if ledger.database.dialect == "postgresql":
            for way in ("seqscan", "hashjoin", "mergejoin"):  # is there a way that reads less than the whole?
                connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
        for statement, parameters in sent.items():
            scans = scans_of(connection, statement, parameters)
            if "payload" in statement and "fingerprint IN" in statement:  # a run may have very many calls
                assert "call_run" not in str(plan_of(connection, statement, parameters)), statement
            # A beat reads all of the index of open calls: there are as many as are in flight. The pruning, once
            # a night, may take the runs of the last months from their index rather than from the calls.
            allowed = {"call_open", "call_run"} if "SELECT DISTINCT" in statement else {"call_open"}
            assert not [one for one in scans if one[0] not in SMALL and one[1] not in allowed], statement
    await asyncio.to_thread(ledger.close)


def test_a_plan_that_reads_a_whole_table_is_seen(database: Database) -> None:
    database.migrate()
    scans_of = scans_of_sqlite if database.dialect == "sqlite" else scans_of_postgresql
    with database.write() as connection:
        connection.exec_driver_sql("DROP INDEX call_open")
        for condition in ("holder = 'me'", "state IN ('open')", "error_class = 'Overloaded'"):
            assert scans_of(connection, f"SELECT id FROM call WHERE {condition}", ()), condition
        connection.exec_driver_sql("CREATE INDEX call_state ON call (state)")
        assert scans_of(connection, "SELECT count(*) FROM call WHERE state || '' = 'open'", ()), (
            "an index, whole"
        )
