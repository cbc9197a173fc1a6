"""Accounts: what each meter has counted, moved in the very transaction that moves its calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.ledger.budgets import Budget, Meter, own_budgets, run_meter, warnings_due
from airflow_llm_provider.ledger.lookups import chunks
from airflow_llm_provider.ledger.posting import Bound, Posting
from airflow_llm_provider.ledger.records import CallScope, Refusal
from airflow_llm_provider.ledger.schema import IS_OPEN, OPEN, UNPROVEN, account, call, is_in
from airflow_llm_provider.ledger.sql import insert
from airflow_llm_provider.ledger.standing import standing_budgets
from airflow_llm_provider.pricing import usd

_EXISTING = sa.select(account.c.id).where(account.c.id.in_(sa.bindparam("ids", expanding=True)))
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
        judged_micro_usd=sa.bindparam("judged"),
    )
)
_MOST_WATCHED = 1_000


class MissingAccounts(Exception):
    """Some meters have no account yet: make them, then do the transaction again."""

    def __init__(self, meters: Sequence[Meter]) -> None:
        super().__init__(", ".join(meter.label for meter in meters))
        self.meters = meters


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetWarning:
    """A budget's meter has passed `percent` of its cap."""

    budget: Budget
    label: str
    percent: int
    settled_micro_usd: int

    def __str__(self) -> str:
        cap, spent = usd(self.budget.cap_micro_usd), usd(self.settled_micro_usd)
        return (
            f"{self.percent}% of budget {self.budget.name!r} is spent: ${spent} of ${cap} for {self.label}."
        )


