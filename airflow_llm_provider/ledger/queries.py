"""Queries: replies that may be used again, and what past calls have taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.records import CallScope, Reuse, SettledReply
from airflow_llm_provider.ledger.schema import IS_ANSWERED, IS_LIVE, IS_PAID, LATE, call, document, payload
from airflow_llm_provider.pricing import Usage

_NEWEST = 1_000
_USAGE = [call.c[name] for name in Usage.__dataclass_fields__]

HOLDERS = sa.select(
    call.c.id, call.c.claim, call.c.state, call.c.lease_until_ms, call.c.holder, call.c.opened_ms
).where(call.c.claim.in_(sa.bindparam("claims", expanding=True)), IS_LIVE)
SIGHTED = sa.select(document.c.sighting, document.c.fingerprint).where(
    document.c.sighting.in_(sa.bindparam("sightings", expanding=True))
)

# In the order of records.SettledReply's fields. Unsorted: sorting would copy the replies about.
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


@dataclass(frozen=True, slots=True)
class Lookup:
    """Asks for the answer to a fingerprint, or to what a sighting was asked, that may be reused here."""

    key: str
    by: Literal["fingerprint", "sighting"]
    scope: CallScope
    reuse: Reuse


def look_up(connection: sa.Connection, batch: Sequence[Lookup]) -> list[SettledReply | None]:
    """Return the answer to each lookup, or None."""
    found: list[SettledReply | None] = [None] * len(batch)
    # All lookups of one task share scope and reuse, so this is one group, seldom two. By identity: comparing
    # the scopes of ten thousand lookups takes as long as finding the answers.
    groups: dict[tuple[int, Reuse], list[int]] = {}
    for index, lookup in enumerate(batch):
        groups.setdefault((id(lookup.scope), lookup.reuse), []).append(index)
    for (_, reuse), indexes in groups.items():
        scope = batch[indexes[0]].scope
        sightings = [batch[i].key for i in indexes if batch[i].by == "sighting"]
        sighted = _sighted(connection, sightings)
        asked = {i: sighted.get(batch[i].key) if batch[i].by == "sighting" else batch[i].key for i in indexes}
        fingerprints = list({fingerprint for fingerprint in asked.values() if fingerprint})
        answers = _answers(connection, scope, reuse, fingerprints)
        for index, fingerprint in asked.items():
            found[index] = answers.get(fingerprint or "")
    return found


def newest(rows: Sequence[Any], key: str = "fingerprint") -> dict[str, SettledReply]:
    """Return the newest answer for each fingerprint, or claim."""
    best: dict[str, Any] = {}
    for row in rows:
        known = best.get(name := getattr(row, key))
        if known is None or known.closed_ms <= row.closed_ms:
            best[name] = row
    return {name: SettledReply(*row[:5]) for name, row in best.items()}


def chunks(keys: Sequence[str], size: int = 512) -> Iterator[Sequence[str]]:
    """Cut `keys` into pieces that fit below the 999 variables of old SQLite builds, and are as fast as more."""
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _sighted(connection: sa.Connection, sightings: Sequence[str]) -> dict[str, str]:
    return {
        row.sighting: row.fingerprint
        for chunk in chunks(sightings)
        for row in connection.execute(SIGHTED, {"sightings": chunk})
    }


def _answers(
    connection: sa.Connection, scope: CallScope, reuse: Reuse, fingerprints: Sequence[str]
) -> dict[str, SettledReply]:
    answers: dict[str, SettledReply] = {}
    size = 256 if reuse == "never" else 512  # `never` sends two variables a fingerprint
    for chunk in chunks(fingerprints, size):
        parameters: dict[str, Any] = {"fingerprints": chunk}
        if reuse == "run":
            parameters |= {"dag": scope.dag_id, "run": scope.run_id}
        elif reuse == "never":
            parameters |= {"claims": [scope.claim(fingerprint, reuse) for fingerprint in chunk]}
        answers |= newest(connection.execute(ANSWERED[reuse], parameters).all())
    return answers


@dataclass(frozen=True, kw_only=True, slots=True)
class PastCall:
    """A call that was paid and answered.

    ceiling_tokens: the most input tokens it could have had, as its request knew before it was sent.
    """

    purpose: str
    model: str
    ceiling_tokens: int
    usage: Usage
    cost_micro_usd: int | None
    latency_ms: int


def past_calls(database: Database, family: str, *, most: int = _NEWEST) -> list[PastCall]:
    """Return the newest paid calls of a family, at most so many."""
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
