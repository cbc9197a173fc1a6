"""The choice among branches, as a person is asked to make it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_llm_provider.approvals.review import Review
from airflow_llm_provider.engine.request import to_json
from airflow_llm_provider.errors import BadRequest
from airflow_llm_provider.hooks.branching import Decision
from airflow_llm_provider.options import Reviewers

if TYPE_CHECKING:
    from airflow_llm_provider.approvals.review import Decision as Answer

NONE = "None of them"

_LARGEST_INPUT_BYTES = 10_000  # so that six inputs fit into a form


@dataclass(frozen=True, kw_only=True)
class BranchReview:
    """The question which branch a task takes.

    Attributes:
        task: the id of the task that asks, with its DAG.
        content: what is shown, made by `content_of`.
        branches: ids that can be chosen one by one.
        proposed: what the model proposed, which can be chosen as it is.
        default: the branches of last resort; None: there are none.
        multiple: whether none of them may be chosen.
        reviewers: who is asked. Nobody answered in time: with `on_timeout="reject"` the default is taken, and the task
            fails where there is none; with `approve` the proposal is taken; with `fail` the task fails.
    """

    task: str
    content: Mapping[str, Any]
    branches: Sequence[str]
    proposed: tuple[str, ...] = ()
    default: tuple[str, ...] | None = None
    multiple: bool = False
    reviewers: Reviewers = field(default_factory=Reviewers)

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """What can be chosen, by the text of its button."""
        default = self.default or ()
        several = [choice for choice in (self.proposed, default) if len(choice) > 1]
        # The default need not be among the branches that the model may choose.
        singles = [(name,) for name in (*self.branches, *default)]
        nothing = [()] if self.multiple or self.default == () else []
        return {_label(choice): choice for choice in (*several, *singles, *nothing)}

    def review(self) -> Review:
        """Return the question to ask."""
        default = None if self.default is None else _label(self.default)
        proposed = _label(self.proposed)
        return Review(
            subject=f"Which branch should {self.task} take?",
            content=self.content,
            options=list(self.choices),
            reviewers=self.reviewers,
            choices_on_timeout={
                "reject": default,
                # After an answer that was not valid there is no proposal that could be taken.
                "approve": proposed if proposed in self.choices else default,
                "fail": None,
            },
            why=self.content["asked because"],
        )

    def decided(self, answer: Answer) -> Decision:
        """Return the decision that an answer stands for."""
        why = self.content["asked because"]
        taken = self.choices[str(answer.choice)]
        # Airflow names no user where it chose the default itself, because the time was up.
        if answer.decided_by is None:
            return Decision(outcome="default", why=f"{why}; nobody answered in time", taken=taken)
        chosen_by = f"{why}; {answer.decided_by} chose"
        return Decision(outcome="reviewed", why=chosen_by, taken=taken, feedback=answer.feedback)


def content_of(
    decision: Decision,
    record: Mapping[str, Any],
    *,
    question: str,
    inputs: Mapping[str, Any],
    branches: Mapping[str, str],
) -> dict[str, Any]:
    """Return what a person needs to see to choose, as plain data.

    Args:
        decision: why a person is asked.
        record: the proposal of the model, where there is one.
        question: the prompt.
        inputs: the data that is decided on. An input that is too large for a form is named with its size.
        branches: the descriptions by id.
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
