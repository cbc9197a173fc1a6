"""Standing budgets: set, removed and shown, with what their meters have counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.ledger.budgets import Budget
from airflow_llm_provider.ledger.schema import account, budget

_COLUMNS = tuple(column.name for column in budget.columns)
_ALL = sa.select(budget).order_by(budget.c.name)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """What one meter has counted: paid or booked as unproven, and held by calls in flight."""

    label: str
    settled_micro_usd: int
    reserved_micro_usd: int


def standing_budgets(connection: sa.Connection) -> list[Budget]:
    """Return the standing budgets by name."""
    return [_budget(*row) for row in connection.execute(_ALL)]


@lru_cache(maxsize=256)  # every transaction that opens attempts reads them
def _budget(*values: Any) -> Budget:
    return Budget(**dict(zip(_COLUMNS, values, strict=True)))


def set_budget(connection: sa.Connection, new: Budget) -> None:
    """Set a standing budget, or change the one of its name; it binds from the next call on."""
    values = {name: getattr(new, name) for name in _COLUMNS}
    known = {one.name: one for one in standing_budgets(connection)}
    if new.name in known:
        connection.execute(budget.update().where(budget.c.name == new.name).values(values))
    else:
        connection.execute(budget.insert().values(values))
    bound = {one.applies_to for one in known.values() if one.kind == new.kind}
    if not bound & {"", new.applies_to}:
        # While nothing bound such meters they may have missed calls: they are made anew, by counting them.
        stale = (
            account.c.applies_to == new.applies_to if new.applies_to else account.c.applies_to.not_in(bound)
        )
        connection.execute(account.delete().where(account.c.kind == new.kind, stale))


def remove_budget(connection: sa.Connection, name: str) -> bool:
    """Remove a standing budget; tell whether there was one."""
    return bool(connection.execute(budget.delete().where(budget.c.name == name)).rowcount)


def counts(connection: sa.Connection, one: Budget, *, most: int = 5) -> Sequence[Count]:
    """Return what the latest meters of a budget have counted, the newest first."""
    query = sa.select(account).where(account.c.kind == one.kind)
    if one.applies_to:
        query = query.where(account.c.applies_to == one.applies_to)
    return [
        Count(
            label=row.label,
            settled_micro_usd=row.settled_micro_usd,
            reserved_micro_usd=row.reserved_micro_usd,
        )
        for row in connection.execute(query.order_by(account.c.opened_ms.desc()).limit(most))
    ]
