"""The ledger's database: its connections, transactions and clock, on SQLite or PostgreSQL."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url

from airflow_llm_provider.errors import LedgerUnusable
from airflow_llm_provider.ledger import migrations
from airflow_llm_provider.ledger.file_lock import FileLock
from airflow_llm_provider.ledger.own_process import OwnProcess

_NOW_MS = {
    # SQLite before 3.42 has no sub-second unixepoch(); 2440587.5 is the Julian day of 1970-01-01.
    "sqlite": "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    # The setting goes along with the first statement of a transaction: a process that is stopped within it must
    # not keep its rows locked.
    "postgresql": "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT),"
    " set_config('idle_in_transaction_session_timeout', '10s', true)",
}
_DRIVERS = {"sqlite": "sqlite", "postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}
# A server that disappears is noticed within a minute; libpq itself would wait for hours.
_TIMEOUTS = {
    "connect_timeout": "10",
    "keepalives_idle": "20",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "50000",
}
# What SQLAlchemy logs has no parameters, and at DEBUG the rows that it reads: replies, and what a person was shown.
_LOGGED: dict[str, Any] = {"hide_parameters": True, "logging_name": "llm_ledger"}
logging.getLogger("sqlalchemy.engine.Engine.llm_ledger").addFilter(
    lambda record: record.levelno > logging.DEBUG
)


class Database:
    """Write transactions one after the other, reads beside them, and the clock that leases are measured by.

    There is no connection before the first use. A child that is forked later can't use it: see `own_process`.

    Args:
        url: SQLAlchemy URL, `sqlite:////abs/path.db` or `postgresql://…`. The driver is chosen here.
        synchronous: SQLite's durability: `FULL` survives a power cut, `NORMAL` a killed process only.
        timeout_s: How long a write transaction on SQLite waits for those of other processes.

    Attributes:
        url: The URL with our driver.
        dialect: `sqlite` or `postgresql`.

    Raises:
        LedgerUnusable: The URL can't be used. Its methods raise OSError and SQLAlchemy's errors; none of them shows
            stored values.
    """

    def __init__(self, url: str, *, synchronous: str = "FULL", timeout_s: float = 60.0) -> None:
        self.url = parse_url(url)
        self.dialect = self.url.get_backend_name()
        self._now = sa.text(_NOW_MS[self.dialect])
        self._writing = threading.Lock()
        self._process = OwnProcess()
        if self.dialect == "sqlite":
            self._file = Path(self.url.database or "")
            self._identity: tuple[int, int] | None = None
            self._file_lock = FileLock(self._file.with_name(f"{self._file.name}.lock"), timeout_s=timeout_s)
            # One connection for all writes, since SQLite has one writer; readers have one each.
            self._writer = _sqlite_engine(self.url, "BEGIN IMMEDIATE", synchronous, poolclass=sa.StaticPool)
            self._reader = _sqlite_engine(self.url, "BEGIN", synchronous, poolclass=sa.QueuePool)
        else:
            self._writer = _postgres_engine(self.url)
            # Reports add up several tables: a pruning must not move money from one to another in between.
            self._reader = self._writer.execution_options(isolation_level="REPEATABLE READ")

    @property
    def shown_url(self) -> str:
        """The URL without its password, and without its options, which may hold another password."""
        return self.url.set(query={}).render_as_string(hide_password=True)

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open a write transaction; it is committed, and on disk, when the block ends."""
        self._process.require()
        if self.dialect != "sqlite":
            with self._writer.begin() as connection:
                yield connection
            return
        mode = self._require_file()
        # The order of the three locks: threads of this process, processes, SQLite.
        with self._writing, self._file_lock.held(mode=mode), self._writer.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a read transaction: all of its statements see one moment, and it and writers do not wait for another."""
        self._process.require()
        if self.dialect == "sqlite":
            self._stat(missing="there is no ledger at {}")  # SQLite would make an empty one
        with self._reader.begin() as connection:
            yield connection

    def now_ms(self, connection: sa.Connection) -> int:
        """Return the database's clock in milliseconds since 1970, UTC.

        All processes measure leases by it, so the clocks of their machines need not agree.
        """
        return int(connection.execute(self._now).one()[0])

    def migrate(self, steps: Sequence[str] | None = None) -> None:
        """Create or upgrade the tables, in one transaction; safe when many processes do it at once.

        Args:
            steps: The SQL of each version in order; by default the files in `ledger.migrations`.
        """
        with self.write() as connection:
            migrations.migrate(connection, steps)

    def close(self) -> None:
        """Close every connection; in a child that was forked since, none: they are still its parent's."""
        if self._process.is_this:
            self._writer.dispose()
            self._reader.dispose()

    def _require_file(self) -> int:
        """Return the file's mode; make the file at the first use, and require the same file from then on.

        SQLite would go on writing into a file that was deleted or replaced, and what was paid would be lost with
        it. A missing folder is not made: usually a disk is not mounted, and with an empty ledger in its place
        everything would be paid for again.
        """
        if self._identity is None and not self._file.exists():
            if not self._file.parent.is_dir():
                raise FileNotFoundError(
                    f"the folder {self._file.parent} does not exist: make it, or mount it"
                )
            # It holds replies, so only its owner may read it. SQLite gives its other files the same mode.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        found = self._stat(missing="{} was moved or deleted while in use")
        self._identity = self._identity or (found.st_dev, found.st_ino)
        if self._identity != (found.st_dev, found.st_ino):
            raise FileNotFoundError(f"{self._file} was replaced by another file while in use")
        return stat.S_IMODE(found.st_mode)

    def _stat(self, *, missing: str) -> os.stat_result:
        """Return the file's state; `missing` is the error's text when there is no file."""
        try:
            found = self._file.stat()
        except FileNotFoundError:
            raise FileNotFoundError(missing.format(self._file)) from None
        if not stat.S_ISREG(found.st_mode):
            raise LedgerUnusable(
                f"[llm] ledger_url: {self._file} is not a file. Name a file, such as sqlite:///{self._file}/llm_ledger.db."
            )
        return found


