"""Connections to the ledger's database: SQLite beside Airflow, or PostgreSQL for many machines."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

import sqlalchemy as sa
from sqlalchemy.engine import make_url

from airflow_llm_provider.ledger import schema

_NOW_MS = {
    # SQLite before 3.42 has no sub-second unixepoch(); 2440587.5 is the Julian day of 1970-01-01.
    "sqlite": "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
    "postgresql": "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)",
}


class Database:
    """Write transactions in turn, reads beside them, and the one clock that leases are measured by.

    url: a SQLAlchemy URL, `sqlite:////abs/path.db` or `postgresql+psycopg://…`.
    synchronous: SQLite's durability. FULL survives a power cut, NORMAL only a killed process.

    Holds no connection until the first use; never share one over a fork.
    """

    def __init__(self, url: str, *, synchronous: str = "FULL") -> None:
        self.url = make_url(url)
        self.dialect = self.url.get_backend_name()
        if self.dialect not in _NOW_MS:
            raise ValueError(
                f"[llm] ledger_url is a {self.dialect} URL: the ledger runs on sqlite or postgresql."
            )
        self._now = sa.text(_NOW_MS[self.dialect])
        self._lock_file: int | None = None
        if self.dialect == "sqlite":
            if not self.url.database or self.url.database == ":memory:":
                raise ValueError("[llm] ledger_url needs a file: a ledger in memory forgets what was paid.")
            self._lock_path = f"{self.url.database}.lock"
            self._writer = sa.create_engine(
                self.url, poolclass=sa.StaticPool, connect_args={"check_same_thread": False}
            )
            self._reader = sa.create_engine(
                self.url, poolclass=sa.StaticPool, connect_args={"check_same_thread": False}
            )
            for engine, begin in ((self._writer, "BEGIN IMMEDIATE"), (self._reader, "BEGIN")):
                _configure_sqlite(engine, begin=begin, synchronous=synchronous)
        else:
            self._writer = self._reader = sa.create_engine(
                self.url, pool_size=2, max_overflow=2, pool_pre_ping=True
            )

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open a write transaction; committed, and on disk, when the block ends."""
        with self._in_turn(), self._writer.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a read transaction; on SQLite it neither waits for writers nor holds them up."""
        with self._reader.begin() as connection:
            yield connection

    def now_ms(self, connection: sa.Connection) -> int:
        """Return the database's clock in milliseconds since 1970, UTC."""
        return int(connection.execute(self._now).scalar_one())

    def migrate(self) -> None:
        """Create or upgrade the tables; safe when many processes do it at once."""
        with self.write() as connection:
            schema.migrate(connection)

    def close(self) -> None:
        """Close every connection."""
        self._writer.dispose()
        self._reader.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Queue for SQLite's one writer with flock.

        SQLite itself polls for its lock, unfairly: with eight writers the longest wait was 1.2 s, in a queue
        of the kernel's 35-50 ms at the same throughput.
        """
        if self.dialect != "sqlite":
            yield
            return
        if self._lock_file is None:
            self._lock_file = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)


def _configure_sqlite(engine: sa.Engine, *, begin: str, synchronous: str) -> None:
    @sa.event.listens_for(engine, "connect")
    def _connect(connection: object, _record: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]  # we say BEGIN ourselves
        cursor = connection.cursor()  # type: ignore[attr-defined]
        cursor.execute("PRAGMA busy_timeout = 30000")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute(f"PRAGMA synchronous = {'NORMAL' if synchronous.upper() == 'NORMAL' else 'FULL'}")
        cursor.close()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)
