"""Queries: settled replies that may be reused, and what past calls took, for estimates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from airflow_llm_provider.ledger.daily import DAY_MS
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.records import CallScope, Reuse, SettledReply, ms_of
from airflow_llm_provider.ledger.schema import (
    IS_ANSWERED,
    IS_LIVE,
    IS_PAID,
    LATE,
    call,
    daily,
    document,
    payload,
)
from airflow_llm_provider.pricing import Usage

_MAX_PAST_CALLS = 1_000
_USAGE = [call.c[name] for name in Usage.__dataclass_fields__]

# The attempts that hold claims now: open or settled.
HOLDERS = sa.select(
    call.c.id, call.c.claim, call.c.state, call.c.lease_until_ms, call.c.holder, call.c.opened_ms
).where(call.c.claim.in_(sa.bindparam("claims", expanding=True)), IS_LIVE)
SIGHTED = sa.select(document.c.sighting, document.c.fingerprint).where(
    document.c.sighting.in_(sa.bindparam("sightings", expanding=True))
)

# The columns are in the order of SettledReply's fields. Not sorted by the database: that would copy the replies.
_REPLY = sa.select(
    call.c.id,
    call.c.fingerprint,
    payload.c.reply,
    call.c.cost_micro_usd,
    call.c.latency_ms,
    call.c.closed_ms,
    call.c.claim,
).join_from(call, payload, call.c.id == payload.c.call_id)
_BY_FINGERPRINT = _REPLY.where(
    call.c.fingerprint.in_(sa.bindparam("fingerprints", expanding=True)), IS_ANSWERED
)
BY_ID = _REPLY.where(call.c.id.in_(sa.bindparam("ids", expanding=True)))
LATE_REPLIES = _BY_FINGERPRINT.where(call.c.state == LATE)


def _is_of(column: sa.Column[str], name: str) -> sa.ColumnElement[bool]:
    # With the plain column SQLite would read all calls of the run by the index call_run; the concatenation keeps it
    # to the index of fingerprints.
    return column + "" == sa.bindparam(name)


_REPLIES = {
    "always": _BY_FINGERPRINT,
    "run": _BY_FINGERPRINT.where(_is_of(call.c.dag_id, "dag"), _is_of(call.c.run_id, "run")),
    "never": _BY_FINGERPRINT.where(call.c.claim.in_(sa.bindparam("claims", expanding=True))),
}


@dataclass(frozen=True, slots=True)
class Lookup:
    """A question for a settled reply.

    Attributes:
        key: A request's fingerprint, or a document's sighting.
        by: Which of the two it is.
        scope: The task instance that asks.
        reuse: Whose replies it may take.
    """

    key: str
    by: Literal["fingerprint", "sighting"]
    scope: CallScope
    reuse: Reuse


def look_up(connection: sa.Connection, batch: Sequence[Lookup]) -> list[SettledReply | None]:
    """Return the reply to each lookup, None where there is none, with a few statements for all."""
    found: list[SettledReply | None] = [None] * len(batch)
    # All lookups of one task share scope and reuse, so there is one group, seldom two. Scopes are compared by
    # identity: comparing those of ten thousand lookups by value takes as long as the queries.
    groups: dict[tuple[int, Reuse], list[int]] = {}
    for index, lookup in enumerate(batch):
        groups.setdefault((id(lookup.scope), lookup.reuse), []).append(index)
    for (_, reuse), indexes in groups.items():
        scope = batch[indexes[0]].scope
        sightings = [batch[i].key for i in indexes if batch[i].by == "sighting"]
        sighted = _sighted(connection, sightings)
        asked = {i: sighted.get(batch[i].key) if batch[i].by == "sighting" else batch[i].key for i in indexes}
        fingerprints = list({fingerprint for fingerprint in asked.values() if fingerprint})
        replies = _replies_to(connection, scope, reuse, fingerprints)
        for index, fingerprint in asked.items():
            found[index] = replies.get(fingerprint or "")
    return found


def newest(rows: Sequence[Any], key: str = "fingerprint") -> dict[str, SettledReply]:
    """Return the newest reply for each fingerprint, or for each claim if `key` is "claim"."""
    best: dict[str, Any] = {}
    for row in rows:
        known = best.get(name := getattr(row, key))
        if known is None or known.closed_ms <= row.closed_ms:
            best[name] = row
    return {name: SettledReply(*row[:5]) for name, row in best.items()}


def chunks(keys: Sequence[str], size: int = 512) -> Iterator[Sequence[str]]:
    """Cut `keys` into pieces: old builds of SQLite take 999 variables per statement, and more are not faster."""
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _sighted(connection: sa.Connection, sightings: Sequence[str]) -> dict[str, str]:
    return {
        row.sighting: row.fingerprint
        for chunk in chunks(sightings)
        for row in connection.execute(SIGHTED, {"sightings": chunk})
    }


def _replies_to(
    connection: sa.Connection, scope: CallScope, reuse: Reuse, fingerprints: Sequence[str]
) -> dict[str, SettledReply]:
    replies: dict[str, SettledReply] = {}
    size = 256 if reuse == "never" else 512  # `never` sends two variables per fingerprint
    for chunk in chunks(fingerprints, size):
        parameters: dict[str, Any] = {"fingerprints": chunk}
        if reuse == "run":
            parameters |= {"dag": scope.dag_id, "run": scope.run_id}
        elif reuse == "never":
            parameters |= {"claims": [scope.claim(fingerprint, reuse) for fingerprint in chunk]}
        replies |= newest(connection.execute(_REPLIES[reuse], parameters).all())
    return replies


def missing_since_ms(connection: sa.Connection, call_id: str) -> int | None:
    """Return since when a ledger lacks calls, if it does not have a certain one; in milliseconds since 1970.

    Args:
        connection: Of the ledger.
        call_id: The call.

    Returns:
        None if it has the call, or had it before a pruning; 0 if it has no call before it.
    """
    if connection.scalar(sa.select(call.c.id).where(call.c.id == call_id)) is not None:
        return None
    was_pruned = sa.select(daily.c.id).where(daily.c.is_pruned, daily.c.day == ms_of(call_id) // DAY_MS)
    if connection.scalar(was_pruned.limit(1)) is not None:
        return None
    before = sa.select(call.c.opened_ms).where(call.c.id < call_id).order_by(call.c.id.desc()).limit(1)
    return int(connection.scalar(before) or 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PastCall:
    """A call that was paid and answered.

    Attributes:
        purpose: What it was for: an answer, a repair …
        model: Id of the model.
        ceiling_tokens: The most input tokens that it could have, as known before it was sent.
        usage: Its tokens.
        cost_micro_usd: What it cost; None when its model had no known price.
        latency_ms: How long the API took.
    """

    purpose: str
    model: str
    ceiling_tokens: int
    usage: Usage
    cost_micro_usd: int | None
    latency_ms: int


def past_calls(database: Database, family: str, *, most: int = _MAX_PAST_CALLS) -> list[PastCall]:
    """Return the newest paid calls of a family, at most `most`."""
    query = (
        sa.select(
            call.c.purpose,
            call.c.model,
            call.c.ceiling_tokens,
            call.c.cost_micro_usd,
            call.c.latency_ms,
            *_USAGE,
        )
        .where(call.c.family == family, IS_PAID)
        .order_by(call.c.opened_ms.desc())
        .limit(most)
    )
    with database.read() as connection:
        return [
            PastCall(
                purpose=row.purpose,
                model=row.model,
                ceiling_tokens=row.ceiling_tokens,
                usage=Usage(**{column.name: row._mapping[column.name] or 0 for column in _USAGE}),
                cost_micro_usd=row.cost_micro_usd,
                latency_ms=row.latency_ms or 0,
            )
            for row in connection.execute(query)
        ]
