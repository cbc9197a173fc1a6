"""Writes: what a group of records changes in the tables, within one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.ledger.accounts import Accounts, BudgetWarning
from airflow_llm_provider.ledger.bookings import BOOKED, Bookings, ScopeBudgets
from airflow_llm_provider.ledger.budgets import BudgetRefusal
from airflow_llm_provider.ledger.daily import day_of_saving, sums_of_saving, tokens_of
from airflow_llm_provider.ledger.database import insert, storable
from airflow_llm_provider.ledger.payloads import PayloadPolicy, pack_prompt
from airflow_llm_provider.ledger.queries import BY_ID, HOLDERS, LATE_REPLIES, chunks, newest
from airflow_llm_provider.ledger.records import (
    ClaimHeld,
    Failure,
    InvalidAnswer,
    NewAttempt,
    OpenedAttempt,
    PromptToKeep,
    Reopening,
    Saving,
    SettledReply,
    Settlement,
    Sighting,
    Write,
    new_id,
)
from airflow_llm_provider.ledger.schema import (
    FAILED,
    IS_ANSWERED,
    IS_OPEN,
    LATE,
    OPEN,
    REOPENED,
    SETTLED,
    UNPROVEN,
    call,
    document,
    is_in,
    payload,
    saving,
)

_ATTEMPT: sa.BindParameter[str] = sa.bindparam("attempt")

SETTLE = (
    call.update()
    .where(call.c.id == _ATTEMPT)
    .values(
        # A reply to an attempt whose lease had ended is still paid, booked and reusable. A write is repeated when its
        # commit was not confirmed, so an attempt that is settled or reopened keeps its state.
        state=sa.case(
            (call.c.state == OPEN, SETTLED),
            (is_in(SETTLED, REOPENED), call.c.state),
            else_=LATE,
        ),
        closed_ms=sa.bindparam("now"),
        latency_ms=sa.bindparam("latency_ms_"),
        stop_reason=sa.bindparam("stop_reason_"),
        uncached_tokens=sa.bindparam("uncached"),
        output_tokens=sa.bindparam("output"),
        cache_read_tokens=sa.bindparam("cache_read"),
        cache_write_5m_tokens=sa.bindparam("write_5m"),
        cache_write_1h_tokens=sa.bindparam("write_1h"),
        cost_micro_usd=sa.bindparam("cost"),
        # A late reply replaces what was written when the lease had ended.
        error_class=None,
        error=None,
    )
)
FAIL = (
    call.update()
    # Also when the lease had ended: the proof that nothing was billed corrects what was booked.
    .where(call.c.id == _ATTEMPT, is_in(OPEN, UNPROVEN))
    .values(
        state=sa.bindparam("state_"),
        closed_ms=sa.bindparam("now"),
        cost_micro_usd=sa.case(
            (sa.bindparam("state_", type_=sa.String) == UNPROVEN, call.c.ceiling_micro_usd)
        ),
        error_class=sa.bindparam("error_class_"),
        error=sa.bindparam("error_"),
    )
)


def _unlocked(*conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Match the rows that no other transaction has locked; see the lock order in `Writes`."""
    return call.c.id.in_(sa.select(call.c.id).where(*conditions).with_for_update(skip_locked=True))


# Its attempts were selected and locked by one of the OVERDUE statements, so they are still open.
EXPIRE = (
    call.update()
    .where(call.c.id.in_(sa.bindparam("attempts", expanding=True)))
    .values(
        state=UNPROVEN,
        closed_ms=sa.bindparam("now"),
        cost_micro_usd=call.c.ceiling_micro_usd,
        error_class="LeaseExpired",
        error="Its process ended or stalled before it recorded a reply.",
    )
)
# Attempts whose lease has ended by the database's clock: all, a few, those that hold a reservation.
OVERDUE = BOOKED.where(IS_OPEN, call.c.lease_until_ms < sa.bindparam("before")).with_for_update(
    skip_locked=True
)
OVERDUE_OF = OVERDUE.where(call.c.id.in_(sa.bindparam("attempts", expanding=True)))
OVERDUE_RESERVED = OVERDUE.where(call.c.accounts.is_not(None))
# A row that is locked now is renewed at the next beat, if its attempt is still open. A lease lasts for several beats.
RENEW = (
    call.update()
    .where(_unlocked(call.c.holder == sa.bindparam("held_by"), IS_OPEN))
    .values(lease_until_ms=sa.bindparam("until"))
)
# A refused attempt was never sent. Without its row, its claim is free.
WITHDRAW = call.delete().where(call.c.id.in_(sa.bindparam("attempts", expanding=True)))
# A write is repeated when its commit was not confirmed; its id makes it count once.
KEPT_SAVINGS = sa.select(saving.c.id).where(saving.c.id.in_(sa.bindparam("ids", expanding=True)))
KEEP_PROMPT = payload.update().where(payload.c.call_id == _ATTEMPT).values(prompt=sa.bindparam("prompt_"))
RECORD_INVALID_ANSWER = (
    call.update()
    .where(_unlocked(call.c.id == _ATTEMPT))
    .values(error_class=sa.bindparam("error_class_"), error=sa.bindparam("error_"))
)
REOPEN = (
    call.update()
    .where(
        call.c.fingerprint == sa.bindparam("fingerprint_"),
        IS_ANSWERED,
        # What this task has paid for since its last clear stays: a retry must not pay for it once more.
        sa.not_(
            sa.and_(
                call.c.dag_id == sa.bindparam("dag"),
                call.c.run_id == sa.bindparam("run"),
                call.c.task_id == sa.bindparam("task"),
                call.c.try_number >= sa.bindparam("first_try"),
            )
        ),
    )
    .values(state=REOPENED)
)


