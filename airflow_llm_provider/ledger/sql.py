"""The ledger's statements, built once: SQLAlchemy caches what it compiled of them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from airflow_llm_provider.ledger.schema import (
    LATE,
    OPEN,
    REOPENED,
    SETTLED,
    UNPROVEN,
    call,
    document,
    payload,
)

_ATTEMPT: sa.BindParameter[str] = sa.bindparam("attempt")

SETTLE = (
    call.update()
    .where(call.c.id == _ATTEMPT)
    .values(
        # A reply to an attempt whose lease had ended is still paid, still booked and still an answer.
        state=sa.case((call.c.state == OPEN, SETTLED), else_=LATE),
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
    .where(call.c.id == _ATTEMPT, call.c.state == OPEN)
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
EXPIRE = (
    call.update()
    .where(call.c.id == _ATTEMPT, call.c.state == OPEN, call.c.lease_until_ms < sa.bindparam("now"))
    .values(
        state=UNPROVEN,
        closed_ms=sa.bindparam("now"),
        cost_micro_usd=call.c.ceiling_micro_usd,
        error_class="LeaseExpired",
        error="Its process ended, or stalled, before a reply was recorded.",
    )
)
RENEW = (
    call.update()
    .where(call.c.holder == sa.bindparam("held_by"), call.c.state == OPEN)
    .values(lease_until_ms=sa.bindparam("until"))
)
KEEP = payload.update().where(payload.c.call_id == _ATTEMPT).values(prompt=sa.bindparam("prompt_"))
REOPEN = (
    call.update()
    .where(
        call.c.fingerprint == sa.bindparam("fingerprint_"),
        call.c.state.in_([SETTLED, LATE]),
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
HOLDERS = sa.select(call.c.id, call.c.claim, call.c.state, call.c.lease_until_ms, call.c.holder).where(
    call.c.claim.in_(sa.bindparam("claims", expanding=True)), call.c.state.in_([OPEN, SETTLED])
)
SIGHTED = sa.select(document.c.sighting, document.c.fingerprint).where(
    document.c.sighting.in_(sa.bindparam("sightings", expanding=True))
)

# In the order of records.Answer's fields; the newest answer of a fingerprint comes last, so that it is taken.
_ANSWER = sa.select(
    call.c.id, call.c.fingerprint, payload.c.reply, call.c.cost_micro_usd, call.c.latency_ms
).join_from(call, payload, call.c.id == payload.c.call_id)
_BY_FINGERPRINT = _ANSWER.where(
    call.c.fingerprint.in_(sa.bindparam("fingerprints", expanding=True)), call.c.state.in_([SETTLED, LATE])
).order_by(call.c.closed_ms)
BY_ID = _ANSWER.where(call.c.id.in_(sa.bindparam("ids", expanding=True)))
ANSWERED = {
    "always": _BY_FINGERPRINT,
    "run": _BY_FINGERPRINT.where(call.c.dag_id == sa.bindparam("dag"), call.c.run_id == sa.bindparam("run")),
    "never": _BY_FINGERPRINT.where(call.c.claim.in_(sa.bindparam("claims", expanding=True))),
}


def _insert(dialect: str, table: sa.Table) -> Any:
    return (sqlite.insert if dialect == "sqlite" else postgresql.insert)(table)


def insert_call(dialect: str) -> Any:
    """Insert attempts, passing over those whose claim is held."""
    return _insert(dialect, call).on_conflict_do_nothing()


def upsert_payload(dialect: str) -> Any:
    """Keep what was said; a reply that comes late joins the prompt that was kept before it."""
    insert = _insert(dialect, payload)
    return insert.on_conflict_do_update(
        index_elements=[payload.c.call_id],
        set_={
            "reply": sa.func.coalesce(insert.excluded.reply, payload.c.reply),
            "prompt": sa.func.coalesce(insert.excluded.prompt, payload.c.prompt),
        },
    )


def upsert_sighting(dialect: str) -> Any:
    """Note what a document in this state was asked; the latest question counts."""
    insert = _insert(dialect, document)
    return insert.on_conflict_do_update(
        index_elements=[document.c.sighting], set_={"fingerprint": insert.excluded.fingerprint}
    )
