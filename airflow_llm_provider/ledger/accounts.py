"""Accounts: what each budget's meter has counted, changed in the same transaction as the calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.ledger.bookings import Amounts, Bookings, ScopeBudgets
from airflow_llm_provider.ledger.budgets import (
    Budget,
    BudgetRefusal,
    Meter,
    run_meter,
    scope_budgets,
    stored_budgets,
    warnings_due,
)
from airflow_llm_provider.ledger.daily import pruned
from airflow_llm_provider.ledger.database import insert
from airflow_llm_provider.ledger.queries import chunks
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.ledger.schema import IS_OPEN, OPEN, UNPROVEN, account, call, daily, is_in
from airflow_llm_provider.pricing import paid_and_unproven, usd

_EXISTING = sa.select(account.c.id).where(account.c.id.in_(sa.bindparam("ids", expanding=True)))
# The last rows that a transaction locks: see the lock order in `writes.Writes`.
_LOCKED = (
    sa.select(account)
    .where(account.c.id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(account.c.id)
    .with_for_update()
)
_MOVED = (
    account.update()
    .where(account.c.id == sa.bindparam("account"))
    .values(
        settled_micro_usd=sa.bindparam("settled"),
        unproven_micro_usd=sa.bindparam("unproven"),
        reserved_micro_usd=sa.bindparam("reserved"),
        warned_micro_usd=sa.bindparam("warned"),
    )
)
_MAX_WATCHED = 1_000  # meters whose budgets are looked at for warnings


class MissingAccounts(Exception):
    """Some meters have no account yet: make them, then run the transaction again."""

    def __init__(self, meters: Sequence[Meter]) -> None:
        super().__init__(", ".join(meter.label for meter in meters))
        self.meters = meters


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetWarning:
    """The meter of a budget has passed `percent` of the cap.

    Attributes:
        budget: The budget.
        label: What its meter counts.
        percent: The highest share of the cap that was passed.
        settled_micro_usd: Paid, or booked as unproven.
        unproven_micro_usd: The part of it that is unproven.
    """

    budget: Budget
    label: str
    percent: int
    settled_micro_usd: int
    unproven_micro_usd: int

    def __str__(self) -> str:
        paid = paid_and_unproven(self.settled_micro_usd - self.unproven_micro_usd, self.unproven_micro_usd)
        cap = usd(self.budget.cap_micro_usd)
        return f"{self.percent}% of budget {self.budget.name!r} is used: {paid} of ${cap} for {self.label}."


class Accounts:
    """The accounts, as one ledger object changes them.

    An account is the sum over the calls that name it: the ceilings of those in flight, and the costs of the others.
    It changes in the same transaction as the call, so no change is lost or made twice.

    A transaction locks accounts last, in the order of their ids (see the lock order in `writes.Writes`). Making an
    account locks calls after it, so that is a transaction of its own.

    Args:
        dialect: `sqlite` or `postgresql`.
        configured: Budgets from the configuration, besides those that are stored in the ledger.

    Attributes:
        raised: Caps that a person has raised for this ledger object, by name of the budget and label of its meter.
        is_short: Whether an attempt was refused that fits once calls in flight are settled.
    """

    def __init__(self, dialect: str, configured: Sequence[Budget] = ()) -> None:
        self._configured = tuple(configured)
        # Without the option, SQLAlchemy does not say of an insert how many rows it made.
        self._insert = (
            insert(dialect, account).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
        )
        self._watched: dict[str, dict[str, Budget]] = {}
        self._stored: list[Budget] = []
        self.raised: Mapping[tuple[str, str], int] = {}
        self.is_short = False

    def budgets_of(
        self, connection: sa.Connection, now: int, scopes: Iterable[CallScope]
    ) -> dict[int, ScopeBudgets]:
        """Return the budgets of each scope, by the identity of the scope.

        Raises:
            MissingAccounts: A meter has no account yet.
        """
        # Read in the transaction that reserves, so that a changed cap holds from the next call on.
        self._stored = stored_budgets(connection)
        shared = [*self._configured, *self._stored]
        distinct = {id(scope): scope for scope in scopes}
        bound = {
            key: [
                (budget, budget.meter(scope, now))
                for budget in (*scope_budgets(scope), *shared)
                if budget.applies_to_scope(scope)
            ]
            for key, scope in distinct.items()
        }
        needed = {meter.id: meter for pairs in bound.values() for _, meter in pairs if meter is not None}
        runs = {key: run_meter(scope).id for key, scope in distinct.items()}
        ids = sorted(needed.keys() | set(runs.values()))
        existing = {name for chunk in chunks(ids) for name in connection.scalars(_EXISTING, {"ids": chunk})}
        # Making an account locks calls, so it cannot be done in this transaction: see the class.
        if missing := [needed[name] for name in sorted(needed.keys() - existing)]:
            raise MissingAccounts(missing)
        for pairs in bound.values():
            for budget, meter in pairs:
                if meter is not None:
                    self._watch(budget, meter)
        return {
            key: ScopeBudgets(
                tuple((self._as_raised(budget, meter), meter) for budget, meter in pairs),
                tuple(sorted({meter.id for _, meter in pairs if meter} | ({runs[key]} & existing))),
            )
            for key, pairs in bound.items()
        }

    def make(self, connection: sa.Connection, now: int, meter: Meter) -> None:
        """Make the account of a meter, with what the meter would have counted until now."""
        values = {"id": meter.id, "label": meter.label, "kind": meter.kind, "opened_ms": now}
        values["applies_to"] = meter.applies_to
        zeros = ("settled_micro_usd", "unproven_micro_usd", "reserved_micro_usd", "warned_micro_usd")
        if connection.execute(self._insert, {**values, **dict.fromkeys(zeros, 0)}).rowcount != 1:
            return  # another process was faster
        is_named = call.c.accounts.like(f"%{meter.id}%")
        # Calls that may still change must name the account: those in flight, and unproven ones, which a late reply
        # corrects. Those that name it already, from an account that was removed, are locked too: who ends one meanwhile
        # would find no account.
        may_move = sa.select(call.c.id).where(is_in(OPEN, UNPROVEN), meter.calls())
        found = connection.scalars(may_move.order_by(call.c.id).with_for_update())
        for chunk in chunks(found.all()):
            connection.execute(
                call.update()
                .where(call.c.id.in_(chunk), sa.or_(call.c.accounts.is_(None), sa.not_(is_named)))
                .values(accounts=sa.func.coalesce(call.c.accounts + " ", "") + meter.id)
            )
        cost, days = call.c.cost_micro_usd, meter.days()
        unproven = pruned(daily.c.unproven_micro_usd, days)
        # One statement, so that on PostgreSQL, too, a pruning can't move a call between the two sums meanwhile.
        counted = connection.execute(
            sa.select(
                _sum(cost, call.c.state != OPEN) + pruned(daily.c.cost_micro_usd, days) + unproven,
                _sum(cost, is_in(UNPROVEN)) + unproven,
                _sum(call.c.ceiling_micro_usd, sa.and_(IS_OPEN, is_named)),
            ).where(meter.calls())
        ).one()
        holds = Amounts(*map(int, counted))
        connection.execute(_MOVED, {"account": meter.id, **holds._asdict(), "warned": 0})

    def move(
        self, connection: sa.Connection, now: int, bookings: Bookings
    ) -> tuple[dict[str, BudgetRefusal], list[BudgetWarning]]:
        """Change the accounts and reserve what fits, in the order of asking; the last step but one of a transaction.

        Returns:
            The refusals by attempt, and the warnings to pass on once the transaction is committed.
        """
        names = {name for name, move in bookings.moves.items() if any(move)}
        names |= {name for *_, bound in bookings.reservations for name in bound.accounts}
        if not names and not bookings.reservations:
            return {}, []
        rows = {
            row.id: row
            for chunk in chunks(sorted(names))
            for row in connection.execute(_LOCKED, {"ids": chunk})
        }
        holds = {name: _amounts(row).plus(bookings.moves.get(name, Amounts())) for name, row in rows.items()}
        refusals: dict[str, BudgetRefusal] = {}
        # One after the other, each on top of those before it: together they must not pass the cap either.
        for attempt, ceiling, bound in bookings.reservations:
            # `budgets.set_budget` may have deleted the account since `budgets_of` saw it.
            if lost := [meter for _, meter in bound.budgets if meter and meter.id not in rows]:
                raise MissingAccounts(lost)
            if refusal := _refusal(ceiling, bound, holds, now):
                refusals[attempt] = refusal
                continue
            for name in bound.accounts:
                if name in holds:
                    holds[name] = holds[name].plus(Amounts(reserved=ceiling or 0))
        # A transaction without reservations says nothing about whether the money is short.
        if bookings.reservations:
            self.is_short = any(refusal.may_fit for refusal in refusals.values())
        warnings = [warning for row in rows.values() for warning in self._warnings_of(row, holds[row.id])]
        if changed := [
            {
                "account": name,
                **holds[name]._asdict(),
                # Never lowered: a sum that falls, and rises again, warns once.
                "warned": max(row.warned_micro_usd, holds[name].settled)
                if name in self._watched
                else row.warned_micro_usd,
            }
            for name, row in rows.items()
            if holds[name] != _amounts(row)
        ]:
            connection.execute(_MOVED, changed)
        return refusals, warnings

    def _as_raised(self, budget: Budget, meter: Meter | None) -> Budget:
        cap = self.raised and self.raised.get((budget.name, meter.label if meter else "a call"))
        return replace(budget, cap_micro_usd=max(cap, budget.cap_micro_usd)) if cap else budget

    def _watch(self, budget: Budget, meter: Meter) -> None:
        if meter.id not in self._watched and len(self._watched) >= _MAX_WATCHED:
            # The oldest one: a process that runs for days sees the meters of new days and runs all the time.
            del self._watched[next(iter(self._watched))]
        self._watched.setdefault(meter.id, {})[budget.name] = budget

    def _warnings_of(self, row: Any, holds: Amounts) -> Iterable[BudgetWarning]:
        for budget in self._watched.get(row.id, {}).values():
            if budget.origin == "ledger" and budget not in self._stored:
                continue  # it was changed or removed meanwhile
            if passed := warnings_due(budget, row.warned_micro_usd, holds.settled):
                yield BudgetWarning(
                    budget=budget,
                    label=row.label,
                    percent=max(passed),
                    settled_micro_usd=holds.settled,
                    unproven_micro_usd=holds.unproven,
                )


def _sum(column: sa.Column[int], condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(sa.case((condition, column))), 0)


def _amounts(row: Any) -> Amounts:
    return Amounts(row.settled_micro_usd, row.unproven_micro_usd, row.reserved_micro_usd)


def _refusal(
    ceiling: int | None, bound: ScopeBudgets, holds: dict[str, Amounts], now: int
) -> BudgetRefusal | None:
    """Return why a call may not be made, None when it may; a budget that it will never fit goes first."""
    found: BudgetRefusal | None = None
    for budget, meter in bound.budgets:
        held = holds[meter.id] if meter else Amounts()
        if ceiling is not None and held.settled + held.reserved + ceiling <= budget.cap_micro_usd:
            continue
        refusal = BudgetRefusal(
            budget=budget,
            meter=meter,
            need_micro_usd=ceiling,
            settled_micro_usd=held.settled,
            unproven_micro_usd=held.unproven,
            reserved_micro_usd=held.reserved,
            refused_ms=now,
        )
        if found is None or not refusal.may_fit:
            found = refusal
    return found
