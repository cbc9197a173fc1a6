"""Daily sums: what each day has cost, by DAG, owner, tags, model and connection, kept when the calls are pruned.

A call counts for the day on which it was opened, by the database's clock, in UTC. Its sums change in the transaction
that changes the call. A pruning moves them to a row of the same day that is marked as pruned, in the transaction that
removes the call. So a row without the mark is the sum over the calls that are still there, a row with it the sum over
those that are not, and both together are what the day has cost. Rows are never removed: budgets and reports need them,
and there are only a few per day.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from airflow_llm_provider.ledger.database import insert
from airflow_llm_provider.ledger.schema import IS_OPEN, IS_PAID, PAID, UNPROVEN, call, daily, is_in
from airflow_llm_provider.pricing import Usage

DAY_MS = 86_400_000
TOKENS = tuple(Usage.__dataclass_fields__)
tokens_of = operator.attrgetter(*TOKENS)  # of a Usage
SAVINGS = ("reused", "reused_micro_usd", "routed_micro_usd")
SUMS = ("calls", "failed", "unproven", "unpriced", *TOKENS, "cost_micro_usd", "unproven_micro_usd", *SAVINGS)

Sums = tuple[int, ...]
"""One number for each of SUMS."""

NOTHING: Sums = (0,) * len(SUMS)
_NO_CALLS = (0,) * (len(SUMS) - len(SAVINGS))
_NO_TOKENS = (0,) * len(TOKENS)
_NO_SAVINGS = (0,) * len(SAVINGS)
_FAILED = tuple(int(name == "failed") for name in SUMS)


class Day(NamedTuple):
    """What a row adds up: a day and the columns of a call that it has in common with others."""

    day: int
    dag_id: str
    owner: str | None
    tags: str | None
    model: str
    connection_id: str
    is_pruned: bool = False


WHOSE = Day._fields[1:-1]
"""The columns that a call, a saving and a row of `daily` share."""

DAY_COLUMNS: tuple[sa.ColumnElement[Any], ...] = (
    (call.c.opened_ms // sa.literal_column(str(DAY_MS), sa.BigInteger)).label("day"),
    *(call.c[name] for name in WHOSE),
)
"""The first fields of a call's Day."""

CALL_COLUMNS = (
    call.c.id,
    call.c.state,
    call.c.cost_micro_usd,
    *(call.c[name] for name in TOKENS),
    *DAY_COLUMNS,
)
"""What `day_of` and `sums_of` need of a call."""


def day_of(row: Any) -> Day:
    """Return what a call is added to; `row` has CALL_COLUMNS."""
    return Day(*row[-len(DAY_COLUMNS) :])


def sums_of(row: Any) -> Sums:
    """Return what a call that has ended adds to its day; `row` has CALL_COLUMNS."""
    if row.state in PAID:
        return sums_of_paid(row.cost_micro_usd, [getattr(row, name) or 0 for name in TOKENS])
    return sums_of_unpaid(row.state, row.cost_micro_usd)


def sums_of_paid(cost_micro_usd: int | None, tokens: Sequence[int]) -> Sums:
    """Return what a paid call adds to its day.

    Args:
        cost_micro_usd: Its cost; None without a known price.
        tokens: In the order of TOKENS.
    """
    return (1, 0, 0, int(cost_micro_usd is None), *tokens, cost_micro_usd or 0, 0, *_NO_SAVINGS)


def sums_of_unpaid(state: str, cost_micro_usd: int | None) -> Sums:
    """Return what a call that has failed, or may have been billed without a reply, adds to its day."""
    if state == UNPROVEN:
        return (0, 0, 1, 0, *_NO_TOKENS, 0, cost_micro_usd or 0, *_NO_SAVINGS)
    return _FAILED


