"""Spending that a person approves: the estimated price of a run, and a budget that is raised for one task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider.approvals import form
from airflow_llm_provider.approvals.form import APPROVE, CHANGE, REJECT
from airflow_llm_provider.approvals.review import Review, decision, let_pass, park, terms
from airflow_llm_provider.errors import ChangedSinceShown, Rejected
from airflow_llm_provider.ledger import reviews
from airflow_llm_provider.pricing import micro_usd, usd

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.documents.estimate import Estimate
    from airflow_llm_provider.engine.run import Engine
    from airflow_llm_provider.errors import BudgetAsks
    from airflow_llm_provider.hooks.claude import ClaudeHook
    from airflow_llm_provider.ledger.records import CallScope

_BUDGET_KEY = "budget"
_CAP = "raise to (USD)"
_PRICE_KEY = "price"
_COVERED = "a yes covers, at most (USD)"
_UNKNOWN = "any price"


@dataclass(frozen=True, kw_only=True)
class PriceCheck:
    """What a run is estimated to cost, and the price above which a person is asked.

    above_micro_usd: compared with what is likely; an unknown price is above every bar.
    approval: `response_timeout`, after which it is a no, `assigned_users` and `notifiers`.
    """

    estimate: Estimate
    above_micro_usd: int
    approval: Mapping[str, Any]

    def require_approval(
        self, *, hook: ClaudeHook, context: Context, resume: str, said: Mapping[str, Any] | None
    ) -> None:
        """Return when the run may be paid for; where a person has yet to say so, park the task.

        resume, said: the operator's method that goes on, and what Airflow then gave it. Raises
        AirflowFailException for a no, and for a price that has outgrown what a person was shown: Airflow shows
        a task instance's first question for ever.
        """
        review = self._review()
        if said is not None:
            decided = decision(review, said, hook=hook, context=context)
        elif self._is_above:
            self._require_covered(self._shown(hook, context), hook, context)
            notifiers = self.approval.get("notifiers", ())
            decided = park(review, hook=hook, context=context, resume=resume, notifiers=notifiers)
        else:
            decided = let_pass(review, hook=hook, context=context)
        if decided.is_rejected:
            refused = f"Not to be paid for ({decided.why}). {decided.refusal} Clear the task to ask again."
            raise hook.for_airflow(Rejected(refused), context)
        self._require_covered(decided.content, hook, context)
        hook.log.info(
            "%s: %s",
            f"{decided.decided_by} said yes" if decided.decided_by else "Nobody is asked",
            decided.why,
        )

    @property
    def _likely_micro_usd(self) -> int | None:
        cost = self.estimate.cost_micro_usd
        return None if cost is None else round(cost.likely)

    @property
    def _is_above(self) -> bool:
        likely = self._likely_micro_usd
        return likely is None or likely > self.above_micro_usd

    def _review(self) -> Review:

        likely, bar = usd(self._likely_micro_usd), usd(self.above_micro_usd)
        price = f"about ${likely}" if likely else "an unknown price"
        is_above = "above" if self._is_above else "not above"
        why = f"{price}, which is {is_above} ${bar}" if likely else "a model has no known price"
        return Review(
            key=_PRICE_KEY,
            subject=f"Ask about {self.estimate.outcomes['pending']:,} documents, for {price}?",
            body="Nothing has been sent yet. Tokens and price: low, likely, high.",
            content=self._content(),
            aside=form.titled("Asked because", why),
            on_changed="frozen",
            why=why,
            **terms(self.approval),
        )

    def _content(self) -> dict[str, str]:
        cost = self.estimate.cost_micro_usd
        # Without a history high is a bound, many times likely: nobody who reads "about $2" means to pay $60.
        covered = None if cost is None else round(min(cost.high, 2 * cost.likely))
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.estimate.reasons.most_common(20))
        return {
            **self.estimate.told(),
            **({"dead letters": reasons} if reasons else {}),
            "estimated": self.estimate.basis,
            _COVERED: usd(covered) or _UNKNOWN,
        }

    def _shown(self, hook: ClaudeHook, context: Context) -> Any:
        """Return what this task instance has shown a person before; None for nothing."""
        scope = hook.scope(context)

        async def find(engine: Engine) -> reviews.StoredReview | None:
            return await engine.ledger.read(lambda connection, _: reviews.find(connection, scope, _PRICE_KEY))

        kept = hook.run(find, context=context)
        return orjson.loads(kept.asked.content) if kept and kept.asked.shown else None

    def _require_covered(self, content: Any, hook: ClaudeHook, context: Context) -> None:
        """Raise AirflowFailException where the price is no longer what a person was shown."""
        if content is None or content[_COVERED] == _UNKNOWN:
            return
        likely = self._likely_micro_usd
        if likely is None or likely > micro_usd(content[_COVERED]):
            now = f"${usd(likely)}" if likely is not None else "unknown"
            error = ChangedSinceShown(
                f"The price is now {now}, and a person was shown one up to ${content[_COVERED]}. Airflow shows a "
                "task instance's first question for ever, so this one can't be asked anew. Nothing was sent: start "
                "a new run, or raise confirm_above_usd=."
            )
            raise hook.for_airflow(error, context)


def ask_to_raise(refused: BudgetAsks, *, hook: ClaudeHook, context: Context) -> str:
    """Park the task until a person has said what the budget may hold; return why nobody is asked.

    The operator goes on in its method `budget_decided`. Nobody is asked where somebody has said no, or a raise is used
    up, in this going of the task.
    """
    cap = usd(refused.booked_micro_usd + refused.need_micro_usd * refused.calls)
    approval = getattr(context["task"], "approval", {})
    review = _raise_review(
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


def keep_raise(event: Mapping[str, Any], *, hook: ClaudeHook, context: Context) -> None:
    """Keep what a person said; raises AirflowFailException for what is no amount."""
    review = _raise_review(getattr(context["task"], "approval", {}), subject="", body="", content={})
    decision(review, event, hook=hook, context=context, validators=[_complaint_of_amount])


async def approved_raises(engine: Engine, scope: CallScope) -> dict[tuple[str, str], int]:
    """Return what was raised in this going of the task: caps by the budget's name and what it is of."""
    kept = await engine.ledger.read(lambda connection, _: reviews.find(connection, scope, _BUDGET_KEY))
    if kept is None or kept.verdict is None or kept.first_try != scope.first_try:
        return {}
    if kept.verdict.status not in (reviews.APPROVED, reviews.MODIFIED):
        return {}
    shown = orjson.loads(kept.asked.content)  # of what was typed, only the amount counts
    return {(shown["budget"], shown["of"]): micro_usd(orjson.loads(kept.verdict.decided)[_CAP])}


def _raise_review(
    approval: Mapping[str, Any], *, subject: str, body: str, content: Mapping[str, Any]
) -> Review:
    return Review(
        key=_BUDGET_KEY,
        subject=subject,
        body=body,
        content=content,
        options=(APPROVE, CHANGE, REJECT),
        on_changed="frozen",
        why="a budget has no room",
        **terms(approval),
    )


def _complaint_of_amount(content: Any) -> str | None:
    try:
        micro_usd(content[_CAP])
    except (ValueError, KeyError, TypeError):
        return f"{_CAP!r} is no amount in US dollars, such as 2.50."
    return None
