"""The bill: the line at the end of a task's log that says what it cost."""

from __future__ import annotations

import sqlalchemy as sa

from airflow_llm_provider.engine.run import Engine
from airflow_llm_provider.errors import LLMError
from airflow_llm_provider.ledger.budgets import scope_budgets
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.ledger.reports import spent_micro_usd
from airflow_llm_provider.ledger.schema import account
from airflow_llm_provider.pricing import usd

_CALLED = {"budget_usd": "the task's budget", "run_budget_usd": "the run's budget"}


async def bill(engine: Engine, scope: CallScope) -> str:
    """Return what this try has paid, what its DAG run has cost so far, and what is left of the task's own budgets.

    For an engine that has done nothing but the try's work. Without the ledger, it says what the try paid.
    """
    tally = engine.tally
    unpriced = f", {tally.unpriced} of them without a known price" if tally.unpriced else ""
    line = f"It cost ${usd(tally.paid_micro_usd)} in {tally.requests} call{'s' * (tally.requests != 1)}{unpriced}"
    try:
        spent, left = await engine.ledger.read(
            lambda connection, now_ms: _standing(connection, now_ms, scope)
        )
    except LLMError:
        return f"{line}."
    rest = "".join(f"; ${usd(amount)} of {name} left" for name, amount in left.items())
    return f"{line}; the run has cost ${usd(spent)} so far{rest}."


def _standing(connection: sa.Connection, now_ms: int, scope: CallScope) -> tuple[int, dict[str, int]]:
    """Return what the run has cost, and what is left of each budget that the operator has set."""
    left: dict[str, int] = {}
    for budget in scope_budgets(scope):
        meter = budget.meter(scope, now_ms)
        taken = sa.select(account.c.settled_micro_usd + account.c.reserved_micro_usd)
        booked = connection.scalar(taken.where(account.c.id == meter.id)) if meter else None
        left[_CALLED[budget.name]] = max(0, budget.cap_micro_usd - int(booked or 0))
    return spent_micro_usd(connection, scope.dag_id, scope.run_id), left
