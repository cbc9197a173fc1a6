"""Budgets: which calls a cap limits over which time, what its meter counts, and what a refusal says."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import sqlalchemy as sa

from airflow_llm_provider.errors import (
    BudgetAsks,
    BudgetExceeded,
    BudgetSkips,
    BudgetWaits,
    LLMError,
    UnknownPrice,
)
from airflow_llm_provider.ledger.daily import DAY_MS
from airflow_llm_provider.ledger.records import CallScope, first_id_of
from airflow_llm_provider.ledger.schema import account, budget, call, daily
from airflow_llm_provider.pricing import usd

KINDS = ("call", "task", "run", "dag", "connection", "all")
CALENDAR = ("day", "month")
ON_EXCEEDED = ("fail", "skip", "wait", "ask")
WARN_AT_PERCENT = (50, 80, 95)
_HOUR_MS = 3_600_000
_COLUMNS = tuple(column.name for column in budget.columns)
_STORED = sa.select(budget).order_by(budget.c.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A cap on what calls may cost.

    Attributes:
        name: Its name in messages and on the command line.
        cap_micro_usd: The most that the calls may cost together.
        scope: Which calls are added up: each `call` by itself, each `task` instance over all its tries, each DAG
            `run`, each `dag`, each `connection`, or `all`.
        applies_to: The DAG or connection that it limits; empty for all of them, each with the whole cap.
        per: `day` or `month`, for the scopes `dag`, `connection` and `all`; empty for the others.
        timezone: The time zone in which days and months begin.
        on_exceeded: What happens to the task: `fail`, `skip`, `wait` for the next day or month, or `ask` a person.
        origin: Where it was set: by an `operator`, in the `config`, or stored in the `ledger`.

    Raises:
        ValueError: The values contradict each other.
    """

    name: str
    cap_micro_usd: int
    scope: str
    applies_to: str = ""
    per: str = ""
    timezone: str = "UTC"
    on_exceeded: str = "fail"
    origin: Literal["operator", "config", "ledger"] = "ledger"

    def __post_init__(self) -> None:
        if self.scope not in KINDS:
            raise ValueError(f"A budget's scope is one of {', '.join(KINDS)}, not {self.scope!r}.")
        if self.cap_micro_usd < 0:
            raise ValueError(f"Budget {self.name!r}: the cap is negative.")
        has_calendar = self.scope in ("dag", "connection", "all")
        if has_calendar and self.per not in CALENDAR:
            raise ValueError(
                f"Budget {self.name!r}: with scope {self.scope!r} the cap needs per day or per month."
            )
        if not has_calendar and self.per:
            raise ValueError(
                f"Budget {self.name!r}: scope {self.scope!r} takes no per {self.per}: a {self.scope} ends by itself."
            )
        if self.applies_to and self.scope == "all":
            raise ValueError(
                f"Budget {self.name!r}: scope all counts everything, so it can't apply to {self.applies_to!r} only."
            )
        if self.on_exceeded not in ON_EXCEEDED:
            raise ValueError(
                f"Budget {self.name!r}: on_exceeded is one of {', '.join(ON_EXCEEDED)}, not {self.on_exceeded!r}."
            )
        if self.on_exceeded == "wait" and not has_calendar:
            raise ValueError(
                f"Budget {self.name!r}: scope {self.scope!r} has no next day or month to wait for; use fail or skip."
            )
        if self.per:
            _zone(self.timezone)

    @property
    def kind(self) -> str:
        """Scope, period and time zone in one text, which meters of such budgets share."""
        return f"{self.scope} {self.per} {self.timezone}" if self.per else self.scope

    def applies_to_scope(self, scope: CallScope) -> bool:
        """Return whether a call of `scope` counts towards it."""
        if self.scope == "connection":
            return self.applies_to in ("", scope.connection_id)
        return self.applies_to in ("", scope.dag_id)

    def meter(self, scope: CallScope, now_ms: int) -> Meter | None:
        """Return the meter that counts a call of `scope` at a time; None if each call is capped by itself."""
        if self.scope == "call":
            return None
        now = period(self.per, self.timezone, now_ms) if self.per else None
        return _meter(self.kind, now, *_whose(self.scope, scope))


