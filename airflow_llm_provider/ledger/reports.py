"""What calls cost, added up by whatever a call is known by."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, get_args

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.schema import FAILED, IS_PAID, OPEN, PAID, UNPROVEN, call, is_in, saving
from airflow_llm_provider.pricing import RateCard, Usage, rate_card

By = Literal["document", "task", "run", "dag", "owner", "tag", "model", "version", "day", "purpose"]
BY: tuple[By, ...] = get_args(By)
_DAY_MS = 86_400_000
_PICO = 1_000_000  # to the micro
_TOKENS = tuple(Usage.__dataclass_fields__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What some calls cost, in micro-USD; all of it adds up but the share.

    calls: paid and answered; `unpriced` of them have no known price, and are in no amount.
    unproven: may have been paid without an answer; `unproven_micro_usd` is the most that they cost.
    failed: were not billed. open: in flight, or left behind less than two leases ago.
    cost_micro_usd: of the paid ones.
    cached_pico_usd: saved by prompt caching: what the tokens read cost less than plain input, minus what those
        written cost more; at today's list prices of short prompts, 0 where there is none.
    reused, reused_micro_usd: answers taken from the ledger, and what they had cost.
    routed_micro_usd: about what the last model of cascades alone would have cost more.
    """

    calls: int = 0
    failed: int = 0
    open: int = 0
    unproven: int = 0
    unpriced: int = 0
    uncached_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    cost_micro_usd: int = 0
    unproven_micro_usd: int = 0
    cached_pico_usd: int = 0
    reused: int = 0
    reused_micro_usd: int = 0
    routed_micro_usd: int = 0

    def __add__(self, other: Costs) -> Self:
        return type(self)(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def input_tokens(self) -> int:
        """All input tokens, cached or not."""
        return (
            self.uncached_tokens
            + self.cache_read_tokens
            + self.cache_write_5m_tokens
            + self.cache_write_1h_tokens
        )

    @property
    def cached_micro_usd(self) -> int:
        """What prompt caching saved, in micro-USD."""
        return round(self.cached_pico_usd / _PICO)

    @property
    def cached_share(self) -> float | None:
        """The share of the input tokens that was read from the prompt cache; None where there was no input."""
        return self.cache_read_tokens / self.input_tokens if self.input_tokens else None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Costs by key, the dearest first, and their total.

    groups: by the values that stand in `columns`; None where a call has none.
    overlaps: whether a call may be in several groups, as with tags: then they add up to more than the total.
    """

    columns: tuple[str, ...]
    groups: Mapping[tuple[Any, ...], Costs]
    total: Costs
    overlaps: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Which calls are counted: those opened from `since_ms` up to, not including, `until_ms`, of these names."""

    since_ms: int | None = None
    until_ms: int | None = None
    names: Mapping[str, str] = field(
        default_factory=dict
    )  # column -> value: dag_id, run_id, task_id, model …

    def of(self, table: sa.Table, time: sa.Column[int]) -> list[sa.ColumnElement[bool]]:
        """Return the conditions on a table whose rows have that time."""
        conditions = [table.c[name] == value for name, value in self.names.items()]
        if self.since_ms is not None:
            conditions.append(time >= self.since_ms)
        if self.until_ms is not None:
            conditions.append(time < self.until_ms)
        return conditions


_COLUMNS: dict[By, tuple[str, ...]] = {
    "document": ("dag_id", "task_id", "item_id"),
    "task": ("dag_id", "task_id"),
    "run": ("dag_id", "run_id"),
    "dag": ("dag_id",),
    "owner": ("owner",),
    "tag": ("tag",),
    "model": ("model",),
    "version": ("version",),
    "day": ("day",),
    "purpose": ("purpose",),
}


def costs(database: Database, by: By, wanted: Filter | None = None) -> Report:
    """Add up the ledger by one of BY; days are in UTC, and begin when a call was sent.

    A call is its task's; savings are known by task try, so there are none by document and by purpose.
    """
    wanted = wanted or Filter()
    columns = _COLUMNS[by]
    groups: dict[tuple[Any, ...], Costs] = {}
    with database.read() as connection:
        paid = _paid(connection, columns, wanted)
        saved = _saved(connection, columns, wanted) if by not in ("document", "purpose") else {}
        for found in (paid, saved):
            for key, one in found.items():
                groups[key] = groups[key] + one if key in groups else one
        if by == "tag":  # a call with two tags is in two groups, one with none in none of their sums
            overall = _paid(connection, (), wanted), _saved(connection, (), wanted)
            total = sum((one for found in overall for one in found.values()), Costs())
        else:
            total = sum(groups.values(), Costs())
    if by == "day":
        groups = {(str(dt.date(1970, 1, 1) + dt.timedelta(days=key[0])),): one for key, one in groups.items()}
    return Report(
        columns=columns,
        groups=dict(sorted(groups.items(), key=_order_by_day if by == "day" else _order)),
        total=total,
        overlaps=by == "tag",
    )


def spent_micro_usd(connection: sa.Connection, dag_id: str, run_id: str) -> int:
    """Return what a DAG run has cost so far, as far as prices are known, with what may have been billed."""
    query = sa.select(sa.func.coalesce(sa.func.sum(call.c.cost_micro_usd), 0)).where(
        call.c.dag_id == dag_id, call.c.run_id == run_id
    )
    return int(connection.execute(query).scalar_one())


@dataclass(frozen=True, kw_only=True, slots=True)
class StateTotals:
    """The calls in one state: how many, what they cost where that is known, how many have no known price."""

    state: str
    calls: int
    cost_micro_usd: int
    unpriced: int

    @property
    def is_paid(self) -> bool:
        """Tell whether these calls were paid and answered."""
        return self.state in PAID


def totals_by_state(
    database: Database, *, dag_id: str | None = None, run_id: str | None = None
) -> dict[str, StateTotals]:
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
            state: StateTotals(
                state=state, calls=calls, cost_micro_usd=int(cost_micro_usd), unpriced=unpriced
            )
            for state, calls, cost_micro_usd, unpriced in connection.execute(query.order_by(call.c.state))
        }


