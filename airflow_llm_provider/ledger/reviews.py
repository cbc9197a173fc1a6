"""Reviews: what a person is shown, stored with its hash before it is shown, and what was decided."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.errors import ChangedSinceShown
from airflow_llm_provider.ledger.database import insert, storable
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.ledger.schema import review

# Status of a review. `invalid`: the edit does not validate; `passed`: nobody needed to be asked.
PENDING, APPROVED, MODIFIED, REJECTED = "pending", "approved", "modified", "rejected"
TIMED_OUT, INVALID, PASSED = "timed_out", "invalid", "passed"


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedQuestion:
    """A question to a person.

    Attributes:
        asked_hash: Hash of all that must not change while it is open.
        shown: The form, as JSON; None when nobody is asked.
        content: What is decided on, as JSON.
        why: Why a person is asked, or is not.
    """

    asked_hash: str
    shown: bytes | None
    content: bytes
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What was decided.

    Attributes:
        status: One of the module's constants.
        choice: The option that was taken; None for none.
        decided: The approved content, or the invalid edit, as JSON.
        decided_by: Who decided.
        feedback: What they wrote.
        decided_ms: When, in milliseconds since 1970, as Airflow says; None: when it is stored. What is stored lies
            between showing and storing, by the database's clock, whatever other clocks say.
    """

    status: str
    choice: str | None
    decided: bytes
    decided_by: str | None
    feedback: str
    decided_ms: int | None

    @property
    def is_final(self) -> bool:
        """Whether the task can go on with it: neither an invalid edit nor a timeout without an option."""
        return self.status == PASSED or (self.status != INVALID and self.choice is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredReview:
    """A review in the ledger.

    Attributes:
        first_try: The first try of the task since the clear in which it was asked.
        asked: The question.
        shown_ms: When Airflow began to show it, in milliseconds since 1970; 0 before that.
        verdict: None while the question is open.
    """

    first_try: int
    asked: AskedQuestion
    shown_ms: int
    verdict: Verdict | None


def digest(data: bytes) -> str:
    """Return the hash under which shown and decided bytes are stored, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def find(connection: sa.Connection, scope: CallScope, key: str) -> StoredReview | None:
    """Return the review `key` of a task instance, None if there is none.

    Raises:
        ChangedSinceShown: Its bytes do not match their hashes.
    """
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
    """Store a question before it is shown; return the review to show: the first version, if it has changed since.

    Attempts since the last clear share decisions: a retry asks nobody again, a clear does. If the question has
    changed since it was first asked, the first one is returned.

    Args:
        connection: In a write transaction.
        scope: The task instance.
        key: Tells apart the reviews of one task instance.
        asked: The question.
        frozen: After a clear, open the first question again even if it has changed.
    """
    known = find(connection, scope, key)
    if known is None or known.asked.shown is None:
        # A review without a form was never shown, so a question may take its place.
        connection.execute(review.delete().where(review.c.id == _id(scope, key)))
        first = insert(connection.dialect.name, review).values(**_columns(scope, key, asked), shown_ms=0)
        # Another process of the same task instance may have been faster.
        connection.execute(first.on_conflict_do_nothing())
    # Airflow 3.3 shows the first form of a task instance again, whatever it is given later. So the stored form is
    # opened again and not replaced.
    elif known.first_try != scope.first_try and (frozen or known.asked.asked_hash == asked.asked_hash):
        _update(connection, scope, key, first_try=scope.first_try, shown_ms=0, **_NOTHING_DECIDED)
    else:
        return known
    kept = find(connection, scope, key)
    assert kept is not None
    return kept


def store_shown(connection: sa.Connection, now_ms: int, scope: CallScope, key: str) -> None:
    """Store that Airflow shows the question from now on."""
    _update(connection, scope, key, shown_ms=now_ms)


def store_verdict(
    connection: sa.Connection, now_ms: int, scope: CallScope, key: str, verdict: Verdict
) -> Verdict:
    """Store what was decided; return it with the time that was stored."""
    shown_ms = connection.scalar(sa.select(review.c.shown_ms).where(review.c.id == _id(scope, key))) or 0
    said_ms = now_ms if verdict.decided_ms is None else verdict.decided_ms
    verdict = replace(verdict, decided_ms=min(max(said_ms, shown_ms), now_ms))
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
    return verdict


def store_not_asked(
    connection: sa.Connection, now_ms: int, scope: CallScope, key: str, asked: AskedQuestion
) -> StoredReview:
    """Store that nobody needed to be asked, and why; return an earlier decision if there is one since the clear."""
    known = find(connection, scope, key)
    if known and known.verdict and known.first_try == scope.first_try:
        return known
    if known is None or known.asked.shown is None:
        store_question(connection, scope, key, asked)
    else:  # it was shown before the clear: Airflow still has that form, so it is kept here, too
        _update(connection, scope, key, first_try=scope.first_try, shown_ms=now_ms, why=storable(asked.why))
    verdict = Verdict(
        status=PASSED, choice=None, decided=asked.content, decided_by=None, feedback="", decided_ms=now_ms
    )
    store_verdict(connection, now_ms, scope, key, verdict)
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
    # Without the number of the try: a retry, and a try after a clear, must find what was shown before.
    parts = (scope.dag_id, scope.run_id, scope.task_id, str(scope.map_index), key)
    return digest("\0".join(parts).encode())


def _unpacked(packed: bytes, expected: str) -> bytes:
    data = zlib.decompress(packed)
    if digest(data) != expected:
        raise ChangedSinceShown(
            "The review in the ledger was changed after it was stored, so it is not used. "
            "Start a new DAG run to ask again."
        )
    return data
