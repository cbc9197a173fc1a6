"""Reports: what calls cost, added up by document, task, run, DAG, owner, tag, model, version, day or purpose."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, get_args

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from airflow_llm_provider.ledger.daily import DAY_MS, SAVINGS, SUMS, TOKENS
from airflow_llm_provider.ledger.database import Database
from airflow_llm_provider.ledger.schema import (
    FAILED,
    IS_PAID,
    OPEN,
    PAID,
    UNPROVEN,
    call,
    daily,
    is_in,
    saving,
)
from airflow_llm_provider.pricing import RateCard, rate_card

By = Literal["document", "task", "run", "dag", "owner", "tag", "model", "version", "day", "purpose"]
BY: tuple[By, ...] = get_args(By)
_PICO_PER_MICRO = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What some calls cost. Two values can be added up.

    Attributes:
        calls: Calls that were paid and answered.
        failed: Attempts that were not billed.
        open: Attempts in flight, or left behind less than two leases ago.
        unproven: Attempts that may have been paid without a reply.
        unpriced: Paid calls without a known price; they are in no amount.
        uncached_tokens: Input tokens without prompt caching.
        output_tokens: Output tokens.
        cache_read_tokens: Input tokens read from the prompt cache.
        cache_write_5m_tokens: Input tokens written to the prompt cache for five minutes.
        cache_write_1h_tokens: Input tokens written to the prompt cache for an hour.
        cost_micro_usd: Cost of the paid calls.
        unproven_micro_usd: The most that the unproven attempts cost.
        cached_pico_usd: Saved by prompt caching: what the tokens read cost less than plain input, minus what the
            tokens written cost more, at the list prices of short prompts; negative if caching cost more.
        reused: Replies that were taken from the ledger.
        reused_micro_usd: What they had cost.
        routed_micro_usd: An estimate: what the last models alone would have cost, minus what the routes cost.
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
        # Rounded only here: the rounded parts would not add up to the rounded total.
        return round(self.cached_pico_usd / _PICO_PER_MICRO)

    @property
    def cached_share(self) -> float | None:
        """The share of the input tokens that was read from the prompt cache; None without input."""
        return self.cache_read_tokens / self.input_tokens if self.input_tokens else None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Costs by group, the most expensive first, and their total.

    Attributes:
        columns: Names of the columns that the calls are grouped by.
        groups: Costs by the values of `columns`; None stands for calls without a value.
        total: Costs of all calls.
        pruned: The part of the total that belongs to calls which were removed since. Their DAG, owner, tags, model and
            day are known. Their run, task, document, version and purpose are not, and stand as None.
        overlaps: Whether a call may be in several groups, as with tags: then they add up to more than the total.
    """

    columns: tuple[str, ...]
    groups: Mapping[tuple[Any, ...], Costs]
    total: Costs
    pruned: Costs
    overlaps: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Which calls are counted.

    Attributes:
        since_ms: Those opened at this time or later, in milliseconds since 1970.
        until_ms: Those opened before this time.
        names: Values by column: dag_id, run_id, task_id, model …
    """

    since_ms: int | None = None
    until_ms: int | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def of(self, table: sa.Table, time: sa.Column[int]) -> list[sa.ColumnElement[bool]]:
        """Return the conditions for a table with `time` as the column of its time."""
        conditions = [table.c[name] == value for name, value in self.names.items()]
        if self.since_ms is not None:
            conditions.append(time >= self.since_ms)
        if self.until_ms is not None:
            conditions.append(time < self.until_ms)
        return conditions

    def of_days(self) -> list[sa.ColumnElement[bool]]:
        """Return the conditions for the rows of `daily`: a day counts where its beginning is within the time."""
        if any(name not in daily.c for name in self.names):
            return [sa.false()]
        conditions = [daily.c[name] == value for name, value in self.names.items()]
        if self.since_ms is not None:
            conditions.append(daily.c.day >= -(-self.since_ms // DAY_MS))
        if self.until_ms is not None:
            conditions.append(daily.c.day < -(-self.until_ms // DAY_MS))
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
    """Add up the costs in the ledger.

    Args:
        database: The ledger's database.
        by: What to group by, one of BY. Days are in UTC; a call counts for the day on which it was opened. Savings
            are known per task try, so there are none by document and by purpose. Calls that were pruned count with the
            sums of their day.
        wanted: Which calls; all by default.
    """
    wanted = wanted or Filter()
    columns = _COLUMNS[by]
    groups: dict[tuple[Any, ...], Costs] = {}
    with database.read() as connection:
        paid = _paid(connection, columns, wanted)
        saved = _saved(connection, columns, wanted) if by not in ("document", "purpose") else {}
        pruned = _pruned(connection, columns, wanted)
        for found in (paid, saved, pruned):
            for key, one in found.items():
                groups[key] = groups[key] + one if key in groups else one
        if by == "tag":  # a call with two tags is in two groups, so the total is counted without groups
            pruned = _pruned(connection, (), wanted)
            overall = _paid(connection, (), wanted), _saved(connection, (), wanted), pruned
            total = sum((one for found in overall for one in found.values()), Costs())
        else:
            total = sum(groups.values(), Costs())
    if by == "day":
        groups = {(str(dt.date(1970, 1, 1) + dt.timedelta(days=key[0])),): one for key, one in groups.items()}
    return Report(
        columns=columns,
        groups=dict(sorted(groups.items(), key=_order_by_day if by == "day" else _order)),
        total=total,
        pruned=sum(pruned.values(), Costs()),
        overlaps=by == "tag",
    )


def pruned_costs(database: Database, wanted: Filter | None = None) -> Costs:
    """Return what calls have cost that were removed since; see Report.pruned."""
    with database.read() as connection:
        return sum(_pruned(connection, (), wanted or Filter()).values(), Costs())


def cost_of_run(connection: sa.Connection, dag_id: str, run_id: str) -> tuple[int, int]:
    """Return what a DAG run has paid so far, and the most that its unproven attempts cost, in micro-USD."""
    cost = call.c.cost_micro_usd
    query = sa.select(_sum(cost, IS_PAID), _sum(cost, is_in(UNPROVEN)))
    paid, unproven = connection.execute(query.where(call.c.dag_id == dag_id, call.c.run_id == run_id)).one()
    return int(paid), int(unproven)


@dataclass(frozen=True, kw_only=True, slots=True)
class StateTotals:
    """The calls in one state: how many, their known cost, how many of them have no known price."""

    state: str
    calls: int
    cost_micro_usd: int
    unpriced: int

    @property
    def is_paid(self) -> bool:
        """Whether these calls were paid and answered."""
        return self.state in PAID


def totals_by_state(
    database: Database, *, dag_id: str | None = None, run_id: str | None = None
) -> dict[str, StateTotals]:
    """Return the totals by state, of all calls or of one DAG or run; states without calls are left out."""
    cost = call.c.cost_micro_usd
    query = sa.select(
        call.c.state,
        sa.func.count(),
        sa.func.coalesce(sa.func.sum(cost), 0),
        # count(column) leaves out NULL, which stands for an unknown price.
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
    """Return what is wrong with answers that were paid, the newest first: attempt, task, item and error."""
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
    source, keys = _keys(connection, call, _day(call.c.opened_ms), columns)
    is_unproven, cost = is_in(UNPROVEN), call.c.cost_micro_usd
    sums = {
        "calls": _count(IS_PAID),
        "failed": _count(is_in(FAILED)),
        "open": _count(is_in(OPEN)),
        "unproven": _count(is_unproven),
        "unpriced": _count(sa.and_(IS_PAID, cost.is_(None))),
        **{name: _sum(call.c[name], IS_PAID) for name in TOKENS},
        "cost_micro_usd": _sum(cost, IS_PAID),
        "unproven_micro_usd": _sum(cost, is_unproven),
    }
    # Grouped by model as well: what caching saves depends on the model's rates.
    query = (
        sa.select(*keys, call.c.model, *(column.label(name) for name, column in sums.items()))
        .select_from(source)
        .where(*wanted.of(call, call.c.opened_ms))
        .group_by(*keys, call.c.model)
    )
    return _by_key(connection.execute(query), len(keys), tuple(sums))


def _pruned(
    connection: sa.Connection, columns: tuple[str, ...], wanted: Filter
) -> dict[tuple[Any, ...], Costs]:
    """Return what calls have cost, and what was saved, whose rows were removed."""
    # In the transaction that reads the calls: a pruning moves what they cost from one to the other.
    source, keys = _keys(connection, daily, daily.c.day, columns)
    sums = (sa.func.sum(daily.c[name]).label(name) for name in SUMS)
    query = (
        sa.select(*keys, daily.c.model, *sums)
        .select_from(source)
        .where(daily.c.is_pruned, *wanted.of_days())
        .group_by(*keys, daily.c.model)
    )
    return _by_key(connection.execute(query), len(keys), SUMS)


def _by_key(rows: Iterable[Any], keys: int, names: Sequence[str]) -> dict[tuple[Any, ...], Costs]:
    """Add up rows of keys, model and sums by their keys, with what prompt caching saved."""
    found: dict[tuple[Any, ...], Costs] = {}
    for row in rows:
        key, model, amounts = tuple(row[:keys]), row[keys], row[keys + 1 :]
        one = Costs(**dict(zip(names, map(int, amounts), strict=True)))
        one += Costs(cached_pico_usd=_saved_by_caching(one, rate_card(model)))
        found[key] = found[key] + one if key in found else one
    return found


def _saved(
    connection: sa.Connection, columns: tuple[str, ...], wanted: Filter
) -> dict[tuple[Any, ...], Costs]:
    source, keys = _keys(connection, saving, _day(saving.c.at_ms), columns)
    query = (
        sa.select(*keys, *(sa.func.coalesce(sa.func.sum(saving.c[name]), 0).label(name) for name in SAVINGS))
        .select_from(source)
        .where(*wanted.of(saving, saving.c.at_ms))
        .group_by(*keys)
    )
    return {
        tuple(row[: len(keys)]): Costs(**dict(zip(SAVINGS, map(int, row[len(keys) :]), strict=True)))
        for row in connection.execute(query)
    }


def _keys(
    connection: sa.Connection, table: sa.Table, day: sa.ColumnElement[int], columns: tuple[str, ...]
) -> tuple[sa.FromClause, list[sa.ColumnElement[Any]]]:
    """Return the table to select from, joined with tags if needed, and the expressions to group by."""
    if columns == ("tag",):
        tags = _tags(connection, table)
        # An outer join, so that calls without tags are a group, too.
        return table.outerjoin(tags, sa.true()), [tags.c.value]
    # Of a removed call only the columns of `daily` are known.
    unknown = sa.cast(sa.null(), sa.Text)
    return table, [day if name == "day" else table.c.get(name, unknown) for name in columns]


def _day(time: sa.Column[int]) -> sa.ColumnElement[int]:
    # A literal: for PostgreSQL, two bound parameters would make two expressions, and SELECT and GROUP BY need the same.
    return time // sa.literal_column(str(DAY_MS), sa.BigInteger)


def _tags(connection: sa.Connection, table: sa.Table) -> sa.TableValuedAlias:
    """Return the tags of each row, one row per tag."""
    if connection.dialect.name == "sqlite":
        return sa.func.json_each(table.c.tags).table_valued("value", joins_implicitly=True)
    listed = sa.cast(table.c.tags, postgresql.JSONB)
    return sa.func.jsonb_array_elements_text(listed).table_valued("value", joins_implicitly=True)


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.count(sa.case((condition, 1)))


def _sum(column: sa.Column[Any], condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(sa.case((condition, column))), 0)


def _saved_by_caching(one: Costs, card: RateCard | None) -> int:
    """Return what prompt caching saved for these tokens, negative if it cost more than it saved."""
    if card is None:
        return 0
    _, rates = card.tiers[0]  # pico-USD per token: integers, so that the parts add up exactly
    kinds = ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens")
    return sum(getattr(one, kind) * (rates["uncached_tokens"] - rates[kind]) for kind in kinds)


def _order(item: tuple[tuple[Any, ...], Costs]) -> tuple[Any, ...]:
    key, one = item
    # As text, because a part may be None, which cannot be compared with text.
    return (-one.cost_micro_usd - one.unproven_micro_usd, -one.calls, tuple(str(part) for part in key))


def _order_by_day(item: tuple[tuple[Any, ...], Costs]) -> str:
    return str(item[0][0])
