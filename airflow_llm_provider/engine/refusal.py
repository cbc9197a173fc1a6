"""What a budget's refusal comes to: the error that says how much was needed, how much is left, and what to do."""

from __future__ import annotations

import time

from airflow_llm_provider.errors import (
    BudgetAsks,
    BudgetExceeded,
    BudgetSkips,
    BudgetWaits,
    LLMError,
    UnknownPrice,
)
from airflow_llm_provider.ledger.budgets import Budget
from airflow_llm_provider.ledger.records import Refusal
from airflow_llm_provider.pricing import usd


def error_for(refusal: Refusal, model: str, connection_id: str) -> LLMError:
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
