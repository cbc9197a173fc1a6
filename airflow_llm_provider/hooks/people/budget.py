"""Raises: a person says how much more a budget that says `ask` may hold, for one task instance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson
from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.hooks.people import form
from airflow_llm_provider.hooks.people.approval import terms
from airflow_llm_provider.hooks.people.form import APPROVE, CHANGE, REJECT
from airflow_llm_provider.hooks.people.review import Review, decision, park
from airflow_llm_provider.ledger import reviews
from airflow_llm_provider.pricing import micro_usd, usd

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.engine.run import Engine
    from airflow_llm_provider.errors import BudgetAsks
    from airflow_llm_provider.hooks.claude import ClaudeHook
    from airflow_llm_provider.ledger.records import CallScope

_KEY = "budget"
_CAP = "raise to (USD)"


def ask(refused: BudgetAsks, *, hook: ClaudeHook, context: Context) -> str:
    """Park the task until a person has said what the budget may hold; return why nobody is asked.

    The operator goes on in its method `budget_decided`. Nobody is asked where somebody has said no, or a raise is used
    up, in this going of the task.
    """
    cap = usd(refused.booked_micro_usd + refused.need_micro_usd * refused.calls)
    approval = getattr(context["task"], "approval", {})
    review = _review(
        approval,
        subject=f"Raise budget {refused.budget}?",
        body=f"{form.line(str(refused))}\n\nA yes raises it for this task alone, to what is below; the amount can be "
        "changed. Calls are held by the most they could cost, and settled at what they do.",
        content={"budget": refused.budget, "of": refused.label, _CAP: cap},
    )
    notifiers = approval.get("notifiers", ())
    try:
        decided = park(review, hook=hook, context=context, resume="budget_decided", notifiers=notifiers)
    except AirflowFailException as error:  # this task instance has asked something else before
        return str(error)
    if decided.is_rejected:
        return decided.refusal
    return f"it was raised to ${decided.content[_CAP]} before; clear the task to ask again."


def settle(event: Mapping[str, Any], *, hook: ClaudeHook, context: Context) -> None:
    """Keep what a person said; raises AirflowFailException for what is no amount."""
    review = _review(getattr(context["task"], "approval", {}), subject="", body="", content={})
    decision(review, event, hook=hook, context=context, validators=[_complaint])


async def raised(engine: Engine, scope: CallScope) -> dict[tuple[str, str], int]:
    """Return what was raised in this going of the task: caps by the budget's name and what it is of."""
    kept = await engine.ledger.read(lambda connection, _: reviews.find(connection, scope, _KEY))
    if kept is None or kept.verdict is None or kept.first_try != scope.first_try:
        return {}
    if kept.verdict.status not in (reviews.APPROVED, reviews.MODIFIED):
        return {}
    shown = orjson.loads(kept.asked.content)  # of what was typed, only the amount counts
    return {(shown["budget"], shown["of"]): micro_usd(orjson.loads(kept.verdict.decided)[_CAP])}


def _review(approval: Mapping[str, Any], *, subject: str, body: str, content: Mapping[str, Any]) -> Review:
    return Review(
        key=_KEY,
        subject=subject,
        body=body,
        content=content,
        options=(APPROVE, CHANGE, REJECT),
        on_changed="frozen",
        why="a budget has no room",
        **terms(approval),
    )


def _complaint(content: Any) -> str | None:
    try:
        micro_usd(content[_CAP])
    except (ValueError, KeyError, TypeError):
        return f"{_CAP!r} is no amount in US dollars, such as 2.50."
    return None
