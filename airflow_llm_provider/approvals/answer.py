"""The answer of a person, read from Airflow's form: the verdict, and whether an edit may go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow_llm_provider.approvals import form
from airflow_llm_provider.engine.checks import require_no_complaint
from airflow_llm_provider.engine.output_type import OutputType
from airflow_llm_provider.engine.request import to_json
from airflow_llm_provider.errors import AnswerError, InvalidOutput, TerminalError
from airflow_llm_provider.ledger import reviews
from airflow_llm_provider.ledger.reviews import Verdict
from airflow_llm_provider.validators import Validator


def read_answer(
    content: Any,
    event: Mapping[str, Any],
    output_type: Any,
    validators: Sequence[Validator],
    *,
    is_editable: bool,
) -> tuple[Verdict, TerminalError | None]:
    """Return what was decided on `content`, and the error when nothing may go on.

    Args:
        content: what was shown.
        event: what Airflow resumes the task with.
        output_type: what an edit must be. The text that was typed goes on, not the value parsed from it.
        validators: what an edit must satisfy.
        is_editable: whether changes were offered; Airflow's API accepts them in any case.
    """
    given = event.get("params_input") or {}
    choice = next(iter(event.get("chosen_options") or ()), None)
    decided: Any = content
    error: TerminalError | None = None
    if choice is None:
        status = reviews.TIMED_OUT
        error = TerminalError(
            "Nobody answered in time, and nothing is chosen then. Clear the task to ask again."
        )
    # The choice is the form's default, made by Airflow: it may be an approval, although no person decided.
    elif event.get("timedout"):
        status = reviews.TIMED_OUT
    elif choice == form.REJECT:
        status = reviews.REJECTED
    else:
        status = reviews.APPROVED
        try:
            # With either button of approval: what stood in the form is what was decided on.
            decided = form.edited(content, given)
            if decided is not content:
                if not is_editable:
                    raise InvalidOutput("No changes were offered.")
                status, decided = reviews.MODIFIED, _checked(decided, output_type, validators)
        except AnswerError as complaint:
            status, decided = reviews.INVALID, given.get(form.CONTENT)
            error = InvalidOutput(
                f"The edit is not valid: {complaint}\nThe ledger keeps the edit; clear the task to ask again."
            )
    user = event.get("responded_by_user")
    at = event.get("responded_at")
    verdict = Verdict(
        status=status,
        choice=choice,
        decided=to_json(decided),
        decided_by=user["id"] if user else None,
        feedback=str(given.get(form.FEEDBACK) or ""),
        decided_ms=round(at.timestamp() * 1000) if at else None,
    )
    return verdict, error


def _checked(edit: Any, output_type: Any, validators: Sequence[Validator]) -> Any:
    """Return the edit if it satisfies the type and the validators; raises AnswerError."""
    output, value = OutputType(output_type), edit
    if not output.is_text:
        # Text that was not a valid answer can be edited into one.
        edit = form.read_json(edit) if isinstance(edit, str) and not _is_string(output) else edit
        value = output.parse(to_json(output.wrap(edit)).decode())
    elif isinstance(edit, str):
        value = output.parse(edit)
    for validator in validators:
        require_no_complaint(validator, value, None, output)
    return edit


def _is_string(output: OutputType) -> bool:
    """Tell a type whose values are text, such as an enum of strings."""
    schema = output.item_schema or {}
    return schema.get("type") == "string"
