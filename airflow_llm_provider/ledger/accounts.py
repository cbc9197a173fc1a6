"""Accounts: what each budget's meter has counted, changed in the same transaction as the calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.ledger.budgets import (
    Budget,
    BudgetRefusal,
    Meter,
    run_meter,
    scope_budgets,
    stored_budgets,
    warnings_due,
)
from airflow_llm_provider.ledger.database import insert
from airflow_llm_provider.ledger.queries import chunks
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.ledger.schema import FAILED, IS_OPEN, OPEN, UNPROVEN, account, call, is_in
from airflow_llm_provider.pricing import usd

# Locked in the order of their ids, so that two transactions that end the same calls do not deadlock.
_BOOKED = (
    sa.select(call.c.id, call.c.state, call.c.accounts, call.c.ceiling_micro_usd, call.c.cost_micro_usd)
    .where(call.c.id.in_(sa.bindparam("ids", expanding=True)), call.c.accounts.is_not(None))
    .order_by(call.c.id)
    .with_for_update()
)
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
    """The meter of a budget has passed `percent` of the cap."""

    budget: Budget
    label: str
    percent: int
    settled_micro_usd: int

    def __str__(self) -> str:
        cap, spent = usd(self.budget.cap_micro_usd), usd(self.settled_micro_usd)
        return (
            f"{self.percent}% of budget {self.budget.name!r} is spent: ${spent} of ${cap} for {self.label}."
        )


@dataclass(frozen=True, slots=True)
class ScopeBudgets:
    """The budgets of a scope's calls.

    Attributes:
        budgets: Each budget with its meter; None for a budget that caps each call by itself.
        accounts: Ids of all accounts that the calls are booked on.
    """

    budgets: tuple[tuple[Budget, Meter | None], ...]
    accounts: tuple[str, ...]

    @property
    def account_ids(self) -> str | None:
        """The ids as they stand in the `accounts` column of a call."""
        return " ".join(self.accounts) or None


@dataclass(slots=True)
class _BookedCall:
    """What a call adds to each of its accounts now."""

    state: str
    accounts: list[str]
    ceiling: int
    settled: int
    reserved: int


@dataclass(slots=True)
class AccountChanges:
    """What one transaction changes on the accounts.

    Attributes:
        booked_calls: The calls that end in it, with what they are booked at now.
        moves: By account, what is added to its settled and its reserved sum.
        reservations: Attempts to reserve for, with their ceilings and budgets.
    """

    booked_calls: dict[str, _BookedCall] = field(default_factory=dict)
    moves: dict[str, list[int]] = field(default_factory=dict)
    reservations: list[tuple[str, int | None, ScopeBudgets]] = field(default_factory=list)

    def read(self, connection: sa.Connection, attempts: Sequence[str]) -> None:
        """Read and lock the calls that are about to end, in the order of their ids."""
        for chunk in chunks(attempts):
            for row in connection.execute(_BOOKED, {"ids": chunk}):
                self.remember(row)

    def remember(self, row: Any) -> None:
        """Remember what a call is booked at; `row` has its id, state, accounts, ceiling and cost."""
        if row.accounts is None:
            return
        # An unknown price adds nothing. Where a budget applies, a call without a price was refused before it was
        # opened.
        ceiling, cost = row.ceiling_micro_usd or 0, row.cost_micro_usd or 0
        is_open = row.state == OPEN
        settled = 0 if is_open else cost
        self.booked_calls[row.id] = _BookedCall(
            row.state, row.accounts.split(), ceiling, settled, ceiling if is_open else 0
        )

    def settle(self, attempt: str, state: str, cost_micro_usd: int | None) -> None:
        """Book a call at its cost, whatever it was booked at before."""
        if booked := self.booked_calls.get(attempt):
            self._book(booked, state, cost_micro_usd or 0)

    def end(self, attempt: str, state: str) -> None:
        """Free the reservation of a call that failed, or book it at its ceiling; a settled call is not changed."""
        booked = self.booked_calls.get(attempt)
        if booked and booked.state in (OPEN, UNPROVEN):
            self._book(booked, state, 0 if state == FAILED else booked.ceiling)

    def reserve(self, attempt: str, ceiling_micro_usd: int | None, bound: ScopeBudgets) -> None:
        """Ask to reserve the ceiling of an attempt."""
        if bound.budgets or bound.accounts:
            self.reservations.append((attempt, ceiling_micro_usd, bound))

    def _book(self, booked: _BookedCall, state: str, settled: int) -> None:
        for name in booked.accounts:
            move = self.moves.setdefault(name, [0, 0])
            move[0] += settled - booked.settled
            move[1] -= booked.reserved
        # A group may hold two ends of one attempt. The second must add only what differs from the first.
        booked.state, booked.settled, booked.reserved = state, settled, 0


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
        zeros = dict.fromkeys(("settled_micro_usd", "reserved_micro_usd", "warned_micro_usd"), 0)
        if connection.execute(self._insert, {**values, **zeros}).rowcount != 1:
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
        settled, reserved = connection.execute(
            sa.select(
                sa.func.coalesce(sa.func.sum(sa.case((call.c.state != OPEN, call.c.cost_micro_usd))), 0),
                sa.func.coalesce(
                    sa.func.sum(sa.case((sa.and_(IS_OPEN, is_named), call.c.ceiling_micro_usd))), 0
                ),
            ).where(meter.calls())
        ).one()
        connection.execute(
            _MOVED,
            {"account": meter.id, "settled": int(settled), "reserved": int(reserved), "warned": 0},
        )

    def move(
        self, connection: sa.Connection, changes: AccountChanges
    ) -> tuple[dict[str, BudgetRefusal], list[BudgetWarning]]:
        """Change the accounts and reserve what fits, in the order of asking; the last step of a transaction.

        Returns:
            The refusals by attempt, and the warnings to pass on once the transaction is committed.
        """
        names = {name for name, move in changes.moves.items() if any(move)}
        names |= {name for *_, bound in changes.reservations for name in bound.accounts}
        if not names and not changes.reservations:
            return {}, []
        rows = {
            row.id: row
            for chunk in chunks(sorted(names))
            for row in connection.execute(_LOCKED, {"ids": chunk})
        }
        settled = {
            name: row.settled_micro_usd + changes.moves.get(name, (0, 0))[0] for name, row in rows.items()
        }
        reserved = {
            name: row.reserved_micro_usd + changes.moves.get(name, (0, 0))[1] for name, row in rows.items()
        }
        refusals: dict[str, BudgetRefusal] = {}
        # One after the other, each on top of those before it: together they must not pass the cap either.
        for attempt, ceiling, bound in changes.reservations:
            # `budgets.set_budget` may have deleted the account since `budgets_of` saw it.
            if lost := [meter for _, meter in bound.budgets if meter and meter.id not in rows]:
                raise MissingAccounts(lost)
            if refusal := _refusal(ceiling, bound, settled, reserved):
                refusals[attempt] = refusal
                continue
            for name in bound.accounts:
                if name in reserved:
                    reserved[name] += ceiling or 0
        # A transaction without reservations says nothing about whether the money is short.
        if changes.reservations:
            self.is_short = any(refusal.may_fit for refusal in refusals.values())
        warnings = [warning for row in rows.values() for warning in self._warnings_of(row, settled[row.id])]
        if changed := [
            {
                "account": name,
                "settled": settled[name],
                "reserved": reserved[name],
                # Never lowered: a sum that falls, and rises again, warns once.
                "warned": max(row.warned_micro_usd, settled[name])
                if name in self._watched
                else row.warned_micro_usd,
            }
            for name, row in rows.items()
            if (settled[name], reserved[name]) != (row.settled_micro_usd, row.reserved_micro_usd)
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

    def _warnings_of(self, row: Any, settled: int) -> Iterable[BudgetWarning]:
        for budget in self._watched.get(row.id, {}).values():
            if budget.origin == "ledger" and budget not in self._stored:
                continue  # it was changed or removed meanwhile
            if passed := warnings_due(budget, row.warned_micro_usd, settled):
                yield BudgetWarning(
                    budget=budget, label=row.label, percent=max(passed), settled_micro_usd=settled
                )


def _refusal(
    ceiling: int | None, bound: ScopeBudgets, settled: dict[str, int], reserved: dict[str, int]
) -> BudgetRefusal | None:
    """Return why a call may not be made, None when it may; a budget that it will never fit goes first."""
    found: BudgetRefusal | None = None
    for budget, meter in bound.budgets:
        spent, held = (settled[meter.id], reserved[meter.id]) if meter else (0, 0)
        if ceiling is not None and spent + held + ceiling <= budget.cap_micro_usd:
            continue
        refusal = BudgetRefusal(
            budget=budget,
            meter=meter,
            need_micro_usd=ceiling,
            settled_micro_usd=spent,
            reserved_micro_usd=held,
        )
        if found is None or not refusal.may_fit:
            found = refusal
    return found