@dataclass(frozen=True, slots=True)
class Period:
    """A day or month in a time zone: its name, and when it begins and ends."""

    name: str
    since_ms: int
    until_ms: int


@dataclass(frozen=True, kw_only=True)
class Meter:
    """Adds up the cost of calls: those with certain values in certain columns, in a period.

    Several budgets may use one meter, each with a cap of its own.

    Attributes:
        id: 16 hex digits, the id of its account.
        label: What it counts, for messages.
        kind: Of its budgets: see Budget.kind.
        period: The day or month; None if it counts without an end.
        whose: Columns of a call and their values.
    """

    id: str
    label: str
    kind: str
    period: Period | None
    whose: tuple[tuple[str, str | int], ...] = field(repr=False)

    @property
    def applies_to(self) -> str:
        """The DAG or connection that it counts for; empty if it counts all."""
        # The first column is the DAG or the connection: see `_whose`.
        return str(self.whose[0][1]) if self.whose else ""

    def calls(self) -> sa.ColumnElement[bool]:
        """Return the SQL condition of the calls that it counts."""
        conditions = [call.c[name] == value for name, value in self.whose]
        if self.period is not None:
            # Ids begin with the time, so the primary key finds the calls of a period. An id may be older than its call
            # by the time for which an opening was tried again; opened_ms is exact.
            first_id = first_id_of(self.period.since_ms - _HOUR_MS)
            conditions += [call.c.id >= first_id, call.c.opened_ms >= self.period.since_ms]
        return sa.and_(sa.true(), *conditions)

    def days(self) -> sa.ColumnElement[bool] | None:
        """Return the SQL condition of the rows of `daily` that count calls of it; None for a run or a task.

        A run or a task that is still active keeps its calls: see maintenance.prune.

        Days are in UTC. Where the period begins within one, the whole day is taken: a budget may count what was pruned
        twice, and never misses it.
        """
        conditions = [daily.c[name] == value for name, value in self.whose if name in daily.c]
        if len(conditions) < len(self.whose):
            return None
        if self.period is not None:
            conditions.append(daily.c.day >= self.period.since_ms // DAY_MS)
        return sa.and_(sa.true(), *conditions)


def scope_budgets(scope: CallScope) -> Iterator[Budget]:
    """Return the budgets that the operator has set for its task instance and its DAG run."""
    caps = {
        "budget.task_usd": ("task", scope.budget_micro_usd),
        "budget.run_usd": ("run", scope.run_budget_micro_usd),
    }
    for name, (kind, cap) in caps.items():
        if cap is not None:
            yield _scope_budget(name, cap, kind, scope.on_exceeded)


# Kept, because every group of attempts asks for them, and each Budget is validated when it is made.
@lru_cache(maxsize=256)
def _scope_budget(name: str, cap: int, kind: str, on_exceeded: str) -> Budget:
    return Budget(name=name, cap_micro_usd=cap, scope=kind, on_exceeded=on_exceeded, origin="operator")


def run_meter(scope: CallScope) -> Meter:
    """Return the meter of a DAG run; once it has an account, it counts every call of the run."""
    return _meter("run", None, *_whose("run", scope))


def warnings_due(budget: Budget, before_micro_usd: int, now_micro_usd: int) -> Iterable[int]:
    """Return the percentages of the cap that were passed between two readings of the meter."""
    cap = budget.cap_micro_usd
    # In whole numbers, so that no rounding of a share decides about a warning.
    return [p for p in WARN_AT_PERCENT if before_micro_usd * 100 < p * cap <= now_micro_usd * 100]


def period(per: str, timezone: str, now_ms: int) -> Period:
    """Return the current day or month in a time zone."""
    known = _latest.get((per, timezone))
    if known is None or not known.since_ms <= now_ms < known.until_ms:
        known = _latest[per, timezone] = _period(per, timezone, now_ms)
    return known


_latest: dict[tuple[str, str], Period] = {}


def _period(per: str, timezone: str, now_ms: int) -> Period:
    import pendulum

    zone = _zone(timezone)
    today = pendulum.from_timestamp(now_ms / 1000, tz=zone).date()
    first = today if per == "day" else today.replace(day=1)
    after = first.add(days=1) if per == "day" else first.add(months=1)
    # If clocks change at midnight, the day begins at the first of two midnights, or when midnight should have been.
    since, until = (dt.datetime(day.year, day.month, day.day, tzinfo=zone) for day in (first, after))
    return Period(
        today.format("YYYY-MM-DD" if per == "day" else "YYYY-MM"),
        int(since.timestamp() * 1000),
        int(until.timestamp() * 1000),
    )


def _zone(name: str) -> Any:
    import pendulum

    try:
        return pendulum.timezone(name)
    except Exception as error:
        raise ValueError(f"{name!r} is not a time zone, such as UTC or Europe/Berlin.") from error


def _whose(kind: str, scope: CallScope) -> tuple[str, tuple[tuple[str, str | int], ...]]:
    """Return what the calls of a scope are added up for: its name, and columns with their values."""
    match kind:
        case "all":
            return "all", ()
        case "connection":
            return f"connection {scope.connection_id}", (("connection_id", scope.connection_id),)
        case "dag":
            return f"dag {scope.dag_id}", (("dag_id", scope.dag_id),)
        case "run":
            return f"run {scope.dag_id}/{scope.run_id}", (("dag_id", scope.dag_id), ("run_id", scope.run_id))
        case _:
            whose = (("dag_id", scope.dag_id), ("run_id", scope.run_id))
            own = (("task_id", scope.task_id), ("map_index", scope.map_index))
            mapped = f"[{scope.map_index}]" if scope.map_index >= 0 else ""
            return f"task {scope.dag_id}.{scope.task_id}{mapped} of {scope.run_id}", (*whose, *own)


@lru_cache(maxsize=1024)
def _meter(kind: str, period: Period | None, label: str, whose: tuple[tuple[str, str | int], ...]) -> Meter:
    # The NUL keeps apart what would otherwise be joined to the same text, such as "a" + "bc" and "ab" + "c".
    name = "\0".join([kind, period.name if period else "", *(str(value) for _, value in whose)])
    label = f"{label}, {period.name}" if period else label
    return Meter(
        id=hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        label=label,
        kind=kind,
        period=period,
        whose=whose,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class MeterReading:
    """What one meter has counted.

    Attributes:
        label: What it counts.
        settled_micro_usd: Paid, or booked as unproven.
        unproven_micro_usd: The part of it that is unproven.
        reserved_micro_usd: Ceilings of calls in flight.
    """

    label: str
    settled_micro_usd: int
    unproven_micro_usd: int
    reserved_micro_usd: int

    @property
    def paid_micro_usd(self) -> int:
        """What was paid for replies."""
        return self.settled_micro_usd - self.unproven_micro_usd


def stored_budgets(connection: sa.Connection) -> list[Budget]:
    """Return the budgets that are stored in the ledger, by name."""
    return [_budget(*row) for row in connection.execute(_STORED)]


@lru_cache(maxsize=256)  # every transaction that opens attempts reads them, and each is validated
def _budget(*values: Any) -> Budget:
    return Budget(**dict(zip(_COLUMNS, values, strict=True)))


def set_budget(connection: sa.Connection, new: Budget) -> None:
    """Store a budget, or change the one with its name; it limits calls from the next one on."""
    values = {name: getattr(new, name) for name in _COLUMNS}
    known = {one.name: one for one in stored_budgets(connection)}
    if new.name in known:
        connection.execute(budget.update().where(budget.c.name == new.name).values(values))
    else:
        connection.execute(budget.insert().values(values))
    bound = {one.applies_to for one in known.values() if one.kind == new.kind}
    # The accounts of runs count every call, also while no budget uses them: see `run_meter`.
    if new.kind != "run" and not bound & {"", new.applies_to}:
        # While no budget used these meters, they may have missed calls: without an account, they count all calls again.
        stale = (
            account.c.applies_to == new.applies_to if new.applies_to else account.c.applies_to.not_in(bound)
        )
        connection.execute(account.delete().where(account.c.kind == new.kind, stale))


def remove_budget(connection: sa.Connection, name: str) -> bool:
    """Remove a stored budget; return whether there was one."""
    return bool(connection.execute(budget.delete().where(budget.c.name == name)).rowcount)


def meter_readings(connection: sa.Connection, one: Budget, *, most: int = 5) -> Sequence[MeterReading]:
    """Return what the latest meters of a budget have counted, the newest first, at most `most`."""
    query = sa.select(account).where(account.c.kind == one.kind)
    if one.applies_to:
        query = query.where(account.c.applies_to == one.applies_to)
    return [
        MeterReading(
            label=row.label,
            settled_micro_usd=row.settled_micro_usd,
            unproven_micro_usd=row.unproven_micro_usd,
            reserved_micro_usd=row.reserved_micro_usd,
        )
        for row in connection.execute(query.order_by(account.c.opened_ms.desc()).limit(most))
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetRefusal:
    """A budget has no room for the ceiling of a call; nothing was opened.

    Attributes:
        budget: The budget.
        meter: Its meter; None if it caps each call by itself.
        need_micro_usd: The call's ceiling; None when its model has no known price.
        settled_micro_usd: What the meter has counted: paid, or booked as unproven.
        unproven_micro_usd: The part of it that is unproven.
        reserved_micro_usd: What calls in flight have reserved.
        refused_ms: When it was refused, by the database's clock.
    """

    budget: Budget
    meter: Meter | None
    need_micro_usd: int | None
    settled_micro_usd: int
    unproven_micro_usd: int
    reserved_micro_usd: int
    refused_ms: int

    @property
    def may_fit(self) -> bool:
        """Whether the call may fit once the calls in flight are settled."""
        need = self.need_micro_usd
        return need is not None and self.settled_micro_usd + need <= self.budget.cap_micro_usd


def budget_error(refusal: BudgetRefusal, model: str, connection_id: str) -> LLMError:
    """Return the error for a call that was refused: how much was needed, how much is left, what to do.

    Args:
        refusal: Why it was refused.
        model: The model that was asked for.
        connection_id: The connection, where prices can be stated.
    """
    budget, meter, need = refusal.budget, refusal.meter, refusal.need_micro_usd
    where = meter.label if meter else "a call"
    if need is None:
        return UnknownPrice(
            f"{where}: {model} has no known price, so budget {budget.name!r} can't limit it. Nothing was sent. State "
            f"the price in the connection {connection_id or 'claude_default'}, in USD per million tokens, as "
            f'{{"prices": {{"{model}": {{"input": …, "output": …}}}}}}, and clear the task. A request also has '
            "no highest price if extra_body allows something without one: a tool on the server without max_uses, an "
            "MCP server, a container, fallbacks='default', a geography or speed without a factor."
        )
    left = usd(max(0, budget.cap_micro_usd - refusal.settled_micro_usd))
    reserved = (
        f", ${usd(refusal.reserved_micro_usd)} of it reserved by calls in flight" if refusal.may_fit else ""
    )
    if refusal.unproven_micro_usd:
        most = usd(refusal.unproven_micro_usd)
        reserved += f"; ${most} of what is used is for calls that may have been billed without a reply"
    said = (
        f"{where}: up to ${usd(need)} needed, ${left} of ${usd(budget.cap_micro_usd)} left in budget "
        f"{budget.name!r}{reserved}. Nothing was sent; {_remedy(budget)} Paid answers are kept."
    )
    if budget.on_exceeded == "wait" and meter and meter.period:
        # Both by the database's clock, by which the next period begins.
        wait_s = max(1.0, (meter.period.until_ms - refusal.refused_ms) / 1000)
        return BudgetWaits(f"{said} The next {budget.per} begins in {wait_s:.0f} s.", retry_after_s=wait_s)
    if budget.on_exceeded == "ask":
        return BudgetAsks(
            said,
            budget=budget.name,
            label=where,
            booked_micro_usd=refusal.settled_micro_usd + refusal.reserved_micro_usd,
            need_micro_usd=need,
        )
    return (BudgetSkips if budget.on_exceeded == "skip" else BudgetExceeded)(said)


def _remedy(budget: Budget) -> str:
    match budget.origin:
        case "operator":
            return f"raise {budget.name} of the task and clear it."
        case "config":
            return f"raise [llm] {budget.name} and clear the task."
        case _:
            return f"raise it with `airflow-llm budgets set {budget.name} --usd …` and clear the task."
