"""A choice among branches, as it is put to a person."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.approvals.review import Review
from airflow_llm_provider.engine.request import to_json
from airflow_llm_provider.errors import BadRequest
from airflow_llm_provider.hooks.choice import Decision

if TYPE_CHECKING:
    from airflow_llm_provider.approvals.review import Decision as Answer
    from airflow_llm_provider.approvals.review import User

NONE = "None of them"

_LARGEST_INPUT_BYTES = 10_000  # beside five more of them in a form


@dataclass(frozen=True, kw_only=True)
class BranchReview:
    """The question which branch to take.

    place: the task that asks. content: what is shown, as `content_of` makes it.
    branches: ids that can be chosen one by one. proposed: what the model proposed, which can be chosen as it is.
    default: taken when nobody answers within `response_timeout`; None: the task fails then.
    multiple: whether none of them may be chosen.
    """

    place: str
    content: Mapping[str, Any]
    branches: Sequence[str]
    proposed: tuple[str, ...] = ()
    default: tuple[str, ...] | None = None
    multiple: bool = False
    response_timeout: dt.timedelta | None = None
    assigned_users: Sequence[str | User] = ()

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """What can be chosen, by what the button says."""
        default = self.default or ()
        several = [choice for choice in (self.proposed, default) if len(choice) > 1]
        singles = [(name,) for name in (*self.branches, *default)]
        nothing = [()] if self.multiple or self.default == () else []
        return {_label(choice): choice for choice in (*several, *singles, *nothing)}

    def review(self) -> Review:
        """Return the question as it is parked."""
        return Review(
            subject=f"Which branch should {self.place} take?",
            content=self.content,
            options=list(self.choices),
            on_timeout=None if self.default is None else _label(self.default),
            response_timeout=self.response_timeout,
            assigned_users=self.assigned_users,
            why=self.content["asked because"],
        )

    def decided(self, answer: Answer) -> Decision:
        """Return what is done after the answer."""
        why = self.content["asked because"]
        taken = self.choices[str(answer.choice)]
        if answer.decided_by is None:
            return Decision(outcome="default", why=f"{why}; nobody chose in time", taken=taken)
        said = f": {answer.feedback}" if answer.feedback else ""
        return Decision(outcome="reviewed", why=f"{why}; {answer.decided_by} chose{said}", taken=taken)


def content_of(
    decision: Decision,
    record: Mapping[str, Any],
    *,
    question: str,
    inputs: Mapping[str, Any],
    branches: Mapping[str, str],
) -> dict[str, Any]:
    """Return what a person needs to see to choose, as plain data.

    record: the proposal, where there is one. inputs: what is decided on; what a form has no room for is named.
    branches: descriptions by id.
    """
    return {
        "question": question,
        **{f"branch {name}": description for name, description in branches.items()},
        "proposed": _label(record.get("proposed", ())),
        "reason": record.get("reason", ""),
        "asked because": decision.why,
        **{f"input {name}": _legible(value) for name, value in inputs.items()},
    }


def _label(choice: Sequence[str]) -> str:
    return ", ".join(choice) or NONE


def _legible(value: Any) -> Any:
    value = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
    try:
        size = len(to_json(value))
    except BadRequest:
        return f"({value})"  # a path
    return value if size <= _LARGEST_INPUT_BYTES else f"({size:,} bytes, too many for a form)"