class Accounts:
    """The accounts, as one engine moves them.

    configured: budgets that the configuration sets, beside the standing ones in the ledger.

    An account is the sum over the calls that name it: ceilings of those in flight, and what the others cost. It
    moves in the transaction that moves the call, so it can neither be moved twice nor be forgotten.

    So that writers on PostgreSQL never wait in a circle, accounts are what a transaction locks last, in the
    order of their ids; making one locks calls after it, so that is a transaction of its own.
    """

    def __init__(self, dialect: str, configured: Sequence[Budget] = ()) -> None:
        self._configured = tuple(configured)
        # Without the option, SQLAlchemy does not say of an insert how many rows it made.
        self._insert = (
            insert(dialect, account).on_conflict_do_nothing().execution_options(preserve_rowcount=True)
        )
        self._watched: dict[str, dict[str, Budget]] = {}
        self._standing: list[Budget] = []
        self.raised: Mapping[tuple[str, str], int] = {}  # caps by budget and what it is of
        self.is_short = False  # somebody waits for what is reserved to be settled, or given up

    def bind(self, connection: sa.Connection, now: int, scopes: Iterable[CallScope]) -> dict[int, Bound]:
        """Return what binds each scope, by its identity; raises MissingAccounts."""
        self._standing = standing_budgets(connection)
        everybody = [*self._configured, *self._standing]
        distinct = {id(scope): scope for scope in scopes}
        bound = {
            key: [
                (one, one.meter(scope, now)) for one in (*own_budgets(scope), *everybody) if one.binds(scope)
            ]
            for key, scope in distinct.items()
        }
        needed = {meter.id: meter for pairs in bound.values() for _, meter in pairs if meter is not None}
        runs = {key: run_meter(scope).id for key, scope in distinct.items()}
        ids = sorted(needed.keys() | set(runs.values()))
        existing = {name for chunk in chunks(ids) for name in connection.scalars(_EXISTING, {"ids": chunk})}
        if missing := [needed[name] for name in sorted(needed.keys() - existing)]:
            raise MissingAccounts(missing)
        for pairs in bound.values():
            for one, meter in pairs:
                if meter is not None:
                    self._watch(one, meter)
        return {
            key: Bound(
                tuple((self._as_raised(one, meter), meter) for one, meter in pairs),
                tuple(sorted({meter.id for _, meter in pairs if meter} | ({runs[key]} & existing))),
            )
            for key, pairs in bound.items()
        }

    def make(self, connection: sa.Connection, now: int, meter: Meter) -> None:
        """Make an account, with what its meter would have counted until now."""
        values = {"id": meter.id, "label": meter.label, "kind": meter.kind, "opened_ms": now}
        values["applies_to"] = meter.applies_to
        zeros = dict.fromkeys(("settled_micro_usd", "reserved_micro_usd", "judged_micro_usd"), 0)
        if connection.execute(self._insert, {**values, **zeros}).rowcount != 1:
            return  # somebody else was first
        is_named = call.c.accounts.like(f"%{meter.id}%")
        # A late reply corrects what is unproven, so that has to be named too.
        # Those that name it already, too, from before it was removed: whoever ends one now would not find it.
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
            {"account": meter.id, "settled": int(settled), "reserved": int(reserved), "judged": 0},
        )

    def post(
        self, connection: sa.Connection, posting: Posting
    ) -> tuple[dict[str, Refusal], list[BudgetWarning]]:
        """Move the accounts, and reserve what fits in the order of asking; the last thing in a transaction.

        Returns the refusals by attempt, and the warnings that are due once it is committed.
        """
        names = {name for name, move in posting.moves.items() if any(move)}
        names |= {name for *_, bound in posting.wanted for name in bound.accounts}
        if not names and not posting.wanted:
            return {}, []
        rows = {
            row.id: row
            for chunk in chunks(sorted(names))
            for row in connection.execute(_LOCKED, {"ids": chunk})
        }
        settled = {
            name: row.settled_micro_usd + posting.moves.get(name, (0, 0))[0] for name, row in rows.items()
        }
        reserved = {
            name: row.reserved_micro_usd + posting.moves.get(name, (0, 0))[1] for name, row in rows.items()
        }
        refusals: dict[str, Refusal] = {}
        for attempt, ceiling, bound in posting.wanted:
            if lost := [meter for _, meter in bound.budgets if meter and meter.id not in rows]:
                raise MissingAccounts(lost)
            if refusal := _refusal(ceiling, bound, settled, reserved):
                refusals[attempt] = refusal
                continue
            for name in bound.accounts:
                if name in reserved:
                    reserved[name] += ceiling or 0
        if posting.wanted:
            self.is_short = any(refusal.may_fit for refusal in refusals.values())
        warnings = [warning for row in rows.values() for warning in self._due(row, settled[row.id])]
        if changed := [
            {
                "account": name,
                "settled": settled[name],
                "reserved": reserved[name],
                "judged": max(row.judged_micro_usd, settled[name])
                if name in self._watched
                else row.judged_micro_usd,
            }
            for name, row in rows.items()
            if (settled[name], reserved[name]) != (row.settled_micro_usd, row.reserved_micro_usd)
        ]:
            connection.execute(_MOVED, changed)
        return refusals, warnings

    def _as_raised(self, one: Budget, meter: Meter | None) -> Budget:
        cap = self.raised and self.raised.get((one.name, meter.label if meter else "a call"))
        return replace(one, cap_micro_usd=max(cap, one.cap_micro_usd)) if cap else one

    def _watch(self, one: Budget, meter: Meter) -> None:
        if meter.id not in self._watched and len(self._watched) >= _MOST_WATCHED:
            del self._watched[next(iter(self._watched))]
        self._watched.setdefault(meter.id, {})[one.name] = one

    def _due(self, row: Any, settled: int) -> Iterable[BudgetWarning]:
        for one in self._watched.get(row.id, {}).values():
            if one.origin == "ledger" and one not in self._standing:
                continue  # changed or removed meanwhile
            if passed := warnings_due(one, row.judged_micro_usd, settled):
                yield BudgetWarning(
                    budget=one, label=row.label, percent=max(passed), settled_micro_usd=settled
                )


def _refusal(
    ceiling: int | None, bound: Bound, settled: dict[str, int], reserved: dict[str, int]
) -> Refusal | None:
    """Return why a call may not be made; None when it may."""
    found: Refusal | None = None
    for one, meter in bound.budgets:
        spent, held = (settled[meter.id], reserved[meter.id]) if meter else (0, 0)
        if ceiling is not None and spent + held + ceiling <= one.cap_micro_usd:
            continue
        refusal = Refusal(
            budget=one,
            meter=meter,
            need_micro_usd=ceiling,
            settled_micro_usd=spent,
            reserved_micro_usd=held,
        )
        if found is None or not refusal.may_fit:
            found = refusal
    return found
