"""Budgets: what a cap binds, over which time, and which meter counts towards it."""

from __future__ import annotations

import datetime as dt
import hashlib
import time
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
from airflow_llm_provider.ledger.records import CallScope, first_id_of
from airflow_llm_provider.ledger.schema import account, budget, call
from airflow_llm_provider.pricing import usd

KINDS = ("call", "task", "run", "dag", "connection", "all")
CALENDAR = ("day", "month")
ON_EXCEEDED = ("fail", "skip", "wait", "ask")
WARN_AT_PERCENT = (50, 80, 95)
_HOUR_MS = 3_600_000
_COLUMNS = tuple(column.name for column in budget.columns)
_ALL = sa.select(budget).order_by(budget.c.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """A cap on what calls may cost; raises ValueError for one that makes no sense.

    name: as messages and the command line call it.
    scope: whose calls are added up: each `call`, each `task` instance over all its tries, each DAG `run`, each
        `dag`, each `connection`, or `all`.
    applies_to: the one DAG, or connection, that it is about; empty for every one, each with the cap to itself.
    per: `day` or `month`, by the calendar in `timezone`, for `dag`, `connection` and `all`; the others end by
        themselves.
    on_exceeded: what becomes of the task: `fail`, `skip`, `wait` for the next day or month, or `ask` a person.
    origin: who set it: an `operator`, the `config`, or the `ledger` for a standing one.
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
            raise ValueError(f"Budget {self.name!r}: the cap is below 0.")
        has_calendar = self.scope in ("dag", "connection", "all")
        if has_calendar and self.per not in CALENDAR:
            raise ValueError(
                f"Budget {self.name!r}: over scope {self.scope!r} a cap is per day or per month."
            )
        if not has_calendar and self.per:
            raise ValueError(
                f"Budget {self.name!r}: a {self.scope} ends by itself, so it has no per {self.per}."
            )
        if self.applies_to and self.scope == "all":
            raise ValueError(f"Budget {self.name!r}: scope all is all of it, not {self.applies_to!r}.")
        if self.on_exceeded not in ON_EXCEEDED:
            raise ValueError(
                f"Budget {self.name!r}: on_exceeded is one of {', '.join(ON_EXCEEDED)}, not {self.on_exceeded!r}."
            )
        if self.on_exceeded == "wait" and not has_calendar:
            raise ValueError(
                f"Budget {self.name!r}: a {self.scope} has no next one to wait for; use fail or skip."
            )
        if self.per:
            _zone(self.timezone)

    @property
    def kind(self) -> str:
        """What the meters of such budgets have in common."""
        return f"{self.scope} {self.per} {self.timezone}" if self.per else self.scope

    def binds(self, scope: CallScope) -> bool:
        """Tell whether a call of `scope` counts towards it."""
        if self.scope == "connection":
            return self.applies_to in ("", scope.connection_id)
        return self.applies_to in ("", scope.dag_id)

    def meter(self, scope: CallScope, now_ms: int) -> Meter | None:
        """Return the meter that counts a call of `scope` made now; None where each call is by itself."""
        if self.scope == "call":
            return None
        now = period(self.per, self.timezone, now_ms) if self.per else None
        return _meter(self.kind, now, *_whose(self.scope, scope))


@dataclass(frozen=True, slots=True)
class Period:
    """A day or month of a calendar: its name, and when it begins and ends."""

    name: str
    since_ms: int
    until_ms: int


@dataclass(frozen=True, kw_only=True)
class Meter:
    """What adds up calls: those whose columns are as `whose` says, in a period.

    Several budgets may look at one meter, each with a cap of its own. id: 16 hex digits.
    """

    id: str
    label: str
    kind: str
    period: Period | None
    whose: tuple[tuple[str, str | int], ...] = field(repr=False)

    @property
    def applies_to(self) -> str:
        """The DAG or connection that it is about; empty where it counts all."""
        return str(self.whose[0][1]) if self.whose else ""

    def calls(self) -> sa.ColumnElement[bool]:
        """Return the condition of the calls that it counts."""
        conditions = [call.c[name] == value for name, value in self.whose]
        if self.period is not None:
            # Ids begin with their time, so that the primary key finds a period's; an hour for clocks that differ.
            first_id = first_id_of(self.period.since_ms - _HOUR_MS)
            conditions += [call.c.id >= first_id, call.c.opened_ms >= self.period.since_ms]
        return sa.and_(sa.true(), *conditions)


def scope_budgets(scope: CallScope) -> Iterator[Budget]:
    """Return the budgets that the operator has set for its task instance and its run."""
    caps = {
        "budget_usd": ("task", scope.budget_micro_usd),
        "run_budget_usd": ("run", scope.run_budget_micro_usd),
    }
    for name, (kind, cap) in caps.items():
        if cap is not None:
            yield _own(name, cap, kind, scope.on_exceeded)


@lru_cache(maxsize=256)
def _own(name: str, cap: int, kind: str, on_exceeded: str) -> Budget:
    return Budget(name=name, cap_micro_usd=cap, scope=kind, on_exceeded=on_exceeded, origin="operator")


def run_meter(scope: CallScope) -> Meter:
    """Return the meter of a DAG run: where there is one, every call of the run counts, bound by it or not."""
    return _meter("run", None, *_whose("run", scope))


def warnings_due(budget: Budget, before_micro_usd: int, now_micro_usd: int) -> Iterable[int]:
    """Return the percentages of a budget that were passed between two readings of its meter."""
    cap = budget.cap_micro_usd
    return [p for p in WARN_AT_PERCENT if before_micro_usd * 100 < p * cap <= now_micro_usd * 100]


def period(per: str, timezone: str, now_ms: int) -> Period:
    """Return the day or month that it is in a time zone."""
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
    # Where clocks change at midnight, a day begins at the first of two, or when there should have been one.
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
        raise ValueError(f"{name!r} is no time zone, such as UTC or Europe/Berlin.") from error


def _whose(kind: str, scope: CallScope) -> tuple[str, tuple[tuple[str, str | int], ...]]:
    """Return the name of what a scope's calls are added up for, and the columns that tell them."""
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
    """What one meter has counted: paid or booked as unproven, and held by calls in flight."""

    label: str
    settled_micro_usd: int
    reserved_micro_usd: int


def stored_budgets(connection: sa.Connection) -> list[Budget]:
    """Return the standing budgets by name."""
    return [_budget(*row) for row in connection.execute(_ALL)]


@lru_cache(maxsize=256)  # every transaction that opens attempts reads them
def _budget(*values: Any) -> Budget:
    return Budget(**dict(zip(_COLUMNS, values, strict=True)))


def set_budget(connection: sa.Connection, new: Budget) -> None:
    """Set a standing budget, or change the one of its name; it binds from the next call on."""
    values = {name: getattr(new, name) for name in _COLUMNS}
    known = {one.name: one for one in stored_budgets(connection)}
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


def meter_readings(connection: sa.Connection, one: Budget, *, most: int = 5) -> Sequence[MeterReading]:
    """Return what the latest meters of a budget have counted, the newest first."""
    query = sa.select(account).where(account.c.kind == one.kind)
    if one.applies_to:
        query = query.where(account.c.applies_to == one.applies_to)
    return [
        MeterReading(
            label=row.label,
            settled_micro_usd=row.settled_micro_usd,
            reserved_micro_usd=row.reserved_micro_usd,
        )
        for row in connection.execute(query.order_by(account.c.opened_ms.desc()).limit(most))
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetRefusal:
    """A budget has no room for the call; nothing was opened.

    meter: what counts towards the budget; None where it caps each call by itself.
    need_micro_usd: the call's ceiling; None when its model has no known price.
    """

    budget: Budget
    meter: Meter | None
    need_micro_usd: int | None
    settled_micro_usd: int
    reserved_micro_usd: int

    @property
    def may_fit(self) -> bool:
        """Tell whether the call would fit once what is in flight is settled."""
        need = self.need_micro_usd
        return need is not None and self.settled_micro_usd + need <= self.budget.cap_micro_usd


def budget_error(refusal: BudgetRefusal, model: str, connection_id: str) -> LLMError:
    """Return the error for a call that its budget has no room for; nothing was sent."""
    budget, meter, need = refusal.budget, refusal.meter, refusal.need_micro_usd
    where = meter.label if meter else "a call"
    if need is None:
        return UnknownPrice(
            f"{where}: {model} has no known price, so budget {budget.name!r} can't hold it, and nothing was sent. Say "
            f"what it costs in the connection {connection_id or 'claude_default'}, in USD per million tokens, as "
            f'{{"prices": {{"{model}": {{"input": …, "output": …}}}}}}, and clear the task. What a server does with '
            "tools of its own (extra_body) has no price that any budget could hold."
        )
    left = usd(max(0, budget.cap_micro_usd - refusal.settled_micro_usd))
    held = f", ${usd(refusal.reserved_micro_usd)} of it held by calls in flight" if refusal.may_fit else ""
    said = (
        f"{where}: up to ${usd(need)} needed, ${left} of ${usd(budget.cap_micro_usd)} left in budget "
        f"{budget.name!r}{held}. Nothing was sent; {_remedy(budget)} Paid answers are kept."
    )
    if budget.on_exceeded == "wait" and meter and meter.period:
        wait_s = max(1.0, meter.period.until_ms / 1000 - time.time())
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
            return f"raise {budget.name}= of the task and clear it."
        case "config":
            return f"raise [llm] {budget.name} and clear the task."
        case _:
            return f"raise it with `airflow-llm budgets set {budget.name} --usd …` and clear the task."