def invalid_answers(
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


def _paid(
    connection: sa.Connection, columns: tuple[str, ...], wanted: Filter
) -> dict[tuple[Any, ...], Costs]:
    source, keys = _keys(connection, call, call.c.opened_ms, columns)
    is_unproven, cost = is_in(UNPROVEN), call.c.cost_micro_usd
    sums = {
        "calls": _count(IS_PAID),
        "failed": _count(is_in(FAILED)),
        "open": _count(is_in(OPEN)),
        "unproven": _count(is_unproven),
        "unpriced": _count(sa.and_(IS_PAID, cost.is_(None))),
        **{name: _sum(call.c[name], IS_PAID) for name in _TOKENS},
        "cost_micro_usd": _sum(cost, IS_PAID),
        "unproven_micro_usd": _sum(cost, is_unproven),
    }
    # By model as well: what caching saves depends on its rates.
    query = (
        sa.select(*keys, call.c.model, *(column.label(name) for name, column in sums.items()))
        .select_from(source)
        .where(*wanted.of(call, call.c.opened_ms))
        .group_by(*keys, call.c.model)
    )
    found: dict[tuple[Any, ...], Costs] = {}
    for row in connection.execute(query):
        key, model, amounts = tuple(row[: len(keys)]), row[len(keys)], row[len(keys) + 1 :]
        one = Costs(**dict(zip(sums, map(int, amounts), strict=True)))
        one += Costs(cached_pico_usd=_saved_by_caching(one, rate_card(model)))
        found[key] = found[key] + one if key in found else one
    return found


def _saved(
    connection: sa.Connection, columns: tuple[str, ...], wanted: Filter
) -> dict[tuple[Any, ...], Costs]:
    source, keys = _keys(connection, saving, saving.c.at_ms, columns)
    names = ("reused", "reused_micro_usd", "routed_micro_usd")
    query = (
        sa.select(*keys, *(sa.func.coalesce(sa.func.sum(saving.c[name]), 0).label(name) for name in names))
        .select_from(source)
        .where(*wanted.of(saving, saving.c.at_ms))
        .group_by(*keys)
    )
    return {
        tuple(row[: len(keys)]): Costs(**dict(zip(names, map(int, row[len(keys) :]), strict=True)))
        for row in connection.execute(query)
    }


def _keys(
    connection: sa.Connection, table: sa.Table, time: sa.Column[int], columns: tuple[str, ...]
) -> tuple[sa.FromClause, list[sa.ColumnElement[Any]]]:
    """Return what to select from, and what to group by."""
    if columns == ("tag",):
        tags = _tags(connection, table)
        return table.outerjoin(tags, sa.true()), [tags.c.value]
    return table, [
        time // sa.literal_column(str(_DAY_MS), sa.BigInteger) if name == "day" else table.c[name]
        for name in columns
    ]


def _tags(connection: sa.Connection, table: sa.Table) -> sa.TableValuedAlias:
    """Return the tags of each row, one a row."""
    if connection.dialect.name == "sqlite":
        return sa.func.json_each(table.c.tags).table_valued("value", joins_implicitly=True)
    listed = sa.cast(table.c.tags, postgresql.JSONB)
    return sa.func.jsonb_array_elements_text(listed).table_valued("value", joins_implicitly=True)


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.count(sa.case((condition, 1)))


def _sum(column: sa.Column[Any], condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(sa.case((condition, column))), 0)


def _saved_by_caching(one: Costs, card: RateCard | None) -> int:
    """Return what caching saved of these tokens, below zero where it cost more than it saved."""
    if card is None:
        return 0
    _, rates = card.tiers[0]  # in pico-USD a token: whole numbers, so that the parts add up to the whole
    kinds = ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
    return sum(getattr(one, kind) * (rates["uncached_tokens"] - rates[kind]) for kind in kinds)


def _order(item: tuple[tuple[Any, ...], Costs]) -> tuple[Any, ...]:
    key, one = item
    return (-one.cost_micro_usd - one.unproven_micro_usd, -one.calls, tuple(str(part) for part in key))


def _order_by_day(item: tuple[tuple[Any, ...], Costs]) -> str:
    return str(item[0][0])
