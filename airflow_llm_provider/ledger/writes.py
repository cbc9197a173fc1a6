"""What a batch of writes does to the tables, within one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.ledger import sql
from airflow_llm_provider.ledger.accounts import Accounts, BudgetWarning
from airflow_llm_provider.ledger.lookups import chunks, newest
from airflow_llm_provider.ledger.payloads import PayloadPolicy, pack_prompt
from airflow_llm_provider.ledger.posting import Bound, Posting
from airflow_llm_provider.ledger.records import (
    Answer,
    Busy,
    Complained,
    Entry,
    Failure,
    KeptPrompt,
    Opened,
    Refusal,
    Reopening,
    Settlement,
    Sighting,
    Write,
)
from airflow_llm_provider.ledger.schema import FAILED, OPEN, SETTLED, UNPROVEN
from airflow_llm_provider.ledger.sql import storable


class Writes:
    """The writes of one engine.

    holder: the engine's id, in the rows of its live attempts; lease_ms: how long they are its own.
    warnings: of budgets, from the last transaction; due when it is committed.

    So that writers on PostgreSQL never wait in a circle: opening waits for those who hold a key, and holds
    nothing meanwhile but the keys before it; the accounts come last, and who holds one waits for accounts only;
    all else waits for nobody who could be waiting.
    """

    def __init__(
        self, *, dialect: str, holder: str, lease_ms: int, policy: PayloadPolicy, accounts: Accounts
    ) -> None:
        self._dialect, self._holder, self._lease_ms, self._policy = dialect, holder, lease_ms, policy
        self._accounts = accounts
        self.warnings: list[BudgetWarning] = []
        self._insert_call = sql.insert_call(dialect)
        self._upsert_payload = sql.upsert_payload(dialect)
        self._upsert_sighting = sql.upsert_sighting(dialect)

    def transactions(self, batch: Sequence[Write]) -> list[Sequence[Write]]:
        """Split a batch: on PostgreSQL opening is a transaction of its own, on SQLite it shares the sync."""
        if self._dialect == "sqlite":
            return [batch]
        parts = [w for w in batch if not isinstance(w, Entry)], [w for w in batch if isinstance(w, Entry)]
        return [part for part in parts if part]

    def apply(self, connection: sa.Connection, now: int, batch: Sequence[Write]) -> list[Any]:
        """Do what `batch` says; return an outcome for each Entry and None for the others.

        Raises MissingAccounts where some have to be made first.
        """
        by_kind: dict[type, list[Any]] = {}
        for write in batch:
            by_kind.setdefault(type(write), []).append(write)
        settled, failed = by_kind.get(Settlement, []), by_kind.get(Failure, [])
        posting = Posting()
        posting.read(connection, sorted({write.attempt_id for write in (*settled, *failed)}))
        self._settle(connection, now, settled, posting)
        self._fail(connection, now, failed, posting)
        self._keep(connection, by_kind.get(KeptPrompt, []))
        self._complain(connection, by_kind.get(Complained, []))
        self._reopen(connection, by_kind.get(Reopening, []))
        self._sight(connection, by_kind.get(Sighting, []))
        outcomes = self._open(connection, now, by_kind.get(Entry, []), posting)
        refused = self._post(connection, posting)
        opened = iter(
            refused.get(outcome.attempt_id, outcome) if isinstance(outcome, Opened) else outcome
            for outcome in outcomes
        )
        return [next(opened) if isinstance(write, Entry) else None for write in batch]

    def renew(self, connection: sa.Connection, now: int) -> None:
        """Renew the leases of what this engine has in flight, and book what others left behind long ago.

        Only a lease's length after its end, so that a database that was away costs nobody an attempt that
        is still in flight.
        """
        posting = Posting()
        connection.execute(sql.RENEW, {"held_by": self._holder, "until": now + self._lease_ms})
        self._expire(connection, now, sql.OVERDUE, {"before": now - self._lease_ms}, posting)
        self._post(connection, posting)

    def _post(self, connection: sa.Connection, posting: Posting) -> dict[str, Refusal]:
        """Move the accounts, and withdraw what they have no room for."""
        refused, self.warnings = self._accounts.post(connection, posting)
        for chunk in chunks(sorted(refused)):
            connection.execute(sql.WITHDRAW, {"attempts": chunk})
        return refused

    def _expire(
        self, connection: sa.Connection, now: int, overdue: Any, which: dict[str, Any], posting: Posting
    ) -> None:
        """Book attempts at their ceiling: nobody can prove any more that they were not billed."""
        rows = connection.execute(overdue, which).all()
        for row in rows:
            posting.hold(row)
            posting.end(row.id, UNPROVEN)
        for chunk in chunks([row.id for row in rows]):
            connection.execute(sql.EXPIRE, {"attempts": chunk, "now": now})

    def _settle(
        self, connection: sa.Connection, now: int, settled: Sequence[Settlement], posting: Posting
    ) -> None:
        if not settled:
            return
        for s in settled:
            posting.settle(s.attempt_id, SETTLED, s.cost_micro_usd)
        connection.execute(
            sql.SETTLE,
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

    def _fail(self, connection: sa.Connection, now: int, failed: Sequence[Failure], posting: Posting) -> None:
        if not failed:
            return
        for f in failed:
            posting.end(f.attempt_id, UNPROVEN if f.billed else FAILED)
        connection.execute(
            sql.FAIL,
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

    def _keep(self, connection: sa.Connection, kept: Sequence[KeptPrompt]) -> None:
        if kept := [k for k in kept if self._policy.keeps(k.fingerprint, error=True)]:
            connection.execute(
                sql.KEEP, [{"attempt": k.attempt_id, "prompt_": pack_prompt(k.prompt)} for k in kept]
            )

    def _complain(self, connection: sa.Connection, complained: Sequence[Complained]) -> None:
        if complained:
            connection.execute(
                sql.COMPLAIN,
                [
                    {"attempt": c.attempt_id, "error_class_": c.error_class, "error_": storable(c.error)}
                    for c in sorted(complained, key=lambda c: c.attempt_id)
                ],
            )

    def _reopen(self, connection: sa.Connection, reopened: Sequence[Reopening]) -> None:
        for reopening in sorted(reopened, key=lambda r: r.fingerprint):
            scope = reopening.scope
            connection.execute(
                sql.REOPEN,
                {
                    "fingerprint_": reopening.fingerprint,
                    "dag": scope.dag_id,
                    "run": scope.run_id,
                    "task": scope.task_id,
                    "first_try": scope.first_try,
                },
            )

    def _sight(self, connection: sa.Connection, sightings: Sequence[Sighting]) -> None:
        if latest := {s.sighting: s.fingerprint for s in sightings}:
            rows = [{"sighting": s, "fingerprint": latest[s]} for s in sorted(latest)]
            connection.execute(self._upsert_sighting, rows)

    def _open(
        self, connection: sa.Connection, now: int, entries: Sequence[Entry], posting: Posting
    ) -> list[Opened | Answer | Busy]:
        if not entries:
            return []
        if (
            self._accounts.is_short
        ):  # what killed processes have reserved is needed, as soon as their leases end
            self._expire(connection, now, sql.OVERDUE_RESERVED, {"before": now}, posting)
        bounds = self._accounts.bind(connection, now, (entry.scope for entry in entries))
        bound = [bounds[id(entry.scope)] for entry in entries]
        rows = [self._row(entry, now, binds) for entry, binds in zip(entries, bound, strict=True)]
        late = self._late(connection, rows)
        wanted = [row for row in rows if row["claim"] not in late]
        holders = self._claimed(connection, wanted)
        if expired := {h.id for h in holders.values() if h.state == OPEN and h.lease_until_ms < now}:
            for chunk in chunks(sorted(expired)):
                self._expire(connection, now, sql.OVERDUE_OF, {"attempts": chunk, "before": now}, posting)
            again = [row for row in wanted if (h := holders.get(row["claim"])) and h.id in expired]
            holders |= self._claimed(connection, again)
        answers = {
            row.id: Answer(*row[:5])
            for chunk in chunks([h.id for h in holders.values() if h.state == SETTLED])
            for row in connection.execute(sql.BY_ID, {"ids": chunk})
        }
        outcomes = [_outcome(row, late, holders, answers) for row in rows]
        for entry, row, binds, outcome in zip(entries, rows, bound, outcomes, strict=True):
            # An attempt that was opened when its commit went unheard has its reservation.
            if isinstance(outcome, Opened) and holders[row["claim"]].opened_ms == now:
                posting.want(outcome.attempt_id, entry.ceiling_micro_usd, binds)
        return outcomes

    def _late(self, connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> dict[str, Answer]:
        """Find answers that came after their lease had ended: nobody holds their key, yet it is paid."""
        found: list[Any] = []
        for chunk in chunks([row["fingerprint"] for row in rows]):
            found += connection.execute(sql.LATE_ANSWERS, {"fingerprints": chunk}).all()
        return newest(found, "claim")

    def _claimed(self, connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Insert what can be inserted; return who holds each claim now."""
        if not rows:
            return {}
        connection.execute(self._insert_call, sorted(rows, key=lambda row: row["claim"]))
        return {
            holder.claim: holder
            for chunk in chunks([row["claim"] for row in rows])
            for holder in connection.execute(sql.HOLDERS, {"claims": chunk})
        }

    def _row(self, entry: Entry, now: int, bound: Bound) -> dict[str, Any]:
        scope = entry.scope
        return {
            "id": entry.id,
            "fingerprint": entry.fingerprint,
            "claim": scope.claim(entry.fingerprint, entry.reuse),
            "state": OPEN,
            "holder": self._holder,
            "lease_until_ms": now + self._lease_ms,
            "purpose": entry.purpose,
            "parent": entry.parent,
            "item_id": storable(entry.item_id),
            "connection_id": storable(scope.connection_id),
            "dag_id": storable(scope.dag_id),
            "run_id": storable(scope.run_id),
            "task_id": storable(scope.task_id),
            "map_index": scope.map_index,
            "try_number": scope.try_number,
            "owner": storable(scope.owner),
            "tags": storable(scope.tags),
            "trace_id": scope.trace_id,
            "model": storable(entry.model),
            "version": storable(entry.version) or None,
            "family": entry.family or None,
            "ceiling_tokens": entry.ceiling_tokens,
            "ceiling_micro_usd": entry.ceiling_micro_usd,
            "opened_ms": now,
            "accounts": bound.written,
        }


def _outcome(
    row: dict[str, Any], late: dict[str, Answer], holders: dict[str, Any], answers: dict[str, Answer]
) -> Opened | Answer | Busy:
    if answer := late.get(row["claim"]):
        return answer
    holder = holders.get(row["claim"])
    if holder is None:  # it let go between our two looks
        return Busy("")
    if holder.id == row["id"]:
        return Opened(row["id"])
    return answers.get(holder.id) or Busy(holder.holder)
