"""The ledger's statements, built once: SQLAlchemy caches what it compiled of them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from airflow_llm_provider.ledger.schema import (
    IS_ANSWERED,
    IS_LIVE,
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
        # A reply to an attempt whose lease had ended is still paid, still booked and still an answer. A write
        # is repeated when its commit went unheard, so what was settled stays what it is.
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
        error_class=None,
        error=None,
    )
)
FAIL = (
    call.update()
    # Also where the lease had ended: the proof that nothing was billed corrects what was booked for it.
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
    """Match rows that no other transaction is at work on, so that PostgreSQL never waits in a circle."""
    return call.c.id.in_(sa.select(call.c.id).where(*conditions).with_for_update(skip_locked=True))


EXPIRE = (
    call.update()
    .where(call.c.id.in_(sa.bindparam("attempts", expanding=True)))
    .values(
        state=UNPROVEN,
        closed_ms=sa.bindparam("now"),
        cost_micro_usd=call.c.ceiling_micro_usd,
        error_class="LeaseExpired",
        error="Its process ended, or stalled, before a reply was recorded.",
    )
)
# Attempts whose lease has ended: of all, of a few, of those that hold a reservation.
OVERDUE = (
    sa.select(call.c.id, call.c.state, call.c.accounts, call.c.ceiling_micro_usd, call.c.cost_micro_usd)
    .where(IS_OPEN, call.c.lease_until_ms < sa.bindparam("before"))
    .with_for_update(skip_locked=True)
)
OVERDUE_OF = OVERDUE.where(call.c.id.in_(sa.bindparam("attempts", expanding=True)))
OVERDUE_RESERVED = OVERDUE.where(call.c.accounts.is_not(None))
RENEW = (
    call.update()
    .where(_unlocked(call.c.holder == sa.bindparam("held_by"), IS_OPEN))
    .values(lease_until_ms=sa.bindparam("until"))
)
WITHDRAW = call.delete().where(call.c.id.in_(sa.bindparam("attempts", expanding=True)))
KEEP = payload.update().where(payload.c.call_id == _ATTEMPT).values(prompt=sa.bindparam("prompt_"))
COMPLAIN = (
    call.update()
    .where(_unlocked(call.c.id == _ATTEMPT))
    .values(error_class=sa.bindparam("error_class_"), error=sa.bindparam("error_"))
)
REOPEN = (
    call.update()
    .where(
        call.c.fingerprint == sa.bindparam("fingerprint_"),
        IS_ANSWERED,
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
HOLDERS = sa.select(
    call.c.id, call.c.claim, call.c.state, call.c.lease_until_ms, call.c.holder, call.c.opened_ms
).where(call.c.claim.in_(sa.bindparam("claims", expanding=True)), IS_LIVE)
SIGHTED = sa.select(document.c.sighting, document.c.fingerprint).where(
    document.c.sighting.in_(sa.bindparam("sightings", expanding=True))
)

# In the order of records.Answer's fields. Unsorted: sorting would copy the replies about.
_ANSWER = sa.select(
    call.c.id,
    call.c.fingerprint,
    payload.c.reply,
    call.c.cost_micro_usd,
    call.c.latency_ms,
    call.c.closed_ms,
    call.c.claim,
).join_from(call, payload, call.c.id == payload.c.call_id)
_BY_FINGERPRINT = _ANSWER.where(
    call.c.fingerprint.in_(sa.bindparam("fingerprints", expanding=True)), IS_ANSWERED
)
BY_ID = _ANSWER.where(call.c.id.in_(sa.bindparam("ids", expanding=True)))
LATE_ANSWERS = _BY_FINGERPRINT.where(call.c.state == LATE)


def _is_of(column: sa.Column[str], name: str) -> sa.ColumnElement[bool]:
    # Concatenated, so that SQLite finds the rows by fingerprint and not by reading all of a run's.
    return column + "" == sa.bindparam(name)


ANSWERED = {
    "always": _BY_FINGERPRINT,
    "run": _BY_FINGERPRINT.where(_is_of(call.c.dag_id, "dag"), _is_of(call.c.run_id, "run")),
    "never": _BY_FINGERPRINT.where(call.c.claim.in_(sa.bindparam("claims", expanding=True))),
}


def storable(text: str | None) -> str | None:
    """Replace what a text column can't hold: NUL on PostgreSQL, lone surrogates everywhere."""
    if text is None or (text.isascii() and "\0" not in text):
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def insert(dialect: str, table: sa.Table) -> Any:
    """Return the dialect's own insert, which knows conflicts."""
    return (sqlite.insert if dialect == "sqlite" else postgresql.insert)(table)


def insert_call(dialect: str) -> Any:
    """Insert attempts, passing over those whose claim is held."""
    return insert(dialect, call).on_conflict_do_nothing()


def upsert_payload(dialect: str) -> Any:
    """Keep what was said; a reply that comes late joins the prompt that was kept before it."""
    upsert = insert(dialect, payload)
    return upsert.on_conflict_do_update(
        index_elements=[payload.c.call_id],
        set_={
            "reply": sa.func.coalesce(upsert.excluded.reply, payload.c.reply),
            "prompt": sa.func.coalesce(upsert.excluded.prompt, payload.c.prompt),
        },
    )


def upsert_sighting(dialect: str) -> Any:
    """Note what a document in this state was asked; the latest question counts."""
    upsert = insert(dialect, document)
    return upsert.on_conflict_do_update(
        index_elements=[document.c.sighting], set_={"fingerprint": upsert.excluded.fingerprint}
    )


def insert_saving(dialect: str) -> Any:
    """Insert what a try saved, unless it is there already."""
    return insert(dialect, saving).on_conflict_do_nothing()
