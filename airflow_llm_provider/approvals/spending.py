"""Spending that a person approves: the estimated price of a run, and a budget that is raised for one task."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.approvals import form
from airflow_llm_provider.approvals.form import APPROVE, CHANGE, REJECT
from airflow_llm_provider.approvals.review import (
    Review,
    ask,
    find_review,
    is_approved,
    pass_without_asking,
    take_answer,
)
from airflow_llm_provider.errors import ChangedSinceShown, InvalidOutput, Rejected
from airflow_llm_provider.ledger import reviews
from airflow_llm_provider.options import Reviewers
from airflow_llm_provider.pricing import micro_usd, usd

if TYPE_CHECKING:
    import sqlalchemy as sa
    from airflow.sdk import Context

    from airflow_llm_provider.approvals.review import Hook
    from airflow_llm_provider.documents.estimate import Estimate
    from airflow_llm_provider.errors import BudgetAsks
    from airflow_llm_provider.ledger.records import CallScope

log = logging.getLogger(__name__)

# Fields of the forms. What a person has seen is read back from them, so they name the amounts too.
_RAISED_TO = "raise to (USD)"
_COVERED = "a yes covers, at most (USD)"
_UNKNOWN = "any price"

# Keys of the reviews, one of each per task instance.
_BUDGET, _PRICE = "budget", "price"


@dataclass(frozen=True, kw_only=True)
class PriceCheck:
    """Asks a person before a run whose estimated price is above a limit.

    Attributes:
        estimate: what the run is likely to cost.
        above_micro_usd: a likely price above it is asked about, and so is an unknown price.
        reviewers: who is asked.
    """

    estimate: Estimate
    above_micro_usd: int
    reviewers: Reviewers

    def require_approval(
        self,
        *,
        hook: Hook,
        context: Context,
        resume: str,
        event: Mapping[str, Any] | None,
    ) -> None:
        """Return when the run may be paid for; park the task where a person has to be asked first.

        Args:
            hook: of the connection whose ledger keeps the review.
            context: of the task instance.
            resume: the name of the operator's method that goes on with the answer.
            event: what Airflow resumed the task with; None before a person is asked.

        Raises:
            AirflowFailException: a person rejected the price, or the price is now higher than what a person was
                shown. Airflow always shows the first question of a task instance, so it can't be asked again.
        """
        review = self._review()
        if event is not None:
            decision = take_answer(review, event, hook=hook, context=context)
        elif self._is_above:
            stored = find_review(_PRICE, hook=hook, context=context)
            # Before the task is parked: a person would be shown the earlier price again, and could not approve the new
            # one.
            if stored and stored.asked.shown:
                self._require_covered(orjson.loads(stored.asked.content), hook, context)
            decision = ask(review, hook=hook, context=context, resume=resume)
        else:
            decision = pass_without_asking(review, hook=hook, context=context)
        if decision.is_rejected:
            rejected = (
                f"The price was not approved ({decision.why}). {decision.rejection} Nothing was sent. Clear the task "
                "to ask again."
            )
            raise hook.for_airflow(Rejected(rejected), context)
        self._require_covered(decision.content, hook, context)
        who = f"Approved by {decision.decided_by}" if decision.decided_by else "Nobody was asked"
        log.info("%s: %s", who, decision.why)

    @property
    def _likely_micro_usd(self) -> int | None:
        cost = self.estimate.cost_micro_usd
        return None if cost is None else round(cost.likely)

    @property
    def _is_above(self) -> bool:
        likely = self._likely_micro_usd
        return likely is None or likely > self.above_micro_usd

    def _review(self) -> Review:
        likely, limit = usd(self._likely_micro_usd), usd(self.above_micro_usd)
        price = f"about ${likely}" if likely else "an unknown price"
        is_above = "above" if self._is_above else "not above"
        why = f"{price}, which is {is_above} ${limit}" if likely else "a model has no known price"
        return Review(
            key=_PRICE,
            subject=f"Ask about {self.estimate.outcomes['pending']:,} documents, for {price}?",
            body="Nothing has been sent yet. Tokens and price: low, likely, high.",
            content=self._content(),
            aside=form.titled("Asked because", why),
            # An estimate differs a little at each try. Whether the price is still covered is checked apart, by its
            # amount.
            on_changed="frozen",
            why=why,
            reviewers=self.reviewers,
        )

    def _content(self) -> dict[str, str]:
        cost = self.estimate.cost_micro_usd
        # Without a history `high` is a bound, many times the likely price: who approves "about $2" does not mean $60.
        covered = None if cost is None else round(min(cost.high, 2 * cost.likely))
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.estimate.reasons.most_common(20))
        return {
            **self.estimate.as_text(),
            **({"dead letters": reasons} if reasons else {}),
            "estimated": self.estimate.basis,
            _COVERED: usd(covered) or _UNKNOWN,
        }

    def _require_covered(self, content: Mapping[str, str], hook: Hook, context: Context) -> None:
        """Raise AirflowFailException where the price is now higher than what a person was shown."""
        if content[_COVERED] == _UNKNOWN:
            return
        likely = self._likely_micro_usd
        if likely is None or likely > micro_usd(content[_COVERED]):
            now = f"${usd(likely)}" if likely is not None else "unknown"
            error = ChangedSinceShown(
                f"The price is now {now}, and a person was shown a price up to ${content[_COVERED]}. Airflow always "
                "shows the first question of a task instance, so the new price can't be asked about. Nothing was "
                "sent. Start a new run, or raise budget.confirm_above_usd."
            )
            raise hook.for_airflow(error, context)


def ask_to_raise(
    refused: BudgetAsks, *, reviewers: Reviewers, hook: Hook, context: Context, resume: str
) -> str:
    """Ask a person to raise the budget, which parks the task; return the reason where nobody can be asked.

    Nobody is asked when, since the task was last cleared, a person has rejected it or the raise is used up.

    Args:
        refused: the error of the call that did not fit.
        reviewers: who is asked.
        hook: of the connection whose ledger keeps the review.
        context: of the task instance.
        resume: the name of the operator's method that goes on; it calls `keep_raise`.
    """
    cap = usd(refused.booked_micro_usd + refused.need_micro_usd * refused.calls)
    review = _raise_review(
        reviewers,
        subject=f"Raise budget {refused.budget}?",
        body=f"{form.line(str(refused))}\n\nAn approval raises the budget for this task alone, to the amount below, "
        "which can be changed. Calls reserve the most they could cost, and are settled at what they do cost.",
        content={"budget": refused.budget, "of": refused.label, _RAISED_TO: cap},
    )
    try:
        decision = ask(review, hook=hook, context=context, resume=resume)
    except AirflowFailException as error:  # this task instance has asked something else before
        return str(error)
    if decision.is_rejected:
        return decision.rejection
    return f"it was raised to ${decision.content[_RAISED_TO]} before. Clear the task to ask again."


def keep_raise(event: Mapping[str, Any], *, reviewers: Reviewers, hook: Hook, context: Context) -> None:
    """Keep what a person decided about a budget; raises AirflowFailException when the amount is not one."""
    # The error that led to the question is gone with its attempt. `frozen` takes what the ledger says was shown.
    review = _raise_review(reviewers, subject="", body="", content={})
    take_answer(review, event, hook=hook, context=context, validators=[_require_amount])


def find_raises(connection: sa.Connection, scope: CallScope) -> dict[tuple[str, str], int]:
    """Return the caps that were raised since the task was last cleared, in micro-USD.

    The keys are the name of the budget and what it is of.
    """
    stored = reviews.find(connection, scope, _BUDGET)
    if stored is None or stored.verdict is None or not is_approved(stored, scope):
        return {}
    shown = orjson.loads(stored.asked.content)  # of what was typed, only the amount counts
    return {(shown["budget"], shown["of"]): micro_usd(orjson.loads(stored.verdict.decided)[_RAISED_TO])}


def _raise_review(reviewers: Reviewers, *, subject: str, body: str, content: Mapping[str, Any]) -> Review:
    return Review(
        key=_BUDGET,
        subject=subject,
        body=body,
        content=content,
        options=(APPROVE, CHANGE, REJECT),
        on_changed="frozen",
        why="a call does not fit into a budget",
        reviewers=reviewers,
    )


def _require_amount(content: Any) -> None:
    try:
        micro_usd(content[_RAISED_TO])
    except (ValueError, KeyError, TypeError):
        raise InvalidOutput(f"{_RAISED_TO!r} is not an amount in US dollars, such as 2.50.") from None
