"""Transactions on the ledger's database: tried again while it is away, and its errors in our words."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from typing import TypeVar

import sqlalchemy as sa
import tenacity

from airflow_llm_provider.errors import LedgerUnavailable, LedgerUnusable
from airflow_llm_provider.ledger.database import Database

T = TypeVar("T")
Work = Callable[[sa.Connection, int], T]
"""What is done in a transaction: it takes the connection and the database's clock, in milliseconds since 1970."""

_PASSING = (sa.exc.OperationalError, sa.exc.InterfaceError, OSError)
_migrated: set[str] = set()  # URLs whose schema this process has checked


class Transactions:
    """Runs single transactions; none is half done when the database goes away.

    Args:
        database: where they run.
        deadline_s: how long a database that cannot be reached is tried, in seconds.
    """

    def __init__(self, database: Database, *, deadline_s: float) -> None:
        self._database = database
        self._deadline_s = deadline_s

    def write(self, work: Work[T]) -> T:
        """Return what `work` returns, once the transaction is durable; it may run again if a commit was not confirmed.

        Raises:
            LedgerUnavailable: the database could not be reached until the deadline.
            LedgerUnusable: trying again does not help.
        """
        return self._transact(self._database.write, work)

    def read(self, work: Work[T]) -> T:
        """Return what `work` reads, in a transaction that waits for no writer; raises as `write` does."""
        return self._transact(self._database.read, work)

    def retried(self, work: Callable[..., T], *arguments: object) -> T:
        """Run `work` again while the database cannot be reached, up to the deadline."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(may_pass),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
            stop=tenacity.stop_before_delay(self._deadline_s),
            reraise=True,
        )
        return retrying(work, *arguments)

    @contextlib.contextmanager
    def in_our_words(self) -> Iterator[None]:
        """Turn the database's errors into ours; no password and no payload is part of the message."""
        try:
            yield
        except (sa.exc.SQLAlchemyError, OSError) as error:
            where = f"The ledger at {self._database.shown_url}"
            cause = (error.orig if isinstance(error, sa.exc.DBAPIError) else None) or error
            # PostgreSQL's further lines about a statement (DETAIL, CONTEXT) quote the row, and so does a traceback of
            # the cause. Those about a connection say which host was tried.
            said = str(cause) if may_pass(error) else str(cause).partition("\n")[0]
            said = " ".join(said.split())
            if may_pass(error):
                raise LedgerUnavailable(
                    f"{where} can't be reached ({said}). Nothing is sent without it, so nothing is paid; "
                    "check [llm] ledger_url and the database, then retry."
                ) from None
            if type(error) is sa.exc.DatabaseError:  # SQLite raises it for a file that is not a database
                raise LedgerUnusable(
                    f"{where} is damaged or is not a ledger ({said}). Nothing was changed or sent. Stop all "
                    "tasks, remove the file with its -wal and -shm, and put a backup in its place. Or move all three "
                    "away to start a new ledger: then every reply is paid for again."
                ) from None
            raise LedgerUnusable(f"{where} rejected a statement: {said}") from None

    def _transact(
        self, begin: Callable[[], contextlib.AbstractContextManager[sa.Connection]], work: Work[T]
    ) -> T:
        def once() -> T:
            with begin() as connection:
                return work(connection, self._database.now_ms(connection))

        # Around the retries, not within: they decide by the database's own error whether it may pass.
        with self.in_our_words():
            return self.retried(once)


@contextlib.contextmanager
def open_transactions(
    url: str, *, synchronous: str = "FULL", deadline_s: float = 60.0
) -> Iterator[Transactions]:
    """Open the ledger for a few statements: one connection, without an engine, a thread or an event loop.

    The schema is created or upgraded once per process and URL.

    Args:
        url: the SQLAlchemy URL of the ledger.
        synchronous: SQLite's durability, `FULL` or `NORMAL`.
        deadline_s: how long a database that cannot be reached is tried, in seconds.
    """
    database = Database(url, synchronous=synchronous, timeout_s=deadline_s)
    transactions = Transactions(database, deadline_s=deadline_s)
    try:
        if url not in _migrated:
            with transactions.in_our_words():
                transactions.retried(database.migrate)
            # Only after it succeeded: otherwise the next use in this process would find no tables.
            _migrated.add(url)
        yield transactions
    finally:
        database.close()


def may_pass(error: BaseException) -> bool:
    """Tell whether an error may pass: no connection, a server that starts, a lock, a full disk, a missing mount."""
    # A table or column that is missing is an OperationalError too, but only with SQLite; it stays missing.
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else None
    return isinstance(error, _PASSING) and getattr(cause, "sqlite_errorcode", None) != sqlite3.SQLITE_ERROR
