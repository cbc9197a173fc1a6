"""The ledger: claims, replies and prices, committed before anyone is told of them."""

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

LEASE_S = 45.0  # how long an attempt of a killed process blocks its key; renewed every BEAT_S while it lives
BEAT_S = 10.0

T = TypeVar("T")


class Ledger:
    """What was asked, paid and answered.

    url: SQLAlchemy URL of SQLite or PostgreSQL.
    payload: which prompts are kept: `full`, `errors`, `sampled:<share>` (errors always) or `none`. Replies
        are always kept: a retry is answered from them.
    deadline_s: how long an unreachable database is tried before callers get `LedgerUnavailable`.
    lease_s: how long an attempt of a killed process blocks its key; renewed every `beat_s` while it lives.
    budgets: that bind all calls, beside those of their scopes and the standing ones in the ledger itself.

    on_warning hears of a budget that is running out, in the ledger's own thread, once it is committed.

    Two threads of its own do the SQL, one writes and one reads; create it after any fork. Raises
    LedgerUnavailable when the database can't be reached, LedgerUnusable when trying again won't help.
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
        self.database = Database(url, synchronous=synchronous, patience_s=deadline_s)
        self._transactions = Transactions(self.database, deadline_s=deadline_s)
        with contextlib.ExitStack() as on_failure:
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
        self._owed: list[Write] = []  # what the database was away for
        self._writer: GroupCommit[Write, Any] = GroupCommit(
            self._write, name="llm-ledger-write", tick=self._beat, tick_s=beat_s
        )
        self._reader: GroupCommit[Lookup, SettledReply | None] = GroupCommit(
            self._read, name="llm-ledger-read", linger_s=0.002
        )

    async def find_reply(self, fingerprint: str, scope: CallScope, reuse: Reuse) -> SettledReply | None:
        """Return the settled reply to a request, if it may be reused here."""
        return await self._reader.submit(Lookup(fingerprint, "fingerprint", scope, reuse))

    async def find_reply_by_sighting(
        self, sighting: str, scope: CallScope, reuse: Reuse
    ) -> SettledReply | None:
        """Return the settled reply to what an unchanged document was asked."""
        return await self._reader.submit(Lookup(sighting, "sighting", scope, reuse))

    async def open(self, entry: NewAttempt) -> OpenedAttempt | SettledReply | ClaimHeld | BudgetRefusal:
        """Claim a key, reserve its ceiling and open an attempt; or say who has the key, or which budget no room.

        Who has it is a settled answer or a live attempt. A caller that is cancelled meanwhile gives up its key
        and what it has reserved.
        """
        opening: asyncio.Future[OpenedAttempt | SettledReply | ClaimHeld | BudgetRefusal] = (
            self._writer.submit(entry)
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(lambda opened: self._give_up(entry, opened))
            await asyncio.wait([opening])  # which a second cancellation ends, and the opening not
            raise

    async def record(
        self, write: Settlement | Failure | Sighting | PromptToKeep | InvalidAnswer | Reopening | Saving
    ) -> None:
        """Commit `write`; returns when it is durable, also when the waiting coroutine is cancelled."""
        await self._writer.submit(write)

    def record_later(self, write: Failure | Sighting | PromptToKeep | InvalidAnswer | Saving) -> None:
        """Commit `write` with the next batch, without waiting for it: for what nobody waits on."""
        self._writer.submit(write).add_done_callback(_log_failure)

    async def write(self, work: Callable[[sa.Connection, int], T]) -> T:
        """Return what `work(connection, now_ms)` returns, in a write transaction that is durable when it ends.

        For what happens now and then; the calls themselves go in batches. `work` may be run again where the
        commit went unheard.
        """
        return await asyncio.to_thread(self._transactions.write, work)

    async def read(self, work: Callable[[sa.Connection, int], T]) -> T:
        """Return what `work(connection, now_ms)` reads, in a transaction that waits for no writer."""
        return await asyncio.to_thread(self._transactions.read, work)

    def close(self) -> None:
        """Commit what was submitted and close the database."""
        self._writer.close()
        self._reader.close()
        self.database.close()

    def _give_up(self, entry: NewAttempt, opened: asyncio.Future[Any]) -> None:
        if not opened.cancelled() and not opened.exception() and isinstance(opened.result(), OpenedAttempt):
            self.record_later(_unsent(entry))

    # -- in the writer's thread ----------------------------------------------------------------------

    def _write(self, batch: list[Write]) -> list[Any]:
        with self._transactions.in_our_words():
            try:
                return self._transactions.retried(self._write_once, batch)
            except Exception as error:
                if may_pass(error):
                    # Its submitters give up. Left as they are, their attempts would be renewed while this lives.
                    of_attempts = (
                        write for write in batch if isinstance(write, (NewAttempt, Settlement, Failure))
                    )
                    self._owed += [
                        _unsent(write) if isinstance(write, NewAttempt) else write for write in of_attempts
                    ]
                    raise
                if len(batch) == 1:
                    raise
        # One row the database won't take must not cost the others theirs.
        return [self._alone(write) for write in batch]

    def _alone(self, write: Write) -> Any:
        try:
            return self._write([write])[0]
        except Exception as error:  # noqa: BLE001  # handed to the one who submitted it
            return error

    def _write_once(self, batch: list[Write]) -> list[Any]:
        outcomes: dict[int, Any] = {}
        for part in self._writes.transactions(batch):
            done = self._apply(part)
            outcomes |= {id(write): outcome for write, outcome in zip(part, done, strict=True)}
        return [outcomes[id(write)] for write in batch]

    def _apply(self, part: Sequence[Write]) -> list[Any]:
        while True:
            try:
                with self.database.write() as connection:
                    done = self._writes.apply(connection, self.database.now_ms(connection), part)
            except MissingAccounts as missing:
                for meter in missing.meters:
                    with self.database.write() as connection:
                        self.accounts.make(connection, self.database.now_ms(connection), meter)
                continue
            self._warn()
            return done

    def _beat(self) -> None:
        """Renew the leases of what this engine has in flight, and write what a database that was away is owed."""
        try:
            with self._transactions.in_our_words(), self.database.write() as connection:
                self._writes.renew(connection, self.database.now_ms(connection))
            self._warn()
            if self._owed:
                owed, self._owed = self._owed, []
                self._write(owed)
        except LLMError as error:
            log.warning("The ledger's leases could not be renewed, will try again. %s", error)

    def _warn(self) -> None:
        """Tell of budgets that are running out, once the transaction that says so is committed."""
        warnings, self._writes.warnings = self._writes.warnings, []
        for warning in warnings:
            self.on_warning(warning)

    # -- in the reader's thread ----------------------------------------------------------------------

    def _read(self, batch: list[Lookup]) -> list[SettledReply | None]:
        with self._transactions.in_our_words():
            return self._transactions.retried(self._read_once, batch)

    def _read_once(self, batch: list[Lookup]) -> list[SettledReply | None]:
        with self.database.read() as connection:
            return look_up(connection, batch)


def _unsent(entry: NewAttempt) -> Failure:
    return Failure(
        attempt_id=entry.id,
        fingerprint=entry.fingerprint,
        billed=False,
        error_class="Cancelled",
        error="Cancelled before it was sent.",
        prompt=None,
    )


def _log_warning(warning: BudgetWarning) -> None:
    log.warning("%s", warning)


def _log_failure(future: Any) -> None:
    if not future.cancelled() and (error := future.exception()):
        log.warning("The ledger could not note something: %s", error)
