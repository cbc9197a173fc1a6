"""Maintenance: the ledger's size, its checks, its export, and the pruning of what is old."""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from airflow_llm_provider.ledger import daily
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.payloads import unpack_prompt
from airflow_llm_provider.ledger.queries import chunks
from airflow_llm_provider.ledger.records import first_id_of
from airflow_llm_provider.ledger.reports import Filter
from airflow_llm_provider.ledger.schema import (
    IS_ANSWERED,
    IS_OPEN,
    OPEN,
    REOPENED,
    call,
    document,
    effect,
    metadata,
    payload,
    review,
    saving,
)

T = TypeVar("T")
_Run = tuple[str, str]  # dag_id, run_id

_EXAMPLES = 5  # ids in a finding
_EXPORT_PAGE = 1_000  # calls per query
_PRUNE_PAGE = 2_000  # rows per query
_STEP_S = 0.01  # a step of the pruning takes no more rows after this time; writers wait for one step at most
_STEP_ROWS = 20  # rows between two looks at the time
_MARGIN_MS = 10_000  # a transaction of the ledger takes milliseconds
CALL_COLUMNS = tuple(column.name for column in call.columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How big the ledger is.

    Attributes:
        bytes_total: Its files, or its whole PostgreSQL database.
        tables: Rows and bytes of each table; bytes are None if this build of SQLite does not count them.
        oldest_ms: When the first call was opened, in milliseconds since 1970; None without calls.
        newest_ms: When the last call was opened.
    """

    bytes_total: int
    tables: dict[str, tuple[int, int | None]]
    oldest_ms: int | None
    newest_ms: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that is wrong in the ledger: what, how often, and ids of a few."""

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
    """Return the bytes of the ledger's files, or of its whole PostgreSQL database."""
    if database.dialect == "sqlite":
        files = (Path(f"{database.url.database}{suffix}") for suffix in ("", "-wal", "-shm"))
        return sum(file.stat().st_size for file in files if file.exists())
    with database.read() as connection:
        return int(connection.execute(sa.text("SELECT pg_database_size(current_database())")).scalar_one())


def wal_bytes(database: Database) -> int:
    """Return how much stands in the `-wal` beside a ledger on SQLite; a copy of the ledger's file alone lacks it."""
    wal = Path(f"{database.url.database}-wal")
    return wal.stat().st_size if database.dialect == "sqlite" and wal.exists() else 0


def back_up(database: Database, to: Path) -> None:
    """Copy a ledger on SQLite as it is at one moment, with what stands in its `-wal`, also while tasks run.

    Args:
        database: The ledger's database.
        to: A file that does not exist; only its owner may read it.

    Raises:
        OSError: The file exists or can't be written.
    """
    os.close(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    with database.read() as connection, contextlib.closing(sqlite3.connect(to)) as copy:
        source = connection.connection.dbapi_connection
        assert isinstance(source, sqlite3.Connection)
        source.backup(copy)


def check(database: Database, *, full: bool = False) -> list[Finding]:
    """Return what is wrong with the ledger; an empty list if nothing is.

    Args:
        database: The ledger's database.
        full: On SQLite, also compare every index with its table, which reads the whole file.
    """
    with database.read() as connection:
        now_ms = database.now_ms(connection)
        findings = _sqlite_findings(connection, full) if database.dialect == "sqlite" else []
        has_payload = sa.select(payload.c.call_id).where(
            payload.c.call_id == call.c.id, payload.c.reply.is_not(None)
        )
        has_call = sa.select(call.c.id).where(call.c.id == payload.c.call_id)
        # Any living process books such a call one lease after its lease has ended; an hour is many leases.
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
        if days := daily.differing_days(connection):
            dates = [str(dt.date(1970, 1, 1) + dt.timedelta(days=day)) for day in days]
            what = "days whose sums are not those of their calls"
            findings.append(Finding(what=what, count=len(days), examples=dates[:_EXAMPLES]))
    return findings


def export(
    database: Database, wanted: Filter | None = None, *, with_payload: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield calls as plain data, in the order in which they were opened.

    Args:
        database: The ledger's database.
        wanted: Which calls; all by default.
        with_payload: Also the `prompt` and the `reply`, the API's JSON; None if it was not kept.
    """
    query = sa.select(call)
    if with_payload:
        query = sa.select(call, payload.c.prompt, payload.c.reply)
        query = query.select_from(call.outerjoin(payload, payload.c.call_id == call.c.id))
    query = query.where(*(wanted or Filter()).of(call, call.c.opened_ms), call.c.id > sa.bindparam("last"))
    query, last = query.order_by(call.c.id).limit(_EXPORT_PAGE), ""
    # One transaction per page: SQLite's log grows as long as a reader stays.
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
        if len(rows) < _EXPORT_PAGE:
            return
        last = rows[-1]["id"]


def _table_bytes(connection: sa.Connection, names: Iterable[str]) -> dict[str, int]:
    """Return the bytes of each table with its indexes; empty if this build of SQLite does not count them."""
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


@dataclass(kw_only=True, slots=True)
class Pruned:
    """What a pruning removed, or would remove.

    Attributes:
        rows: Calls.
        payloads: Prompts and replies, including those of the removed calls.
        documents: Notes on unchanged documents; 0 in a dry run, since it depends on the calls that are left.
        kept: Old calls that stay because their DAG run is still active.
        steps: Write transactions.
        longest_s: How long the longest of them held the lock.
    """

    rows: int = 0
    payloads: int = 0
    documents: int = 0
    kept: int = 0
    steps: int = 0
    longest_s: float = 0.0


def prune(
    database: Database,
    *,
    rows_before_ms: int | None = None,
    payloads_before_ms: int | None = None,
    dry_run: bool = False,
    on_step: Callable[[Pruned], None] = lambda _: None,
) -> Pruned:
    """Remove old calls, and the prompts and replies of calls that are not quite as old.

    What the removed calls have cost stays in the daily sums: see ledger.daily.

    A call without its reply stays for the cost reports, but can't be reused: its request is sent again when needed.
    Open attempts stay whatever their age, and so do the calls of a DAG run that has made or reused a call, asked a
    person or run a tool since. Effects and reviews are never removed: they say what must not happen twice.

    It works in steps of a few milliseconds and pauses between them, so that running tasks hardly wait.

    Args:
        database: The ledger's database.
        rows_before_ms: Remove calls that ended before this time, in milliseconds since 1970; None for no calls.
        payloads_before_ms: Remove prompts and replies of calls that ended before this time; None for none.
        dry_run: Only count.
        on_step: Called after each step with what was removed so far.
    """
    done = Pruned()
    if rows_before_ms is not None:
        _Pruning(database, "rows", rows_before_ms, done, dry_run, on_step).run()
    if payloads_before_ms is not None and payloads_before_ms > (rows_before_ms or 0):
        if dry_run:
            done.payloads = 0  # the rows are still there, so the second walk counts their payloads, too
        counted_ms = rows_before_ms or 0
        _Pruning(database, "payloads", payloads_before_ms, done, dry_run, on_step, counted_ms).run()
    return done


class _Pruning:
    """One walk over what is older than a time, the oldest first.

    Args:
        counted_ms: Calls that ended before this time and stay were counted by an earlier walk.
    """

    def __init__(
        self,
        database: Database,
        what: Literal["rows", "payloads"],
        before_ms: int,
        done: Pruned,
        dry_run: bool,
        on_step: Callable[[Pruned], None],
        counted_ms: int = 0,
    ) -> None:
        self._database, self._what, self._before_ms, self._done = database, what, before_ms, done
        self._dry_run, self._on_step, self._counted_ms = dry_run, on_step, counted_ms
        self._live: set[_Run] = set()
        self._looked_ms = 0

    def run(self) -> None:
        with self._database.read() as connection:
            self._live = _live_runs(connection, self._before_ms)
            self._looked_ms = self._database.now_ms(connection)
        for old in self._old():
            gone = self._idle(old)
            if self._dry_run:
                self._count([row.id for row in gone])
                continue
            self._in_steps(gone, self._remove)
        if self._what == "rows" and not self._dry_run:
            self._remove_savings()
            self._remove_documents()

    def _old(self) -> Iterator[Sequence[Any]]:
        """Yield pages of calls that ended before the time, in the order of their ids."""
        source = call if self._what == "rows" else call.join(payload, payload.c.call_id == call.c.id)
        key = call.c.id if self._what == "rows" else payload.c.call_id
        query = (
            sa.select(call.c.id, call.c.dag_id, call.c.run_id, call.c.closed_ms)
            .select_from(source)
            .where(
                key > sa.bindparam("last"),
                # Ids begin with the time, so the primary key bounds the search; `closed_ms` is exact.
                key < first_id_of(self._before_ms),
                call.c.state != OPEN,
                call.c.closed_ms < self._before_ms,
            )
            .order_by(key)
            .limit(_PRUNE_PAGE)
        )
        last = ""
        while True:
            with self._database.read() as connection:
                rows = connection.execute(query, {"last": last}).all()
            if not rows:
                return
            last = rows[-1].id
            yield rows

    def _idle(self, rows: Sequence[Any]) -> list[Any]:
        """Return the calls whose DAG run is not active any more; count the others, which stay."""
        live = [row for row in rows if (row.dag_id, row.run_id) in self._live]
        self._done.kept += sum(row.closed_ms >= self._counted_ms for row in live)
        return [row for row in rows if (row.dag_id, row.run_id) not in self._live]

    def _in_steps(self, rows: Sequence[T], work: Callable[[sa.Connection, Sequence[T]], None]) -> None:
        """Run `work` on all rows, in short transactions with a pause after each."""
        parts = collections.deque(
            rows[start : start + _STEP_ROWS] for start in range(0, len(rows), _STEP_ROWS)
        )
        while parts:
            with self._database.write() as connection:
                began = time.perf_counter()  # without the wait for the lock
                # In the transaction that removes: a run that has become active keeps the rest of its calls.
                self._notice_new_runs(connection)
                while parts and time.perf_counter() - began < _STEP_S:
                    work(connection, parts.popleft())
            took = time.perf_counter() - began
            self._done.steps += 1
            self._done.longest_s = max(self._done.longest_s, took)
            self._on_step(self._done)
            self._checkpoint()
            time.sleep(took)  # half of the time the lock is free for others

    def _checkpoint(self) -> None:
        """Make SQLite write its log back now; otherwise the next writer would wait for it at a commit."""
        if self._database.dialect == "sqlite":
            with self._database.read() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def _remove(self, connection: sa.Connection, rows: Sequence[Any]) -> None:
        # Once more, because runs may have become active since the page was read.
        ids = [row.id for row in self._idle(rows)]
        # On PostgreSQL, rows that another transaction has locked are left for the next pruning.
        free = sa.select(*daily.CALL_COLUMNS).where(call.c.id.in_(ids), call.c.state != OPEN)
        ended = connection.execute(free.with_for_update(skip_locked=True)).all()
        gone = [row.id for row in ended]
        self._done.payloads += connection.execute(
            payload.delete().where(payload.c.call_id.in_(gone))
        ).rowcount
        if self._what == "rows":
            self._done.rows += connection.execute(call.delete().where(call.c.id.in_(gone))).rowcount
            days = daily.DailyChanges()
            for row in ended:
                days.prune(daily.day_of(row), daily.sums_of(row))
            days.write(connection)
        else:
            # Reopened, the call gives up its claim: without its reply nobody could use it.
            answered = call.update().where(call.c.id.in_(gone), IS_ANSWERED)
            connection.execute(answered.values(state=REOPENED))

    def _notice_new_runs(self, connection: sa.Connection) -> None:
        """Add the runs that have made a call since the last look."""
        # With a margin: on PostgreSQL, the transaction that began first need not be the first to commit.
        since = first_id_of(max(self._looked_ms - _MARGIN_MS, self._before_ms))
        self._looked_ms = self._database.now_ms(connection)
        query = sa.select(call.c.dag_id, call.c.run_id).where(call.c.id >= since).distinct()
        self._live |= {(dag_id, run_id) for dag_id, run_id in connection.execute(query)}

    def _count(self, ids: Sequence[str]) -> None:
        """Count what a real pruning would remove."""
        self._done.rows += len(ids) if self._what == "rows" else 0
        with self._database.read() as connection:
            for chunk in chunks(ids):
                query = sa.select(sa.func.count()).select_from(payload).where(payload.c.call_id.in_(chunk))
                self._done.payloads += connection.scalar(query) or 0

    def _remove_savings(self) -> None:
        is_old = sa.and_(saving.c.id < first_id_of(self._before_ms), saving.c.at_ms < self._before_ms)
        old = sa.select(saving.c.id).where(is_old).limit(_PRUNE_PAGE)
        while True:
            with self._database.read() as connection:
                ids = connection.scalars(old).all()
            if not ids:
                return
            self._in_steps(ids, self._remove_some_savings)

    @staticmethod
    def _remove_some_savings(connection: sa.Connection, ids: Sequence[str]) -> None:
        free = sa.select(saving).where(saving.c.id.in_(ids)).with_for_update(skip_locked=True)
        gone = [dict(row) for row in connection.execute(free).mappings()]
        connection.execute(saving.delete().where(saving.c.id.in_([row["id"] for row in gone])))
        days = daily.DailyChanges()
        for row in gone:
            days.prune(daily.day_of_saving(row), daily.sums_of_saving(row))
        days.write(connection)

    def _remove_documents(self) -> None:
        """Remove notes on documents whose reply was removed."""
        answered = sa.select(call.c.id).where(call.c.fingerprint == document.c.fingerprint, IS_ANSWERED)
        # A document is noted before its reply comes, so those of calls in flight stay.
        asked_now = document.c.fingerprint.in_(sa.select(call.c.fingerprint).where(IS_OPEN))
        is_orphan = ~answered.exists() & ~asked_now
        page = sa.select(document.c.sighting).where(document.c.sighting > sa.bindparam("last"))
        page = page.order_by(document.c.sighting).limit(_PRUNE_PAGE)
        last = ""
        while True:
            with self._database.read() as connection:
                seen = connection.scalars(page, {"last": last}).all()
                if not seen:
                    return
                within = document.c.sighting.between(seen[0], seen[-1])
                gone = connection.scalars(sa.select(document.c.sighting).where(within, is_orphan)).all()
            last = seen[-1]
            self._in_steps(gone, partial(self._remove_some_documents, is_orphan))

    def _remove_some_documents(
        self, is_orphan: sa.ColumnElement[bool], connection: sa.Connection, sightings: Sequence[str]
    ) -> None:
        # The condition is tested again: a call may have been opened or answered since the page was read.
        deleted = connection.execute(document.delete().where(document.c.sighting.in_(sightings), is_orphan))
        self._done.documents += deleted.rowcount


def _live_runs(connection: sa.Connection, since_ms: int) -> set[_Run]:
    """Return the DAG runs that did anything since a time, or have something open."""
    # A person may need days to decide. Meanwhile the run makes no calls.
    pending = review.c.decided_ms.is_(None)
    queries = (
        sa.select(call.c.dag_id, call.c.run_id).where(call.c.id >= first_id_of(since_ms)),
        sa.select(call.c.dag_id, call.c.run_id).where(IS_OPEN),
        sa.select(saving.c.dag_id, saving.c.run_id).where(saving.c.id >= first_id_of(since_ms)),
        sa.select(review.c.dag_id, review.c.run_id).where(pending | (review.c.decided_ms >= since_ms)),
        sa.select(effect.c.dag_id, effect.c.run_id).where(effect.c.began_ms >= since_ms),
    )
    return {(dag_id, run_id) for query in queries for dag_id, run_id in connection.execute(query.distinct())}