class Writes:
    """The writes of one ledger object.

    Lock order on PostgreSQL, which avoids deadlocks: claims first, in the order of their keys; then the attempts that
    end, in the order of their ids; then accounts, and then daily sums, each in the order of their ids. Everything else
    uses SKIP LOCKED. So an insert that waits for the holder of a claim holds only claims that sort before it, and a
    transaction that holds an account waits for accounts and daily sums only.

    Args:
        dialect: `sqlite` or `postgresql`.
        holder: Id of the ledger object, in the rows of its live attempts.
        lease_ms: How long an attempt belongs to it without a renewal.
        policy: Which prompts are kept.
        accounts: The budgets' accounts.

    Attributes:
        warnings: Budgets' warnings of the last transaction, to be passed on once it is committed.
    """

    def __init__(
        self, *, dialect: str, holder: str, lease_ms: int, policy: PayloadPolicy, accounts: Accounts
    ) -> None:
        self._dialect, self._holder, self._lease_ms, self._policy = dialect, holder, lease_ms, policy
        self._accounts = accounts
        self.warnings: list[BudgetWarning] = []
        self._ids: dict[int, str] = {}  # of the rows that a group inserts, by the identity of their records
        self._insert_call = _insert_call_statement(dialect)
        self._upsert_payload = _upsert_payload_statement(dialect)
        self._upsert_sighting = _upsert_sighting_statement(dialect)

    def transactions(self, batch: Sequence[Write]) -> list[Sequence[Write]]:
        """Split a group into transactions.

        On PostgreSQL, attempts are opened in a transaction of their own: it may wait for claims, and settlements must
        not wait with it. On SQLite, where nothing else writes meanwhile, all share one commit.
        """
        if self._dialect == "sqlite":
            return [batch]
        parts = (
            [w for w in batch if not isinstance(w, NewAttempt)],
            [w for w in batch if isinstance(w, NewAttempt)],
        )
        return [part for part in parts if part]

    def apply(self, connection: sa.Connection, now: int, batch: Sequence[Write]) -> list[Any]:
        """Make the changes of a group within the caller's transaction.

        Args:
            connection: In a write transaction.
            now: The database's clock, in milliseconds.
            batch: The records.

        Returns:
            One outcome per record: see Ledger.open for a NewAttempt, None for the others.

        Raises:
            MissingAccounts: Accounts have to be made first, and the transaction done again.
        """
        by_kind: dict[type, list[Any]] = {}
        for write in batch:
            by_kind.setdefault(type(write), []).append(write)
        settled, failed = by_kind.get(Settlement, []), by_kind.get(Failure, [])
        bookings = Bookings()
        # The calls that end are locked before the first of them is changed.
        bookings.read(connection, sorted({write.attempt_id for write in (*settled, *failed)}))
        self._settle(connection, now, settled, bookings)
        self._fail(connection, now, failed, bookings)
        self._keep_prompts(connection, by_kind.get(PromptToKeep, []))
        self._record_invalid_answers(connection, by_kind.get(InvalidAnswer, []))
        self._reopen(connection, by_kind.get(Reopening, []))
        self._record_sightings(connection, by_kind.get(Sighting, []))
        self._record_savings(connection, now, by_kind.get(Saving, []), bookings)
        outcomes = self._open(connection, now, by_kind.get(NewAttempt, []), bookings)
        # Last, by the lock order. All calls of a budget share its account, so it is locked only until the commit.
        refused = self._book(connection, now, bookings)
        # `_open` keeps the order of the attempts, so each write takes the next outcome.
        opened = iter(
            refused.get(outcome.attempt_id, outcome) if isinstance(outcome, OpenedAttempt) else outcome
            for outcome in outcomes
        )
        return [next(opened) if isinstance(write, NewAttempt) else None for write in batch]

    def renew(self, connection: sa.Connection, now: int) -> None:
        """Renew the leases of our open attempts, and book those that other processes left behind.

        An attempt is booked one lease after its lease has ended, not at once: after an outage of the database its
        process may be alive and has the time to renew it.
        """
        bookings = Bookings()
        connection.execute(RENEW, {"held_by": self._holder, "until": now + self._lease_ms})
        self._expire(connection, now, OVERDUE, {"before": now - self._lease_ms}, bookings)
        self._book(connection, now, bookings)

    def id_of(self, write: NewAttempt | Saving) -> str | None:
        """Return the id of the row that a record of the present group inserts; None before it was tried."""
        return self._ids.get(id(write))

    def forget_ids(self) -> None:
        """Forget the ids of a group that has been written, or never will be."""
        self._ids = {}

    def _new_id(self, write: NewAttempt | Saving, now: int) -> str:
        """Return the id of the row that a record inserts.

        It stays the same while the group is tried again: if a commit was not confirmed, the row may be there.
        """
        return self._ids.setdefault(id(write), new_id(now, len(self._ids)))

    def _book(self, connection: sa.Connection, now: int, bookings: Bookings) -> dict[str, BudgetRefusal]:
        """Change accounts and daily sums, and delete the attempts that the accounts have no room for."""
        refused, self.warnings = self._accounts.move(connection, now, bookings)
        for chunk in chunks(sorted(refused)):
            connection.execute(WITHDRAW, {"attempts": chunk})
        bookings.days.write(connection)
        return refused

    def _expire(
        self,
        connection: sa.Connection,
        now: int,
        overdue: Any,
        which: dict[str, Any],
        bookings: Bookings,
    ) -> set[str]:
        """Book attempts at their ceiling, since it can't be proved that they were not billed; return their ids."""
        rows = connection.execute(overdue, which).all()
        for row in rows:
            bookings.remember(row)
            bookings.end(row.id, UNPROVEN)
        for chunk in chunks([row.id for row in rows]):
            connection.execute(EXPIRE, {"attempts": chunk, "now": now})
        return {row.id for row in rows}

    def _settle(
        self, connection: sa.Connection, now: int, settled: Sequence[Settlement], bookings: Bookings
    ) -> None:
        # An attempt that was pruned meanwhile stays booked at its ceiling. Its reply has no row to belong to.
        if not (settled := [s for s in settled if s.attempt_id in bookings.booked_calls]):
            return
        for s in settled:
            bookings.settle(s.attempt_id, s.cost_micro_usd, tokens_of(s.usage))
        connection.execute(
            SETTLE,
            [
                {
                    "attempt": s.attempt_id,
                    "now": now,
                    "latency_ms_": s.latency_ms,
                    "stop_reason_": storable(s.stop_reason),
                    "uncached": s.usage.uncached_tokens,
                    "output": s.usage.output_tokens,
                    "cache_read": s.usage.cache_read_tokens,
                    "write_5m": s.usage.cache_write_5m_tokens,
                    "write_1h": s.usage.cache_write_1h_tokens,
                    "cost": s.cost_micro_usd,
                }
                for s in settled
            ],
        )
        connection.execute(
            self._upsert_payload,
            [
                {
                    "call_id": s.attempt_id,
                    "reply": s.reply,
                    "prompt": pack_prompt(s.prompt)
                    if self._policy.keeps(s.fingerprint, error=False)
                    else None,
                }
                for s in settled
            ],
        )

    def _fail(
        self, connection: sa.Connection, now: int, failed: Sequence[Failure], bookings: Bookings
    ) -> None:
        # Not an attempt that was never inserted, because its opening could not be committed, or that was pruned.
        if not (failed := [f for f in failed if f.attempt_id in bookings.booked_calls]):
            return
        for f in failed:
            bookings.end(f.attempt_id, UNPROVEN if f.billed else FAILED)
        connection.execute(
            FAIL,
            [
                {
                    "attempt": f.attempt_id,
                    "now": now,
                    "state_": UNPROVEN if f.billed else FAILED,
                    "error_class_": f.error_class,
                    "error_": storable(f.error),
                }
                for f in failed
            ],
        )
        if kept := [
            {"call_id": f.attempt_id, "prompt": pack_prompt(f.prompt), "reply": None}
            for f in failed
            if f.prompt is not None and self._policy.keeps(f.fingerprint, error=True)
        ]:
            connection.execute(self._upsert_payload, kept)

    def _keep_prompts(self, connection: sa.Connection, kept: Sequence[PromptToKeep]) -> None:
        if kept := [k for k in kept if self._policy.keeps(k.fingerprint, error=True)]:
            connection.execute(
                KEEP_PROMPT, [{"attempt": k.attempt_id, "prompt_": pack_prompt(k.prompt)} for k in kept]
            )

    def _record_invalid_answers(self, connection: sa.Connection, complained: Sequence[InvalidAnswer]) -> None:
        if complained:
            connection.execute(
                RECORD_INVALID_ANSWER,
                [
                    {"attempt": c.attempt_id, "error_class_": c.error_class, "error_": storable(c.error)}
                    for c in sorted(complained, key=lambda c: c.attempt_id)
                ],
            )

    def _reopen(self, connection: sa.Connection, reopened: Sequence[Reopening]) -> None:
        # In a fixed order, as wherever several rows are locked: otherwise two groups could deadlock.
        for reopening in sorted(reopened, key=lambda r: r.fingerprint):
            scope = reopening.scope
            connection.execute(
                REOPEN,
                {
                    "fingerprint_": reopening.fingerprint,
                    "dag": scope.dag_id,
                    "run": scope.run_id,
                    "task": scope.task_id,
                    "first_try": scope.first_try,
                },
            )

    def _record_sightings(self, connection: sa.Connection, sightings: Sequence[Sighting]) -> None:
        if latest := {s.sighting: s.fingerprint for s in sightings}:
            # Sorted for the same reason as in `_reopen`.
            rows = [{"sighting": s, "fingerprint": latest[s]} for s in sorted(latest)]
            connection.execute(self._upsert_sighting, rows)

    def _record_savings(
        self, connection: sa.Connection, now: int, savings: Sequence[Saving], bookings: Bookings
    ) -> None:
        rows = [
            _saving_row(one, self._new_id(one, now), now)
            for one in savings
            if one.reused or one.routed_micro_usd
        ]
        if not rows:
            return
        known = set(connection.scalars(KEPT_SAVINGS, {"ids": [row["id"] for row in rows]}))
        if new := [row for row in rows if row["id"] not in known]:
            connection.execute(saving.insert(), new)
            for row in new:
                bookings.days.add(day_of_saving(row), sums_of_saving(row))

    def _open(
        self, connection: sa.Connection, now: int, attempts: Sequence[NewAttempt], bookings: Bookings
    ) -> list[OpenedAttempt | SettledReply | ClaimHeld]:
        """Claim the keys of attempts and ask for their reservations; `_book` may still refuse them."""
        if not attempts:
            return []
        if self._accounts.is_short:
            # A budget needs what killed processes have reserved, as soon as their leases have ended.
            self._expire(connection, now, OVERDUE_RESERVED, {"before": now}, bookings)
        # By the identity of the scope: the attempts of a task share one object.
        by_scope = self._accounts.budgets_of(connection, now, (attempt.scope for attempt in attempts))
        budgets = [by_scope[id(attempt.scope)] for attempt in attempts]
        rows = [self._row(attempt, now, its) for attempt, its in zip(attempts, budgets, strict=True)]
        # Before the claims: a late reply holds no claim, so the insert would succeed and its request be paid again.
        late = self._late_replies(connection, rows)
        unpaid = [row for row in rows if row["claim"] not in late]
        holders = self._claim(connection, unpaid)
        # A claim whose lease has ended is free: book its attempt as unproven, and claim those keys once more.
        if overdue := sorted(h.id for h in holders.values() if h.state == OPEN and h.lease_until_ms < now):
            expired: set[str] = set()
            for chunk in chunks(overdue):
                which = {"attempts": chunk, "before": now}
                expired |= self._expire(connection, now, OVERDUE_OF, which, bookings)
            # Not the keys whose attempts another transaction is booking now: each could wait for the other's keys.
            again = [row for row in unpaid if (h := holders.get(row["claim"])) and h.id in expired]
            holders |= self._claim(connection, again)
        replies = {
            row.id: SettledReply(*row[:5])
            for chunk in chunks([h.id for h in holders.values() if h.state == SETTLED])
            for row in connection.execute(BY_ID, {"ids": chunk})
        }
        outcomes = [_outcome(row, late, holders, replies) for row in rows]
        for attempt, row, its, outcome in zip(attempts, rows, budgets, outcomes, strict=True):
            # If the commit of an earlier try was not confirmed, the attempt was opened then and has its reservation.
            if isinstance(outcome, OpenedAttempt) and holders[row["claim"]].opened_ms == now:
                bookings.reserve(outcome.attempt_id, attempt.ceiling_micro_usd, its)
        return outcomes

    def _late_replies(
        self, connection: sa.Connection, rows: Sequence[dict[str, Any]]
    ) -> dict[str, SettledReply]:
        """Find replies that came after their lease had ended: paid, though no attempt holds the claim."""
        found: list[Any] = []
        for chunk in chunks([row["fingerprint"] for row in rows]):
            found += connection.execute(LATE_REPLIES, {"fingerprints": chunk}).all()
        return newest(found, "claim")

    def _claim(self, connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Insert the attempts whose claim is free; return who holds each claim now.

        In the order of the claims: see the lock order in the class.
        """
        if not rows:
            return {}
        connection.execute(self._insert_call, sorted(rows, key=lambda row: row["claim"]))
        return {
            holder.claim: holder
            for chunk in chunks([row["claim"] for row in rows])
            for holder in connection.execute(HOLDERS, {"claims": chunk})
        }

    def _row(self, attempt: NewAttempt, now: int, budgets: ScopeBudgets) -> dict[str, Any]:
        scope = attempt.scope
        return {
            "id": self._new_id(attempt, now),
            "fingerprint": attempt.fingerprint,
            "claim": scope.claim(attempt.fingerprint, attempt.reuse),
            "state": OPEN,
            "holder": self._holder,
            "lease_until_ms": now + self._lease_ms,
            "purpose": attempt.purpose,
            "parent": attempt.parent,
            "item_id": storable(attempt.item_id),
            "connection_id": storable(scope.connection_id),
            "dag_id": storable(scope.dag_id),
            "run_id": storable(scope.run_id),
            "task_id": storable(scope.task_id),
            "map_index": scope.map_index,
            "try_number": scope.try_number,
            "owner": storable(scope.owner),
            "tags": storable(scope.tags),
            "trace_id": scope.trace_id,
            "model": storable(attempt.model),
            "version": storable(attempt.version) or None,
            "family": attempt.family or None,
            "ceiling_tokens": attempt.ceiling_tokens,
            "ceiling_micro_usd": attempt.ceiling_micro_usd,
            "opened_ms": now,
            "accounts": budgets.account_ids,
        }


def _outcome(
    row: dict[str, Any],
    late: dict[str, SettledReply],
    holders: dict[str, Any],
    replies: dict[str, SettledReply],
) -> OpenedAttempt | SettledReply | ClaimHeld:
    """Return what became of one attempt: opened, paid already, or held by another."""
    if reply := late.get(row["claim"]):
        return reply
    holder = holders.get(row["claim"])
    if holder is None:  # it ended between the insert and the select
        return ClaimHeld("")
    if holder.id == row["id"]:
        return OpenedAttempt(row["id"])
    return replies.get(holder.id) or ClaimHeld(holder.holder)


def _saving_row(one: Saving, its_id: str, now: int) -> dict[str, Any]:
    scope = one.scope
    return {
        "id": its_id,
        "dag_id": storable(scope.dag_id),
        "run_id": storable(scope.run_id),
        "task_id": storable(scope.task_id),
        "map_index": scope.map_index,
        "try_number": scope.try_number,
        "connection_id": storable(scope.connection_id),
        "owner": storable(scope.owner),
        "tags": storable(scope.tags),
        "model": storable(one.model),
        "version": storable(one.version) or None,
        "at_ms": now,
        "reused": one.reused,
        "reused_micro_usd": one.reused_micro_usd,
        "routed_micro_usd": one.routed_micro_usd,
    }


def _insert_call_statement(dialect: str) -> Any:
    """Insert attempts, except those whose claim is held."""
    return insert(dialect, call).on_conflict_do_nothing()


def _upsert_payload_statement(dialect: str) -> Any:
    """Store prompt and reply; a reply that comes late keeps the prompt that was stored before."""
    upsert = insert(dialect, payload)
    return upsert.on_conflict_do_update(
        index_elements=[payload.c.call_id],
        set_={
            "reply": sa.func.coalesce(upsert.excluded.reply, payload.c.reply),
            "prompt": sa.func.coalesce(upsert.excluded.prompt, payload.c.prompt),
        },
    )


def _upsert_sighting_statement(dialect: str) -> Any:
    """Store the request that a document led to; the latest one counts."""
    upsert = insert(dialect, document)
    return upsert.on_conflict_do_update(
        index_elements=[document.c.sighting], set_={"fingerprint": upsert.excluded.fingerprint}
    )
