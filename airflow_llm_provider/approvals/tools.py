"""Tool calls that a person approves: the question, and what was answered."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.approvals import form
from airflow_llm_provider.approvals.review import Review, is_approved
from airflow_llm_provider.engine.tool_loop import ApprovalNeeded, ToolCall, ToolVerdict
from airflow_llm_provider.errors import TerminalError
from airflow_llm_provider.ledger import reviews

if TYPE_CHECKING:
    from airflow_llm_provider.ledger.ledger import Ledger
    from airflow_llm_provider.ledger.records import CallScope
    from airflow_llm_provider.options import Reviewers

_KEY = "tools"  # one question per task instance: Airflow does not show more


def review_of(needed: ApprovalNeeded, reviewers: Reviewers) -> Review:
    """Return the question whether these tools may be called with these arguments."""
    names = ", ".join(call.tool.name for call in needed.calls)
    written = [{"tool": call.tool.name, "arguments": _arguments(call)} for call in needed.calls]
    return Review(
        key=_KEY,
        subject=f"May the model call {names}?",
        body="\n\n".join(_description(call) for call in needed.calls) + f"\n\n*Call {needed.key[:16]}*",
        content=written[0]["arguments"] if len(written) == 1 else written,
        why="the tool needs approval",
        reviewers=reviewers,
    )


def verdicts(
    ledger: Ledger, scope: CallScope, reviewers: Reviewers
) -> Callable[[ApprovalNeeded], Awaitable[ToolVerdict | None]]:
    """Return a function that finds what was decided about calls since the task was last cleared.

    The function returns None while nothing is decided. It raises TerminalError where other calls have been asked about
    since then.
    """

    async def find_verdict(needed: ApprovalNeeded) -> ToolVerdict | None:
        stored = await ledger.read(lambda connection, _: reviews.find(connection, scope, _KEY))
        if stored is None or stored.verdict is None or stored.first_try != scope.first_try:
            return None
        # A model that is asked again may want other calls. An approval holds only for those that a person has seen.
        if stored.asked.asked_hash != review_of(needed, reviewers).asked(is_shown=False).asked_hash:
            raise TerminalError(
                f"{needed} A person has been asked about other calls of this task, and Airflow shows one question per "
                "task instance. Nothing was done. Let the model make these calls in one reply, or give each its own "
                "task."
            )
        nobody = "Nobody answered in time." if stored.verdict.status == reviews.TIMED_OUT else ""
        return ToolVerdict(
            is_approved=is_approved(stored, scope),
            reason=stored.verdict.feedback or nobody,
        )

    return find_verdict


def _description(call: ToolCall) -> str:
    """Return what a tool does, as its author describes it."""
    parts = [form.titled(call.tool.name, str(call.tool.definition.get("description", "")))]
    if call.tool.irreversible:
        parts.append("It can't be undone, and runs once.")
    return "\n\n".join(parts)


def _arguments(call: ToolCall) -> dict[str, Any]:
    """Return the arguments of the call: those that the model gave, and the plain defaults of the others."""
    given = json.loads(call.intent.arguments)
    parameters = call.tool.definition["input_schema"]["properties"]
    return {
        name: given.get(name, parameter.get("default"))
        for name, parameter in parameters.items()
        if name in given or "default" in parameter
    }
