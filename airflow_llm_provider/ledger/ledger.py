"""The ledger: claims, replies and prices, committed before any caller hears of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.ledger.accounts import Accounts, BudgetWarning, MissingAccounts
from airflow_llm_provider.ledger.budgets import Budget, BudgetRefusal
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.group_commit import GroupCommit
from airflow_llm_provider.ledger.payloads import PayloadPolicy
from airflow_llm_provider.ledger.queries import Lookup, look_up
from airflow_llm_provider.ledger.records import (
    CallScope,
    ClaimHeld,
    Failure,
    InvalidAnswer,
    NewAttempt,
    OpenedAttempt,
    PromptToKeep,
    Reopening,
    Reuse,
    Saving,
    SettledReply,
    Settlement,
    Sighting,
    Write,
)
from airflow_llm_provider.ledger.transactions import Transactions, may_pass
from airflow_llm_provider.ledger.writes import Writes

log = logging.getLogger(__name__)

LEASE_S = 45.0  # how long an attempt of a killed process blocks its key
BEAT_S = 10.0  # how often a living process renews its leases

T = TypeVar("T")


class Ledger:
    """The record of what was asked, paid and answered.

    Two threads of its own run the SQL: one writes, one reads. Create it after a fork, never before.

    Args:
        url: SQLAlchemy URL of SQLite or PostgreSQL.
        payload: Which prompts are kept: `full`, `errors`, `sampled:<share>` (and those of errors) or `none`.
            Replies are always kept: a retry is answered from them.
        synchronous: SQLite's durability: `FULL` survives a power cut, `NORMAL` a killed process only.
        deadline_s: How long a database that can't be reached is tried before callers get `LedgerUnavailable`.
        lease_s: How long an attempt of a killed process blocks its key.
        beat_s: How often leases are renewed while the process lives.
        budgets: Budgets for all calls, besides those of each scope and those stored in the ledger.

    Attributes:
        holder: Id of this ledger object in the rows of its live attempts.
        database: The database.
        accounts: What the budgets' meters have counted.
        on_warning: Called with a BudgetWarning in the writer's thread, after its transaction was committed.

    Raises:
        LedgerUnavailable: The database can't be reached, until the deadline.
        LedgerUnusable: Trying again does not help: a wrong URL, a damaged file, another schema version.
    """

    def __init__(
        self,
        url: str,
        *,
        payload: str = "errors",
        synchronous: str = "FULL",
        deadline_s: float = 60.0,
        lease_s: float = LEASE_S,
        beat_s: float = BEAT_S,
        budgets: Sequence[Budget] = (),
    ) -> None:
        policy = PayloadPolicy(payload)
        self.on_warning: Callable[[BudgetWarning], None] = _log_warning
        self.holder = uuid.uuid4().hex
        self.database = Database(url, synchronous=synchronous, timeout_s=deadline_s)
        self._transactions = Transactions(self.database, deadline_s=deadline_s)
        with contextlib.ExitStack() as on_failure:
            # If the tables cannot be made, there is no object that the caller could close.
            on_failure.callback(self.database.close)
            with self._transactions.in_our_words():
                self._transactions.retried(self.database.migrate)
            on_failure.pop_all()
        self.accounts = Accounts(self.database.dialect, budgets)
        self._writes = Writes(
            dialect=self.database.dialect,
            holder=self.holder,
            lease_ms=int(lease_s * 1000),
            policy=policy,
            accounts=self.accounts,
        )
        self._unwritten: list[Write] = []  # ends of attempts that the database was not there for
        self._writer: GroupCommit[Write, Any] = GroupCommit(
            self._write, name="llm-ledger-write", tick=self._beat, tick_s=beat_s
        )
        self._reader: GroupCommit[Lookup, SettledReply | None] = GroupCommit(
            self._read, name="llm-ledger-read", linger_s=0.002
        )

    async def find_reply(self, fingerprint: str, scope: CallScope, reuse: Reuse) -> SettledReply | None:
        """Return the settled reply to a request, if `reuse` lets this scope take it."""
        return await self._reader.submit(Lookup(fingerprint, "fingerprint", scope, reuse))

    async def find_reply_by_sighting(
        self, sighting: str, scope: CallScope, reuse: Reuse
    ) -> SettledReply | None:
        """Return the settled reply to the request that an unchanged document led to earlier."""
        return await self._reader.submit(Lookup(sighting, "sighting", scope, reuse))

    async def open(self, attempt: NewAttempt) -> OpenedAttempt | SettledReply | ClaimHeld | BudgetRefusal:
        """Claim the key, reserve the ceiling and open the attempt, in one transaction.

        A caller that is cancelled meanwhile gives up its claim and its reservation.

        Returns:
            OpenedAttempt: The caller has the claim and must send the request.
            SettledReply: The reply was bought already.
            ClaimHeld: Another live attempt has the claim.
            BudgetRefusal: A budget has no room for the ceiling. Nothing was opened.
        """
        opening: asyncio.Future[OpenedAttempt | SettledReply | ClaimHeld | BudgetRefusal] = (
            self._writer.submit(attempt)
        )
        try:
            # The writer commits the opening even if the caller is cancelled. Its outcome says what has to be given
            # up.
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(lambda opened: self._give_up(attempt, opened))
            await asyncio.wait([opening])  # a second cancellation ends this wait, but not the opening
            raise

    async def record(
        self, write: Settlement | Failure | Sighting | PromptToKeep | InvalidAnswer | Reopening | Saving
    ) -> None:
        """Commit `write` and return when it is durable; it is committed even if the caller is cancelled."""
        await self._writer.submit(write)

    def record_later(self, write: Failure | Sighting | PromptToKeep | InvalidAnswer | Saving) -> None:
        """Commit `write` with the next group and don't wait for it; a failure is logged."""
        self._writer.submit(write).add_done_callback(_log_failure)

    async def write(self, work: Callable[[sa.Connection, int], T]) -> T:
        """Return what `work` returns, once its write transaction is durable.

        For writes outside of the group commit. `work` may run again if a commit was not confirmed.

        Args:
            work: Takes the connection and the database's clock, in milliseconds since 1970.
        """
        return await asyncio.to_thread(self._transactions.write, work)

    async def read(self, work: Callable[[sa.Connection, int], T]) -> T:
        """Return what `work` reads, in a transaction that waits for no writer; see `write`."""
        return await asyncio.to_thread(self._transactions.read, work)

    def close(self) -> None:
        """Commit what was submitted and close the database."""
        self._writer.close()
        self._reader.close()
        self.database.close()

    def _give_up(self, attempt: NewAttempt, opened: asyncio.Future[Any]) -> None:
        """Free the claim and the reservation of a caller that was cancelled."""
        if opened.cancelled() or opened.exception():
            return
        if isinstance(outcome := opened.result(), OpenedAttempt):
            self.record_later(_unsent(attempt, outcome.attempt_id))

    # In the writer's thread.

    def _write(self, batch: list[Write]) -> list[Any]:
        """Commit a group of writes and return the outcome of each; an error is an outcome."""
        try:
            return self._write_group(batch)
        finally:
            self._writes.forget_ids()

    def _write_group(self, batch: list[Write]) -> list[Any]:
        with self._transactions.in_our_words():
            try:
                return self._transactions.retried(self._write_once, batch)
            except Exception as error:
                if may_pass(error):
                    # The submitters get the error and stop waiting, but `_beat` would renew their attempts as long
                    # as this process lives. So how they ended is written once the database is back.
                    self._unwritten += [end for write in batch if (end := self._end_of(write))]
                    raise
                if len(batch) == 1:
                    raise
        # The database refuses a row of the group: commit each by itself, so that the others are written.
        return [self._write_one(write) for write in batch]

    def _write_one(self, write: Write) -> Any:
        try:
            return self._write_group([write])[0]
        except Exception as error:  # noqa: BLE001  # it is handed to the submitter
            return error

    def _end_of(self, write: Write) -> Settlement | Failure | None:
        """Return how an attempt has ended for its caller, if `write` could not be committed."""
        if isinstance(write, NewAttempt):
            # Without an id, no transaction has begun, so there is no row.
            attempt_id = self._writes.id_of(write)
            return _unsent(write, attempt_id) if attempt_id else None
        return write if isinstance(write, (Settlement, Failure)) else None

    def _write_once(self, batch: list[Write]) -> list[Any]:
        outcomes: dict[int, Any] = {}
        for part in self._writes.transactions(batch):
            done = self._apply(part)
            outcomes |= {id(write): outcome for write, outcome in zip(part, done, strict=True)}
        return [outcomes[id(write)] for write in batch]

    def _apply(self, part: Sequence[Write]) -> list[Any]:
        """Run one transaction; make missing accounts first, each in a transaction of its own."""
        while True:
            try:
                with self.database.write() as connection:
                    done = self._writes.apply(connection, self.database.now_ms(connection), part)
            except MissingAccounts as missing:
                for meter in missing.meters:
                    with self.database.write() as connection:
                        self.accounts.make(connection, self.database.now_ms(connection), meter)
                continue
            # After the commit: a transaction that is rolled back and run again would warn twice.
            self._send_warnings()
            return done

    def _beat(self) -> None:
        """Renew the leases of this ledger's open attempts, and write what could not be written before."""
        try:
            with self._transactions.in_our_words(), self.database.write() as connection:
                self._writes.renew(connection, self.database.now_ms(connection))
            self._send_warnings()
            if self._unwritten:
                # The renewal has succeeded, so the database is back. If it goes away again, `_write` keeps them once
                # more.
                unwritten, self._unwritten = self._unwritten, []
                self._write(unwritten)
        except LLMError as error:
            log.warning("The leases of calls in flight could not be renewed. It is tried again. %s", error)

    def _send_warnings(self) -> None:
        """Pass on the warnings of the transaction that was just committed."""
        warnings, self._writes.warnings = self._writes.warnings, []
        for warning in warnings:
            self.on_warning(warning)

    # In the reader's thread.

    def _read(self, batch: list[Lookup]) -> list[SettledReply | None]:
        with self._transactions.in_our_words():
            return self._transactions.retried(self._read_once, batch)

    def _read_once(self, batch: list[Lookup]) -> list[SettledReply | None]:
        with self.database.read() as connection:
            return look_up(connection, batch)


def _unsent(attempt: NewAttempt, attempt_id: str) -> Failure:
    """Return the end of an attempt that was opened and never sent."""
    return Failure(
        attempt_id=attempt_id,
        fingerprint=attempt.fingerprint,
        billed=False,
        error_class="Cancelled",
        error="Cancelled before it was sent.",
        prompt=None,
    )


def _log_warning(warning: BudgetWarning) -> None:
    log.warning("%s", warning)


def _log_failure(future: Any) -> None:
    if not future.cancelled() and (error := future.exception()):
        log.warning("A note could not be written to the ledger; no paid reply is lost by it. %s", error)
