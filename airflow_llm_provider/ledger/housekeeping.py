"""The ledger looked after: how big it is, whether it is sound, and what is in it, written out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.payloads import unpack_prompt
from airflow_llm_provider.ledger.reports import Filter
from airflow_llm_provider.ledger.schema import IS_ANSWERED, IS_OPEN, call, metadata, payload

_PAGE = 1_000
_EXAMPLES = 5
CALL_COLUMNS = tuple(column.name for column in call.columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How big the ledger is.

    bytes_total: its files, or its whole PostgreSQL database. tables: rows and bytes of each; bytes are None where
    this build of SQLite does not count them. oldest_ms, newest_ms: when the first and last call was opened.
    """

    bytes_total: int
    tables: dict[str, tuple[int, int | None]]
    oldest_ms: int | None
    newest_ms: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that should not be: what, how often, and ids of a few."""

    what: str
    count: int
    examples: Sequence[str] = ()


def size(database: Database) -> Size:
    """Return how big the ledger is."""
    with database.read() as connection:
        found = set(sa.inspect(connection).get_table_names())
        names = [table.name for table in metadata.sorted_tables if table.name in found]
        taken = _table_bytes(connection, names)
        tables = {
            name: (
                connection.scalar(sa.select(sa.func.count()).select_from(metadata.tables[name])) or 0,
                taken.get(name),
            )
            for name in names
        }
        by_age = sa.select(call.c.opened_ms).limit(1)  # ids begin with the time
        oldest_ms = connection.scalar(by_age.order_by(call.c.id))
        newest_ms = connection.scalar(by_age.order_by(call.c.id.desc()))
    return Size(bytes_total=size_bytes(database), tables=tables, oldest_ms=oldest_ms, newest_ms=newest_ms)


def size_bytes(database: Database) -> int:
    """Return how much room the ledger takes: its files, or its whole PostgreSQL database."""
    if database.dialect == "sqlite":
        files = (Path(f"{database.url.database}{suffix}") for suffix in ("", "-wal", "-shm"))
        return sum(file.stat().st_size for file in files if file.exists())
    with database.read() as connection:
        return int(connection.execute(sa.text("SELECT pg_database_size(current_database())")).scalar_one())


def check(database: Database, *, full: bool = False) -> list[Finding]:
    """Return what is wrong with the ledger; nothing, when it is sound.

    full: on SQLite, hold every index against its table too, which reads the whole file.
    """
    with database.read() as connection:
        now_ms = database.now_ms(connection)
        findings = _sqlite_findings(connection, full) if database.dialect == "sqlite" else []
        has_payload = sa.select(payload.c.call_id).where(
            payload.c.call_id == call.c.id, payload.c.reply.is_not(None)
        )
        has_call = sa.select(call.c.id).where(call.c.id == payload.c.call_id)
        # One lease after its end whoever renews leases books it; an hour is many times any lease.
        left_behind = call.c.lease_until_ms < now_ms - 3_600_000
        for what, ids in (
            ("prompts and replies without a call", sa.select(payload.c.call_id).where(~has_call.exists())),
            (
                "answered calls without their reply",
                sa.select(call.c.id).where(IS_ANSWERED, ~has_payload.exists()),
            ),
            (
                "calls open an hour after their lease has ended",
                sa.select(call.c.id).where(IS_OPEN, left_behind),
            ),
        ):
            count = connection.scalar(sa.select(sa.func.count()).select_from(ids.subquery())) or 0
            if count:
                examples = connection.scalars(ids.limit(_EXAMPLES)).all()
                findings.append(Finding(what=what, count=count, examples=examples))
    return findings


def export(
    database: Database, wanted: Filter | None = None, *, with_payload: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield calls as plain data, in the order of opening.

    with_payload: what was said as well, as `prompt` and `reply`, the API's JSON; None where it is not kept.
    """
    query = sa.select(call)
    if with_payload:
        query = sa.select(call, payload.c.prompt, payload.c.reply)
        query = query.select_from(call.outerjoin(payload, payload.c.call_id == call.c.id))
    query = query.where(*(wanted or Filter()).of(call, call.c.opened_ms), call.c.id > sa.bindparam("last"))
    query, last = query.order_by(call.c.id).limit(_PAGE), ""
    while True:
        with database.read() as connection:
            rows = connection.execute(query, {"last": last}).mappings().all()
        for row in rows:
            one = dict(row)
            one["tags"] = json.loads(one["tags"]) if one["tags"] else []
            if with_payload:
                one["prompt"] = json.loads(unpack_prompt(one["prompt"])) if one["prompt"] else None
                one["reply"] = json.loads(one["reply"]) if one["reply"] else None
            yield one
        if len(rows) < _PAGE:
            return
        last = rows[-1]["id"]


def _table_bytes(connection: sa.Connection, names: Iterable[str]) -> dict[str, int]:
    """Return the bytes of each table with its indexes; nothing where this build of SQLite does not count them."""
    if connection.dialect.name != "sqlite":
        sizes = {
            name: sa.func.pg_total_relation_size(sa.cast(f'"{name}"', postgresql.REGCLASS)).label(name)
            for name in names
        }
        return dict(connection.execute(sa.select(*sizes.values())).mappings().one())
    with contextlib.suppress(sa.exc.OperationalError):  # without SQLITE_ENABLE_DBSTAT_VTAB
        query = (
            "SELECT owner.tbl_name, sum(part.pgsize) FROM dbstat AS part JOIN sqlite_master AS owner"
            " ON owner.name = part.name WHERE part.aggregate = 1 GROUP BY owner.tbl_name"
        )
        return {str(name): int(taken) for name, taken in connection.exec_driver_sql(query)}
    return {}


def _sqlite_findings(connection: sa.Connection, full: bool) -> list[Finding]:
    told = (
        connection.exec_driver_sql("PRAGMA integrity_check" if full else "PRAGMA quick_check").scalars().all()
    )
    return (
        []
        if told == ["ok"]
        else [Finding(what="the file is damaged", count=len(told), examples=told[:_EXAMPLES])]
    )
