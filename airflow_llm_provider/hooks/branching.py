"""Branching: how the model is asked to choose among branches, and what is decided on its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.votes import ask_votes, count_votes
from airflow_llm_provider.errors import (
    AnswerError,
    LLMError,
    NetworkError,
    Overloaded,
    RateLimited,
    ServerError,
)

if TYPE_CHECKING:
    from airflow_llm_provider.engine.engine import Engine
    from airflow_llm_provider.hooks.question import Question
    from airflow_llm_provider.ledger.records import CallScope
    from airflow_llm_provider.options import Options

OnUnsure = Literal["default", "ask", "fail"]

# The model cannot be reached. A ledger that cannot be reached, or a busy key, says nothing about the model.
_UNREACHABLE = (NetworkError, Overloaded, RateLimited, ServerError)

_QUESTION = """{prompt}

Choose {which}. The branches, by id:

{branches}"""


_ADDED_UP = (
    *("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens"),
    *("attempts", "repairs", "latency_s"),
)


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What the model proposes, and how sure it is.

    Attributes:
        branches: ids, in alphabetical order.
        reason: why, in the model's words.
        confidence: 0 to 1.
        confidence_is: how the confidence was measured.
        stated_confidence: what the model stated; with votes, the mean of those that agree.
        votes: what each vote said, where there was more than one.
        usage: what asking took, all votes added up.
        replies: the valid answers.
    """

    branches: tuple[str, ...]
    reason: str
    confidence: float
    confidence_is: str
    stated_confidence: float
    votes: Sequence[Mapping[str, Any]] = ()
    usage: Mapping[str, Any]
    replies: Sequence[Reply] = ()

    def record(self) -> dict[str, Any]:
        """Return the proposal as plain data."""
        return {
            "proposed": list(self.branches),
            "reason": self.reason,
            "confidence": round(self.confidence, 4),
            "confidence_is": self.confidence_is,
            "stated_confidence": round(self.stated_confidence, 4),
            "votes": list(self.votes),
        }


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Which branches are taken, and why.

    Attributes:
        outcome: `chosen` as the model proposed, `default`, `ask`: a person is asked, `reviewed`: a person chose, or
            `failed`.
        why: the reason, in words.
        taken: ids of the branches.
        feedback: what the person who chose has written; it is never logged.
    """

    outcome: Literal["chosen", "default", "ask", "reviewed", "failed"]
    why: str
    taken: tuple[str, ...] = ()
    feedback: str = ""

    def record(self) -> dict[str, Any]:
        """Return the decision as plain data."""
        written = {"feedback": self.feedback} if self.feedback else {}
        return {"outcome": self.outcome, "taken": list(self.taken), "why": self.why, **written}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a proposal is decided on.

    Attributes:
        min_confidence: the confidence that a proposal needs.
        bars: the confidence that single branches need instead, by id. The highest of the proposed branches counts.
        default: the branches taken when the model cannot be reached, and where `on_unsure` says so; None: there are
            none.
        on_unsure: what happens with a proposal below its confidence, and with an answer that is not valid.
    """

    min_confidence: float | None
    bars: Mapping[str, float]
    default: tuple[str, ...] | None
    on_unsure: OnUnsure

    def decide(self, proposed: Proposal | LLMError) -> Decision:
        """Return the decision on a proposal, or on the error in its place."""
        if isinstance(proposed, LLMError):
            why = f"{type(proposed).__name__}: {proposed}"
            if not isinstance(proposed, _UNREACHABLE):
                return self._unsure(why)
            if self.default is None:
                return Decision(outcome="failed", why=why)
            return Decision(outcome="default", why=why, taken=self.default)
        # Where no branch is proposed, none has a bar of its own, and the operator's counts.
        bars = [self.bars.get(name, self.min_confidence) for name in proposed.branches] or [
            self.min_confidence
        ]
        bar = max((bar for bar in bars if bar is not None), default=0.0)
        sure = f"confidence {proposed.confidence:.2f} ({proposed.confidence_is})"
        if proposed.confidence >= bar:
            return Decision(outcome="chosen", why=sure, taken=proposed.branches)
        return self._unsure(
            f"{', '.join(proposed.branches) or 'none'} was proposed, but {sure} is below {bar:g}"
        )

    def _unsure(self, why: str) -> Decision:
        match self.on_unsure:
            case "ask":
                return Decision(outcome="ask", why=why)
            case "default" if self.default is not None:
                return Decision(outcome="default", why=why, taken=self.default)
            case _:
                return Decision(outcome="failed", why=why)


