"""Bookings: what calls are booked at, on their accounts and on their days, and how one transaction changes that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa

from airflow_llm_provider.ledger.budgets import Budget, Meter
from airflow_llm_provider.ledger.daily import (
    DAY_COLUMNS,
    DailyChanges,
    Day,
    Sums,
    sums_of_paid,
    sums_of_unpaid,
)
from airflow_llm_provider.ledger.queries import chunks
from airflow_llm_provider.ledger.schema import FAILED, OPEN, PAID, SETTLED, UNPROVEN, call

BOOKED = sa.select(
    call.c.id, call.c.state, call.c.accounts, call.c.ceiling_micro_usd, call.c.cost_micro_usd, *DAY_COLUMNS
)
"""What `Bookings.remember` takes."""
# Locked in the order of their ids, so that two transactions that end the same calls do not deadlock.
_BOOKED_OF = (
    BOOKED.where(call.c.id.in_(sa.bindparam("ids", expanding=True))).order_by(call.c.id).with_for_update()
)


class Amounts(NamedTuple):
    """What a call or an account holds, in micro-USD.

    Attributes:
        settled: Paid, or booked as unproven.
        unproven: The part of it that is unproven.
        reserved: The ceilings of what is in flight.
    """

    settled: int = 0
    unproven: int = 0
    reserved: int = 0

    def plus(self, other: Amounts) -> Amounts:
        """Return the sum of both."""
        return Amounts(*(one + two for one, two in zip(self, other, strict=True)))

    def minus(self, other: Amounts) -> Amounts:
        """Return the difference."""
        return Amounts(*(one - two for one, two in zip(self, other, strict=True)))


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
    """What a call adds to its day and to each of its accounts now.

    Attributes:
        sums: What it adds to its day; None while it is open, and once it is paid: then it does not change any more.
    """

    state: str
    accounts: list[str]
    ceiling: int
    amounts: Amounts
    day: Day
    sums: Sums | None


@dataclass(slots=True)
class Bookings:
    """The bookings that one transaction changes, because calls end in it or are opened.

    Attributes:
        booked_calls: The calls that end in it, with what they are booked at now.
        moves: By account, what is added to its amounts.
        reservations: Attempts to reserve for, with their ceilings and budgets.
        days: What is added to the daily sums.
    """

    booked_calls: dict[str, _BookedCall] = field(default_factory=dict)
    moves: dict[str, Amounts] = field(default_factory=dict)
    reservations: list[tuple[str, int | None, ScopeBudgets]] = field(default_factory=list)
    days: DailyChanges = field(default_factory=DailyChanges)

    def read(self, connection: sa.Connection, attempts: Sequence[str]) -> None:
        """Read and lock the calls that are about to end, in the order of their ids."""
        for chunk in chunks(attempts):
            for row in connection.execute(_BOOKED_OF, {"ids": chunk}):
                self.remember(row)

    def remember(self, row: Any) -> None:
        """Remember what a call is booked at; `row` has the columns of BOOKED."""
        name, state, accounts, ceiling, cost, *day = row
        # An unknown price adds nothing. Where a budget applies, a call without a price was refused before it was
        # opened.
        ceiling, cost = ceiling or 0, cost or 0
        if state == OPEN:
            amounts = Amounts(reserved=ceiling)
        else:
            amounts = Amounts(settled=cost, unproven=cost if state == UNPROVEN else 0)
        sums = sums_of_unpaid(state, cost) if state in (FAILED, UNPROVEN) else None
        self.booked_calls[name] = _BookedCall(
            state, accounts.split() if accounts else [], ceiling, amounts, Day(*day), sums
        )

    def settle(self, attempt: str, cost_micro_usd: int | None, tokens: Sequence[int]) -> None:
        """Book a call at its cost, whether it was open, failed or unproven; a paid one is booked already."""
        booked = self.booked_calls.get(attempt)
        if booked and booked.state not in PAID:
            self._book(
                booked, SETTLED, Amounts(settled=cost_micro_usd or 0), sums_of_paid(cost_micro_usd, tokens)
            )

    def end(self, attempt: str, state: str) -> None:
        """Free the reservation of a call that failed, or book it at its ceiling; a settled call is not changed."""
        booked = self.booked_calls.get(attempt)
        if booked and booked.state in (OPEN, UNPROVEN):
            amount = 0 if state == FAILED else booked.ceiling
            self._book(booked, state, Amounts(settled=amount, unproven=amount), sums_of_unpaid(state, amount))

    def reserve(self, attempt: str, ceiling_micro_usd: int | None, bound: ScopeBudgets) -> None:
        """Ask to reserve the ceiling of an attempt."""
        if bound.budgets or bound.accounts:
            self.reservations.append((attempt, ceiling_micro_usd, bound))

    def _book(self, booked: _BookedCall, state: str, amounts: Amounts, sums: Sums) -> None:
        for name in booked.accounts:
            self.moves[name] = self.moves.get(name, Amounts()).plus(amounts.minus(booked.amounts))
        if booked.sums is not None:
            self.days.take(booked.day, booked.sums)
        self.days.add(booked.day, sums)
        # A group may hold two ends of one attempt. The second must add only what differs from the first.
        booked.state, booked.amounts, booked.sums = state, amounts, sums
