"""Tool calls that a person approves: the question that is put, and what was said to it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from airflow_llm_provider.approvals import form
from airflow_llm_provider.approvals.review import Review, terms
from airflow_llm_provider.engine.tool_calls import ApprovalNeeded, ToolCall, Verdict
from airflow_llm_provider.errors import TerminalError
from airflow_llm_provider.ledger import reviews
from airflow_llm_provider.ledger.ledger import Ledger
from airflow_llm_provider.ledger.records import CallScope

_KEY = "tools"  # one question a task instance: Airflow shows no more


def question(needed: ApprovalNeeded, approval: Mapping[str, Any]) -> Review:
    """Return what a person is asked: whether these tools may be called with these arguments."""
    names = ", ".join(call.tool.name for call in needed.calls)
    written = [{"tool": call.tool.name, "arguments": _arguments(call)} for call in needed.calls]
    return Review(
        key=_KEY,
        subject=f"May the model call {names}?",
        body="\n\n".join(_told(call) for call in needed.calls) + f"\n\n*Call {needed.key[:16]}*",
        content=written[0]["arguments"] if len(written) == 1 else written,
        why="the tool needs approval",
        **terms(approval),
    )


def verdicts(
    ledger: Ledger, scope: CallScope, approval: Mapping[str, Any]
) -> Callable[[ApprovalNeeded], Awaitable[Verdict | None]]:
    """Return what looks up what was said of calls since the task was last cleared; None while nothing was.

    It raises TerminalError for a second question in one going of the task.
    """

    async def said(needed: ApprovalNeeded) -> Verdict | None:
        kept = await ledger.read(partial(_find, scope=scope))
        if kept is None or kept.verdict is None or kept.first_try != scope.first_try:
            return None
        if kept.asked.asked_hash != question(needed, approval).asked(is_shown=False).asked_hash:
            raise TerminalError(
                f"{needed} A person has been asked about other calls of this task, and Airflow shows one question a "
                "task instance, so nothing was done. Let the model make these calls in one reply, or give each its "
                "own task."
            )
        nobody = "Nobody decided in time." if kept.verdict.status == reviews.TIMED_OUT else ""
        return Verdict(
            is_approved=kept.verdict.status == reviews.APPROVED, reason=kept.verdict.feedback or nobody
        )

    return said


def _find(connection: Any, _: int, *, scope: CallScope) -> reviews.StoredReview | None:
    return reviews.find(connection, scope, _KEY)


def _told(call: ToolCall) -> str:
    """Return what a tool does, as its author describes it."""
    told = [form.titled(call.tool.name, str(call.tool.definition.get("description", "")))]
    if call.tool.irreversible:
        told.append("It can't be undone, and runs once.")
    return "\n\n".join(told)


def _arguments(call: ToolCall) -> dict[str, Any]:
    """Return the arguments as they would be called with: those the model gave, and the plain defaults of others."""
    given = json.loads(call.intent.arguments)
    parameters = call.tool.definition["input_schema"]["properties"]
    return {
        name: given.get(name, parameter.get("default"))
        for name, parameter in parameters.items()
        if name in given or "default" in parameter
    }
