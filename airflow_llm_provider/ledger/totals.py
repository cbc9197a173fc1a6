"""What the ledger adds up to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.schema import IS_PAID, PAID, call


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """The calls in one state: how many, what they cost where that is known, how many have no known price."""

    state: str
    calls: int
    cost_micro_usd: int
    unpriced: int

    @property
    def is_paid(self) -> bool:
        """Tell whether these calls were paid and answered."""
        return self.state in PAID


def totals(database: Database, *, dag_id: str | None = None, run_id: str | None = None) -> dict[str, Sums]:
    """Return the sums by state, of all calls or of one DAG's or run's; states without calls are left out."""
    cost = call.c.cost_micro_usd
    query = sa.select(
        call.c.state,
        sa.func.count(),
        sa.func.coalesce(sa.func.sum(cost), 0),
        sa.func.count() - sa.func.count(cost),
    ).group_by(call.c.state)
    if dag_id is not None:
        query = query.where(call.c.dag_id == dag_id)
    if run_id is not None:
        query = query.where(call.c.run_id == run_id)
    with database.read() as connection:
        return {
            state: Sums(state=state, calls=calls, cost_micro_usd=int(cost_micro_usd), unpriced=unpriced)
            for state, calls, cost_micro_usd, unpriced in connection.execute(query.order_by(call.c.state))
        }


def complaints(
    database: Database, *, dag_id: str | None = None, run_id: str | None = None, most: int = 20
) -> list[dict[str, Any]]:
    """Return what was wrong with answers that were paid, the newest first: attempt, task, item, complaint."""
    columns = (call.c.id, call.c.dag_id, call.c.run_id, call.c.task_id, call.c.item_id)
    query = (
        sa.select(*columns, call.c.error_class, call.c.error)
        .where(IS_PAID, call.c.error_class.is_not(None))
        .order_by(call.c.id.desc())
        .limit(most)
    )
    if dag_id is not None:
        query = query.where(call.c.dag_id == dag_id)
    if run_id is not None:
        query = query.where(call.c.run_id == run_id)
    with database.read() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]
