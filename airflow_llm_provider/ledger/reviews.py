"""Questions to a person: what each was shown, with its hash, before it was shown, and what was decided."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.errors import ChangedSinceShown
from airflow_llm_provider.ledger.database import insert, storable
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.ledger.schema import review

# Status of a question. `invalid`: an edit that may not go on; `passed`: nobody needed to be asked.
PENDING, APPROVED, MODIFIED, REJECTED = "pending", "approved", "modified", "rejected"
TIMED_OUT, INVALID, PASSED = "timed_out", "invalid", "passed"


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedQuestion:
    """A question as it is put.

    asked_hash: of all that must not change while it is open.
    shown: the form as JSON; None when nobody is asked. content: what is decided on, as JSON.
    why: why a person is asked, or is not.
    """

    asked_hash: str
    shown: bytes | None
    content: bytes
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What was decided: the option taken, and as JSON what goes on, or the edit that may not."""

    status: str
    choice: str | None
    decided: bytes
    decided_by: str | None
    feedback: str
    decided_ms: int

    @property
    def is_final(self) -> bool:
        """Whether it says what goes on, if anything does: no invalid edit, and no silence that means nothing."""
        return self.status == PASSED or (self.status != INVALID and self.choice is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredReview:
    """A question in the ledger; the verdict is None while it is open."""

    first_try: int
    asked: AskedQuestion
    shown_ms: int
    verdict: Verdict | None


def digest(data: bytes) -> str:
    """Return the hash that what was shown and decided is known by, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def find(connection: sa.Connection, scope: CallScope, key: str) -> StoredReview | None:
    """Return the task instance's question `key`; raises ChangedSinceShown when its bytes are not what they were."""
    row = connection.execute(sa.select(review).where(review.c.id == _id(scope, key))).one_or_none()
    if row is None:
        return None
    content = _unpacked(row.content, row.content_hash)
    verdict = None
    if row.status != PENDING:
        verdict = Verdict(
            status=row.status,
            choice=row.choice,
            decided=_unpacked(row.decided, row.decided_hash),
            decided_by=row.decided_by,
            feedback=row.feedback or "",
            decided_ms=row.decided_ms,
        )
    shown = None if row.shown is None else _unpacked(row.shown, row.shown_hash)
    return StoredReview(
        first_try=row.first_try,
        asked=AskedQuestion(asked_hash=row.asked_hash, shown=shown, content=content, why=row.why or ""),
        shown_ms=row.shown_ms,
        verdict=verdict,
    )


def store_question(
    connection: sa.Connection,
    scope: CallScope,
    key: str,
    asked: AskedQuestion,
    *,
    frozen: bool = False,
) -> StoredReview:
    """Keep a question before it is shown; return it as it must be shown, which is as it first was.

    What was decided since the task was last cleared is kept: a retry asks nobody again, a clear does. A question that
    is not the one that was first asked is returned as it was; only with `frozen` it is opened again as the first one.
    """
    known = find(connection, scope, key)
    if known is None or known.asked.shown is None:
        connection.execute(review.delete().where(review.c.id == _id(scope, key)))
        first = insert(connection.dialect.name, review).values(**_columns(scope, key, asked), shown_ms=0)
        # Another process of the task instance may have been faster.
        connection.execute(first.on_conflict_do_nothing())
    elif known.first_try != scope.first_try and (frozen or known.asked.asked_hash == asked.asked_hash):
        _update(connection, scope, key, first_try=scope.first_try, shown_ms=0, **_NOTHING_DECIDED)
    else:
        return known
    kept = find(connection, scope, key)
    assert kept is not None
    return kept


def store_shown(connection: sa.Connection, now_ms: int, scope: CallScope, key: str) -> None:
    """Write down that Airflow shows the question from now on."""
    _update(connection, scope, key, shown_ms=now_ms)


def store_verdict(connection: sa.Connection, scope: CallScope, key: str, verdict: Verdict) -> None:
    """Write down what was decided."""
    _update(
        connection,
        scope,
        key,
        status=verdict.status,
        choice=verdict.choice,
        decided=zlib.compress(verdict.decided),
        decided_hash=digest(verdict.decided),
        decided_by=verdict.decided_by,
        feedback=storable(verdict.feedback),
        decided_ms=verdict.decided_ms,
    )


def store_not_asked(
    connection: sa.Connection, now_ms: int, scope: CallScope, key: str, asked: AskedQuestion
) -> StoredReview:
    """Write down that nobody needed to be asked, and why; what a person decided in this going stands."""
    known = find(connection, scope, key)
    if known and known.verdict and known.first_try == scope.first_try:
        return known
    if known is None or known.asked.shown is None:
        store_question(connection, scope, key, asked)
    else:  # shown in an earlier going: Airflow still holds that form, so we do too
        _update(connection, scope, key, first_try=scope.first_try, shown_ms=now_ms, why=storable(asked.why))
    verdict = Verdict(
        status=PASSED, choice=None, decided=asked.content, decided_by=None, feedback="", decided_ms=now_ms
    )
    store_verdict(connection, scope, key, verdict)
    return StoredReview(first_try=scope.first_try, asked=asked, shown_ms=now_ms, verdict=verdict)


_NOTHING_DECIDED: dict[str, Any] = {
    "status": PENDING,
    **dict.fromkeys(("choice", "decided", "decided_hash", "decided_by", "feedback", "decided_ms")),
}


def _columns(scope: CallScope, key: str, asked: AskedQuestion) -> dict[str, Any]:
    return {
        "id": _id(scope, key),
        "dag_id": scope.dag_id,
        "run_id": scope.run_id,
        "task_id": scope.task_id,
        "map_index": scope.map_index,
        "first_try": scope.first_try,
        "asked_hash": asked.asked_hash,
        "shown": None if asked.shown is None else zlib.compress(asked.shown),
        "shown_hash": None if asked.shown is None else digest(asked.shown),
        "content": zlib.compress(asked.content),
        "content_hash": digest(asked.content),
        "why": storable(asked.why),
        **_NOTHING_DECIDED,
    }


def _update(connection: sa.Connection, scope: CallScope, key: str, **columns: Any) -> None:
    connection.execute(review.update().where(review.c.id == _id(scope, key)).values(**columns))


def _id(scope: CallScope, key: str) -> str:
    parts = (scope.dag_id, scope.run_id, scope.task_id, str(scope.map_index), key)
    return digest("\0".join(parts).encode())


def _unpacked(packed: bytes, expected: str) -> bytes:
    data = zlib.decompress(packed)
    if digest(data) != expected:
        raise ChangedSinceShown(
            "What the ledger kept of this review is not what was written there: ask anew."
        )
    return data
