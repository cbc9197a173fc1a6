"""Housekeeping: what is old goes, what is needed stays, and the ledger is sound after."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from test_reports import put, row

from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.maintenance import CALL_COLUMNS, check, export, prune, size
from airflow_llm_provider.ledger.records import Sighting, first_id_of
from airflow_llm_provider.ledger.reports import Filter, costs
from airflow_llm_provider.ledger.schema import call, document, effect, payload, review, saving

DAY = 86_400_000


@pytest.fixture
def database(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setattr(
        time, "sleep", lambda _: None
    )  # the pauses of pruning are for others who write: nobody does
    database = Database(ledger_url)
    database.migrate()
    yield database
    database.close()


def now(database: Database) -> int:
    with database.read() as connection:
        return database.now_ms(connection)


def aged(database: Database, days: float, number: int = 0, **fields: Any) -> dict[str, Any]:
    """Return a call that was opened so many days ago, with an id of that time."""
    opened = round(time.time() * 1000) - round(days * DAY)  # without a question to the database for each
    made = {"id": f"{opened * 1000 + number:014x}{number:018x}", "opened_ms": opened, "closed_ms": opened + 1}
    return row(**{**made, **fields})


def said(*calls: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"call_id": one["id"], "reply": b"{}", "prompt": None} for one in calls]


def left(database: Database, column: sa.Column[Any] = call.c.id) -> set[Any]:
    with database.read() as connection:
        return set(connection.scalars(sa.select(column)))


def before(database: Database, days: float) -> int:
    return now(database) - round(days * DAY)


def test_old_calls_are_removed_with_their_payloads_and_new_ones_stay(database: Database) -> None:
    old = [aged(database, 100, n, run_id=f"old-{n}") for n in range(250)]
    young = aged(database, 10, run_id="young")
    put(database, *old, young)
    put(database, *said(*old, young), table=payload)
    gone = prune(database, rows_before_ms=before(database, 90))
    assert (gone.rows, gone.payloads, gone.kept) == (250, 250, 0)
    assert left(database) == {young["id"]} == left(database, payload.c.call_id)
    assert check(database) == []


def test_a_run_that_did_anything_lately_keeps_all_of_its_calls(database: Database) -> None:
    runs = ("asked", "open", "reused", "shown", "waiting", "did", "idle")
    old = {run: aged(database, 100, number, run_id=run) for number, run in enumerate(runs)}
    put(
        database,
        *old.values(),
        aged(database, 1, run_id="asked"),
        aged(database, 100, 99, run_id="open", state="open", closed_ms=None),
    )
    who = {"dag_id": "nightly", "task_id": "read", "map_index": -1}
    recent, long_ago = before(database, 1), before(database, 100)
    put(
        database,
        {
            "id": "s",
            **who,
            "run_id": "reused",
            "try_number": 1,
            "connection_id": "c",
            "owner": None,
            "tags": None,
            "model": "m",
            "at_ms": recent,
            "reused": 1,
        }
        | {"reused_micro_usd": 5, "routed_micro_usd": 0},
        table=saving,
    )
    shown = {
        **who,
        "status": "x",
        "first_try": 1,
        "asked_hash": "",
        "shown": b"",
        "shown_hash": "",
        "content": b"",
        "content_hash": "",
    }
    put(
        database,
        {"id": "1", **shown, "run_id": "shown", "shown_ms": long_ago, "decided_ms": recent},
        {"id": "2", **shown, "run_id": "waiting", "shown_ms": long_ago, "decided_ms": None},
        table=review,
    )
    done = {"try_number": 1, "tool": "t", "is_irreversible": True, "state": "done", "input": b""}
    done |= {"holder": "h", "lease_until_ms": 0}
    put(database, {"id": "1", **who, **done, "run_id": "did", "began_ms": recent}, table=effect)
    gone = prune(database, rows_before_ms=before(database, 90))
    assert (gone.rows, gone.kept) == (1, 6)
    assert old["idle"]["id"] not in left(database)


def test_an_open_attempt_stays_whatever_its_age(database: Database) -> None:
    held = aged(database, 400, state="open", closed_ms=None)
    put(database, held)
    put(database, {"call_id": held["id"], "prompt": b"x", "reply": None}, table=payload)
    both = prune(database, rows_before_ms=before(database, 1), payloads_before_ms=before(database, 0.5))
    assert (both.rows, both.payloads) == (0, 0)
    assert left(database) == {held["id"]}


def test_a_run_that_becomes_active_meanwhile_keeps_the_rest(database: Database) -> None:
    put(database, *(aged(database, 100, n) for n in range(2_500)))  # more than one step, whatever the machine
    woken: list[int] = []

    def wake(done: Any) -> None:
        if not woken:
            put(database, aged(database, 0, run_id="run-1"))
            woken.append(done.rows)

    gone = prune(database, rows_before_ms=before(database, 90), on_step=wake)
    assert gone.rows == woken[0] < 2_500
    assert gone.kept == 2_500 - gone.rows


def test_a_dry_run_counts_and_removes_nothing(database: Database) -> None:
    old = [aged(database, 100, n) for n in range(5)]
    put(database, *old)
    put(database, *said(*old[:3]), table=payload)
    cut = before(database, 90)
    told = prune(database, rows_before_ms=cut, dry_run=True)
    assert len(left(database)) == 5
    gone = prune(database, rows_before_ms=cut)
    assert (told.rows, told.payloads, told.kept) == (gone.rows, gone.payloads, gone.kept) == (5, 3, 0)


def test_with_two_ages_nothing_is_counted_twice(database: Database) -> None:
    gone = [aged(database, 400, n, run_id="gone") for n in range(4)]
    quiet = [aged(database, days, days, run_id="quiet") for days in (401, 41)]
    active = [aged(database, days, days, run_id="active") for days in (402, 42, 2)]
    put(database, *gone, *quiet, *active)
    put(database, *said(*gone[:3], *quiet, *active), table=payload)
    ages = {"rows_before_ms": before(database, 365), "payloads_before_ms": before(database, 30)}
    told = prune(database, **ages, dry_run=True)
    did = prune(database, **ages)
    # What was said goes with the rows, and without them in the run that was quiet for a month, but not for a year.
    assert (told.rows, told.payloads, told.kept) == (did.rows, did.payloads, did.kept) == (4, 3 + 2, 1 + 2)
    assert left(database, payload.c.call_id) == {one["id"] for one in active}


def test_payloads_can_be_removed_while_the_calls_stay(database: Database) -> None:
    states = ("settled", "late", "failed", "reopened")
    old = [aged(database, 40, n, state=state, uncached_tokens=100) for n, state in enumerate(states)]
    put(database, *old)
    put(database, *said(*old), table=payload)
    paid = costs(database, "dag").total
    gone = prune(database, payloads_before_ms=before(database, 30))
    assert (gone.rows, gone.payloads) == (0, 4)
    assert costs(database, "dag").total == paid
    with database.read() as connection:
        found = sorted(connection.scalars(sa.select(call.c.state)))
    assert found == ["failed", "reopened", "reopened", "reopened"]
    assert check(database) == []


def test_calls_and_payloads_may_have_different_ages(database: Database) -> None:
    old, older = aged(database, 40, run_id="a"), aged(database, 400, run_id="b")
    put(database, old, older)
    put(database, *said(old, older), table=payload)
    gone = prune(database, rows_before_ms=before(database, 365), payloads_before_ms=before(database, 30))
    assert (gone.rows, gone.payloads) == (1, 2)
    assert left(database) == {old["id"]}


async def test_notes_on_documents_are_removed_with_their_replies(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    database = ledger.database
    kept, old = aged(database, 1, run_id="young"), aged(database, 100, 1, run_id="old")
    waiting = aged(database, 100, 2, run_id="open", state="open", closed_ms=None)
    put(database, kept, old, waiting)
    for name, one in (("kept", kept), ("old", old), ("waiting", waiting)):
        await ledger.record(Sighting(name, one["fingerprint"]))
    gone = await asyncio.to_thread(lambda: prune(database, rows_before_ms=before(database, 90)))
    assert gone.documents == 1
    assert left(database, document.c.sighting) == {"kept", "waiting"}
    await asyncio.to_thread(ledger.close)


def test_savings_of_old_runs_are_removed_too(database: Database) -> None:
    one = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1, "try_number": 1, "model": "m"}
    one |= {
        "connection_id": "c",
        "owner": None,
        "tags": None,
        "reused": 1,
        "reused_micro_usd": 5,
        "routed_micro_usd": 0,
    }
    old, new = (first_id_of(before(database, days)) for days in (100, 1))  # ids begin with the time
    put(
        database,
        *({**one, "id": f"{old}{n}", "at_ms": before(database, 100)} for n in range(5)),
        {**one, "id": new, "at_ms": before(database, 1)},
        table=saving,
    )
    prune(database, rows_before_ms=before(database, 90))
    assert left(database, saving.c.id) == {new}


def test_a_sound_ledger_has_no_findings_and_a_broken_one_names_its_rows(database: Database) -> None:
    fine = aged(database, 1)
    put(database, fine)
    put(database, *said(fine), table=payload)
    assert check(database) == []
    assert check(database, full=True) == []
    mute, stuck = aged(database, 1, 1), aged(database, 1, 2, state="open", closed_ms=None)
    put(database, mute, stuck)
    put(database, {"call_id": "lonely", "reply": b"{}", "prompt": None}, table=payload)
    found = {finding.examples[0]: finding.what for finding in check(database)}
    assert found == {
        "lonely": "prompts and replies without a call",
        mute["id"]: "answered calls without their reply",
        stuck["id"]: "calls open an hour after their lease has ended",
    }


def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    database.migrate()
    put(database, *(aged(database, 1, n) for n in range(500)))
    with database.write() as connection:
        page = connection.exec_driver_sql(
            "SELECT rootpage FROM sqlite_master WHERE name = 'call_run'"
        ).scalar()
        page_size = connection.exec_driver_sql("PRAGMA page_size").scalar()
    with database.read() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    with (tmp_path / "ledger.db").open("r+b") as file:
        file.seek((page - 1) * page_size)
        file.write(b"\xff" * page_size)
    again = Database(f"sqlite:///{tmp_path / 'ledger.db'}")
    assert check(again)[0].what == "the file is damaged"
    again.close()


def test_the_size_counts_rows_bytes_and_ages(database: Database) -> None:
    empty = size(database)
    assert (empty.tables["call"][0], empty.oldest_ms) == (0, None)
    put(database, *(aged(database, days) for days in (3, 30, 1)))
    told = size(database)
    assert told.tables["call"][0] == 3
    assert told.bytes_total > 0
    with database.read() as connection:
        options = (
            []
            if database.dialect != "sqlite"
            else connection.exec_driver_sql("PRAGMA compile_options").scalars()
        )
        counts_bytes = database.dialect != "sqlite" or "ENABLE_DBSTAT_VTAB" in options
    assert (told.tables["call"][1] or 0) >= 4096 if counts_bytes else told.tables["call"][1] is None
    assert told.oldest_ms < told.newest_ms
    assert round((now(database) - told.oldest_ms) / DAY) == 30


def test_an_export_has_every_call_once_and_no_payloads(database: Database) -> None:
    put(database, *(aged(database, 5, n, tags='["a"]') for n in range(2_500)))
    lines = list(export(database))
    assert len({line["id"] for line in lines}) == len(lines) == 2_500
    assert set(lines[0]) == set(CALL_COLUMNS)
    assert lines[0]["tags"] == ["a"]
    assert list(export(database, Filter(names={"dag_id": "never"}))) == []