def parse_url(text: str) -> sa.URL:
    """Read the URL of a ledger.

    Raises:
        LedgerUnusable: It can't be used. The error repeats no part of it: any part may hold the password.
    """
    try:
        url = make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise LedgerUnusable(
            "[llm] ledger_url can't be read. Write sqlite:////absolute/path.db or "
            "postgresql://user:password@host:5432/database, with @ : / ? # in the password as %40 %3A %2F %3F %23."
        ) from None
    backend = url.drivername.partition("+")[0]
    if backend not in _DRIVERS:
        raise LedgerUnusable(
            "[llm] ledger_url: the ledger runs on sqlite or postgresql, and this is neither."
        )
    if backend == "sqlite" and not Path(url.database or "").is_absolute():
        raise LedgerUnusable(
            "[llm] ledger_url needs the absolute path of a file, with four slashes: sqlite:////path/ledger.db. "
            "A ledger in memory forgets what was paid, and a relative path is another file in each working folder."
        )
    return url.set(drivername=_DRIVERS[backend])


def insert(dialect: str, table: sa.Table) -> Any:
    """Return the dialect's own insert statement, which has ON CONFLICT."""
    return (sqlite.insert if dialect == "sqlite" else postgresql.insert)(table)


def storable(text: str | None) -> str | None:
    """Replace what a text column can't hold: NUL on PostgreSQL, lone surrogates on both."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _postgres_engine(url: sa.URL) -> sa.Engine:
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise LedgerUnusable(
            "A ledger on PostgreSQL needs psycopg: pip install 'airflow-provider-llm[postgres]'."
        ) from None
    url = url.set(query={**_TIMEOUTS, **url.query})
    return sa.create_engine(
        url,
        pool_size=2,
        max_overflow=2,
        pool_pre_ping=True,
        **_LOGGED,
        # For PgBouncer in transaction mode: the next transaction may run on another server connection, which does not
        # know the statements that were prepared on this one. For the same reason nothing here sets a session's state.
        connect_args={"prepare_threshold": None},
        use_native_hstore=False,  # SQLAlchemy would look for that type with a query per connection
    )


def _sqlite_engine(url: sa.URL, begin: str, synchronous: str, **pool: Any) -> sa.Engine:
    engine = sa.create_engine(url, connect_args={"check_same_thread": False}, **_LOGGED, **pool)

    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # BEGIN comes from the listener below
        for pragma in (
            "busy_timeout = 30000",
            "journal_mode = WAL",
            f"synchronous = {'NORMAL' if synchronous.upper() == 'NORMAL' else 'FULL'}",
            "cache_size = -16000",  # KiB
            "wal_autocheckpoint = 4000",  # pages, 16 MB: once in a few thousand calls, not at every commit
            "journal_size_limit = 33554432",  # bytes the log shrinks to, after a long reader has let it grow
        ):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