def choosing(question: Question, branches: Mapping[str, str], *, multiple: bool) -> Question:
    """Return `question` as the question which of the branches fits.

    Args:
        question: its prompt says what to decide.
        branches: descriptions by id.
        multiple: any number of branches may fit, also none.
    """
    which = "every branch that fits, or none" if multiple else "the one branch that fits best"
    # Indented, so that a description of several lines stays one item of the list.
    listed = "\n".join(f"- {name}: {text}".replace("\n", "\n  ") for name, text in branches.items())
    prompt = _QUESTION.format(prompt=question.prompt, which=which, branches=listed)
    return dataclasses.replace(
        question, prompt=prompt, output_type=_choice_among(list(branches), multiple=multiple)
    )


async def propose(
    engine: Engine, question: Question, options: Options, scope: CallScope, *, votes: int
) -> Proposal | LLMError:
    """Ask a question that `choosing` made, once or `votes` times.

    A vote without a valid answer agrees with no other. Returns the error where all votes have none, or where the model
    cannot be reached.

    Raises:
        LLMError: something has to be changed first, or a retry of the task may help.
    """
    try:
        outcomes = await ask_votes(
            lambda sample: dataclasses.replace(question, sample=sample).ask(engine, options, scope), votes
        )
    except _UNREACHABLE as error:
        # A value and not an exception: the rules may take the default branch for it.
        return error
    usage = _added_up([_usage(outcome) for outcome in outcomes])
    agreement = count_votes([_read(outcome) for outcome in outcomes])
    if agreement is None:
        failed = outcomes[0]
        assert isinstance(failed, AnswerError), "an answer is a vote for something"
        # All votes were paid for, and this error is the only one that is returned.
        failed.usage = usage
        return failed
    is_poll = votes > 1
    voter = outcomes[agreement.voters[0]]
    assert isinstance(voter, Reply), "only an answer is a vote for something"
    return Proposal(
        branches=agreement.choice,
        reason=voter.value.reason,
        confidence=agreement.share if is_poll else agreement.stated,
        confidence_is=f"share of {votes} votes" if is_poll else "stated by the model",
        stated_confidence=agreement.stated,
        votes=[_vote(outcome) for outcome in outcomes] if is_poll else [],
        usage=usage,
        replies=[outcome for outcome in outcomes if isinstance(outcome, Reply)],
    )


def _choice_among(names: list[str], *, multiple: bool) -> Any:
    """Return the type of the answer; the reason comes first, so that the choice follows from it."""
    from pydantic import Field, create_model

    one: Any = Literal[tuple(names)]
    fields: dict[str, Any] = {
        "reason": (str, Field(description="Why, in one sentence")),
        "choice": (list[one] if multiple else one, Field(description="The id, as it is listed")),
        "confidence": (
            float,
            Field(ge=0, le=1, description="How sure you are that the choice is right, 0 to 1"),
        ),
    }
    return create_model("Choice", **fields)


def _read(outcome: Reply | AnswerError) -> tuple[tuple[str, ...], float] | None:
    """Return the chosen branches and the stated confidence; None for a vote without a valid answer."""
    if isinstance(outcome, AnswerError):
        return None
    choice = outcome.value.choice
    # The order of the ids says nothing: two votes for the same branches agree.
    return (choice,) if isinstance(choice, str) else tuple(sorted(set(choice))), outcome.value.confidence


def _vote(outcome: Reply | AnswerError) -> dict[str, Any]:
    if isinstance(outcome, AnswerError):
        return {"error": f"{type(outcome).__name__}: {outcome.complaint}"}
    chosen, confidence = _read(outcome) or ((), 0.0)
    return {"proposed": list(chosen), "reason": outcome.value.reason, "stated_confidence": confidence}


def _usage(outcome: Reply | AnswerError) -> Mapping[str, Any]:
    return outcome.usage_record() if isinstance(outcome, Reply) else outcome.usage


def _added_up(usages: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Add up the usage records of all votes, also of those without a valid answer."""
    first, *others = [usage for usage in usages if usage] or [{}]
    if not others:
        return first
    costs = [usage["cost_usd"] for usage in (first, *others)]
    return {
        **first,
        **{name: sum((usage[name] for usage in others), first[name]) for name in _ADDED_UP},
        # An unknown price makes the sum unknown. It never counts as 0.
        "cost_usd": None if None in costs else str(sum(map(Decimal, costs))),
        "reused": all(usage["reused"] for usage in (first, *others)),
    }