def day_of_saving(row: Mapping[str, Any]) -> Day:
    """Return what a saving is added to."""
    return Day(row["at_ms"] // DAY_MS, *(row[name] for name in WHOSE))


def sums_of_saving(row: Mapping[str, Any]) -> Sums:
    """Return what a saving adds to its day."""
    return (*_NO_CALLS, *(row[name] for name in SAVINGS))


class DailyChanges:
    """What one transaction adds to the daily sums and takes from them; written at its end, with one statement."""

    def __init__(self) -> None:
        self._added: dict[Day, list[Sums]] = {}
        self._taken: dict[Day, list[Sums]] = {}

    def add(self, day: Day, sums: Sums) -> None:
        """Add a call or a saving to a day."""
        self._added.setdefault(day, []).append(sums)

    def take(self, day: Day, sums: Sums) -> None:
        """Take back what a call or a saving was added with."""
        self._taken.setdefault(day, []).append(sums)

    def prune(self, day: Day, sums: Sums) -> None:
        """Move what a call or a saving was added with to the row that counts what was removed."""
        self.take(day, sums)
        self.add(day._replace(is_pruned=True), sums)

    def write(self, connection: sa.Connection) -> None:
        """Change the rows. Last in a transaction, after the accounts: see the lock order in `writes.Writes`."""
        changes = {day: self._change(day) for day in self._added.keys() | self._taken.keys()}
        rows = [
            {"id": _id(day), **day._asdict(), **dict(zip(SUMS, change, strict=True))}
            for day, change in changes.items()
            if any(change)
        ]
        if rows:
            # In the order of their ids, so that two transactions that change the same rows do not deadlock.
            connection.execute(_add(connection.dialect.name), sorted(rows, key=lambda row: str(row["id"])))

    def _change(self, day: Day) -> Sums:
        # Added up here, column by column: a group of commits has hundreds of calls, and few days.
        added, taken = (zip(NOTHING, *part.get(day, ()), strict=True) for part in (self._added, self._taken))
        return tuple(sum(plus) - sum(minus) for plus, minus in zip(added, taken, strict=True))


def pruned(column: sa.Column[int], condition: sa.ColumnElement[bool] | None) -> sa.ColumnElement[int]:
    """Return the query for a sum over what removed calls have cost.

    Args:
        column: Of `daily`.
        condition: Which rows of it; None for none.
    """
    if condition is None:
        return sa.literal(0)
    total = sa.func.coalesce(sa.func.sum(column), 0)
    return sa.select(total).where(daily.c.is_pruned, condition).scalar_subquery()


def differing_days(connection: sa.Connection) -> list[int]:
    """Return the days whose sums are not those of their calls; none in a ledger that is whole."""
    amount, is_unproven = call.c.cost_micro_usd, is_in(UNPROVEN)
    day = DAY_COLUMNS[0]
    counted = (sa.case((IS_PAID, 1), else_=0), sa.case((IS_PAID, amount)), sa.case((is_unproven, amount)))
    of_calls = sa.select(day, *(sa.func.coalesce(sa.func.sum(one), 0) for one in counted))
    kept = (daily.c.calls, daily.c.cost_micro_usd, daily.c.unproven_micro_usd)
    of_days = sa.select(daily.c.day, *(sa.func.sum(one) for one in kept)).where(~daily.c.is_pruned)
    found = _by_day(connection.execute(of_calls.where(~IS_OPEN).group_by(day)))
    stated = _by_day(connection.execute(of_days.group_by(daily.c.day)))
    return sorted(one for one in found.keys() | stated.keys() if found.get(one) != stated.get(one))


def _by_day(rows: Iterable[Any]) -> dict[int, tuple[int, ...]]:
    """Return the sums of each day that has any."""
    sums = {int(day): tuple(map(int, amounts)) for day, *amounts in rows}
    return {day: amounts for day, amounts in sums.items() if any(amounts)}


@lru_cache(maxsize=4096)
def _id(day: Day) -> str:
    """Return the id of a row: a hash, because owner and tags may be NULL, and tags have any length."""
    return hashlib.sha256(json.dumps(day).encode()).hexdigest()[:32]


@lru_cache
def _add(dialect: str) -> Any:
    """Insert a row, or add to the one that is there."""
    new = insert(dialect, daily)
    return new.on_conflict_do_update(
        index_elements=[daily.c.id], set_={name: daily.c[name] + new.excluded[name] for name in SUMS}
    )
