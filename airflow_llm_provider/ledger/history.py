"""What calls of one family have taken so far: the experience that estimates rest on."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.schema import IS_PAID, call
from airflow_llm_provider.pricing import Usage

_NEWEST = 1_000
_USAGE = [call.c[name] for name in Usage.__dataclass_fields__]


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
