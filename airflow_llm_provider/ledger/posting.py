"""Postings: what one transaction moves on the accounts, from what its calls were booked at to what they are now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from airflow_llm_provider.ledger.budgets import Budget, Meter
from airflow_llm_provider.ledger.lookups import chunks
from airflow_llm_provider.ledger.schema import FAILED, OPEN, UNPROVEN, call

_BOOKED = (
    sa.select(call.c.id, call.c.state, call.c.accounts, call.c.ceiling_micro_usd, call.c.cost_micro_usd)
    .where(call.c.id.in_(sa.bindparam("ids", expanding=True)), call.c.accounts.is_not(None))
    .order_by(call.c.id)
    .with_for_update()
)


@dataclass(frozen=True, slots=True)
class Bound:
    """What binds a scope's calls: budgets with their meters, and the ids of all accounts they are booked on."""

    budgets: tuple[tuple[Budget, Meter | None], ...]
    accounts: tuple[str, ...]

    @property
    def written(self) -> str | None:
        """The ids as the column of a call holds them."""
        return " ".join(self.accounts) or None


@dataclass(slots=True)
class _Booking:
    """What a call is booked at now: an account is the sum over those of its calls."""

    state: str
    accounts: list[str]
    ceiling: int
    settled: int
    reserved: int


@dataclass(slots=True)
class Posting:
    """What one transaction moves."""

    bookings: dict[str, _Booking] = field(default_factory=dict)
    moves: dict[str, list[int]] = field(default_factory=dict)
    wanted: list[tuple[str, int | None, Bound]] = field(default_factory=list)

    def read(self, connection: sa.Connection, attempts: Sequence[str]) -> None:
        """Read and lock what the calls that are about to end are booked at."""
        for chunk in chunks(attempts):
            for row in connection.execute(_BOOKED, {"ids": chunk}):
                self.hold(row)

    def hold(self, row: Any) -> None:
        """Take a call as read: a row with the columns `id, state, accounts, ceiling and cost`."""
        if row.accounts is None:
            return
        ceiling, cost = row.ceiling_micro_usd or 0, row.cost_micro_usd or 0
        is_open = row.state == OPEN
        settled = 0 if is_open else cost
        self.bookings[row.id] = _Booking(
            row.state, row.accounts.split(), ceiling, settled, ceiling if is_open else 0
        )

    def settle(self, attempt: str, state: str, cost_micro_usd: int | None) -> None:
        """Book a call at what it cost, whatever it was booked at before."""
        if booking := self.bookings.get(attempt):
            self._book(booking, state, cost_micro_usd or 0)

    def end(self, attempt: str, state: str) -> None:
        """Free a call that was not billed, or book it at its ceiling; one that is settled stays what it is."""
        booking = self.bookings.get(attempt)
        if booking and booking.state in (OPEN, UNPROVEN):
            self._book(booking, state, 0 if state == FAILED else booking.ceiling)

    def want(self, attempt: str, ceiling_micro_usd: int | None, bound: Bound) -> None:
        """Ask for a reservation."""
        if bound.budgets or bound.accounts:
            self.wanted.append((attempt, ceiling_micro_usd, bound))

    def _book(self, booking: _Booking, state: str, settled: int) -> None:
        for name in booking.accounts:
            move = self.moves.setdefault(name, [0, 0])
            move[0] += settled - booking.settled
            move[1] -= booking.reserved
        booking.state, booking.settled, booking.reserved = state, settled, 0
