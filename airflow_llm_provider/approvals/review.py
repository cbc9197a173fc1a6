"""Reviews: questions that a person answers in Airflow's required actions, and the decisions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self
from urllib.parse import quote

import orjson

from airflow_llm_provider import _airflow
from airflow_llm_provider.approvals import form
from airflow_llm_provider.approvals.answer import read_answer
from airflow_llm_provider.approvals.form import APPROVE, CHANGE, REJECT
from airflow_llm_provider.engine.request import to_json
from airflow_llm_provider.errors import ChangedSinceShown, LLMError, TerminalError
from airflow_llm_provider.ledger import reviews
from airflow_llm_provider.ledger.reviews import AskedQuestion, StoredReview, digest
from airflow_llm_provider.ledger.transactions import open_transactions
from airflow_llm_provider.options import Reviewers
from airflow_llm_provider.validators import Validator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_llm_provider.ledger.records import CallScope

MAX_FORM_BYTES = 60_000
"""A longer text is not shown: MySQL's text columns end at 65,535 bytes."""

_CHOICES_ON_TIMEOUT: Mapping[str, str | None] = {"reject": REJECT, "approve": APPROVE, "fail": None}


class Connection(Protocol):
    """The part of a connection that reviews need."""

    @property
    def ledger_url(self) -> str:
        """The URL of the ledger that keeps the reviews."""


class Hook(Protocol):
    """The part of ClaudeHook that reviews need; its module imports this package, so this one does not import it."""

    @property
    def connection(self) -> Connection:
        """The connection."""

    def scope(self, context: Context) -> CallScope:
        """Return the task instance as the ledger writes it down."""

    def for_airflow(self, error: BaseException, context: Context | None) -> BaseException:
        """Return the error as Airflow should see it."""


@dataclass(frozen=True, kw_only=True)
class Review:
    """A question to a person, and the content that is decided on.

    Attributes:
        subject: the headline of the form.
        content: text or data that JSON can hold. It is shown whole, and it is what goes on.
        body: Markdown above the content. Text of others goes through `form.line` or `form.frame`.
        aside: Markdown below the content that may change without making it another question, such as a price.
        options: what can be chosen. With CHANGE among them, the content can be edited in the form. REJECT rejects,
            every other option approves. Airflow shows up to four options as buttons, more as a list.
        reviewers: who may decide, and for how long.
        choices_on_timeout: the option that each value of `reviewers.on_timeout` chooses; None: the task fails.
        on_changed: what happens when the question is no longer what was first shown, which Airflow keeps showing
            through retries and clears: `fail`; or `frozen`: what was first shown is decided on, and goes on.
        key: tells apart the reviews that a task instance keeps. Airflow itself shows one question per task
            instance; a second one fails with ChangedSinceShown.
        why: why a person is asked, or is not; part of the decision.
    """

    subject: str
    content: Any
    body: str = ""
    aside: str = ""
    options: Sequence[str] = (APPROVE, REJECT)
    reviewers: Reviewers = field(default_factory=Reviewers)
    choices_on_timeout: Mapping[str, str | None] = field(default_factory=lambda: _CHOICES_ON_TIMEOUT)
    on_changed: Literal["fail", "frozen"] = "fail"
    key: str = ""
    why: str = ""

    @property
    def content_json(self) -> bytes:
        """The content as JSON; its hash is the hash of these bytes."""
        from pydantic_core import to_jsonable_python

        return to_json(to_jsonable_python(self.content, by_alias=True))

    @property
    def _choice_on_timeout(self) -> str | None:
        return self.choices_on_timeout[self.reviewers.on_timeout]

    @property
    def _users(self) -> list[dict[str, str]]:
        return [
            {"id": user, "name": user} if isinstance(user, str) else {"id": user["id"], "name": user["name"]}
            for user in self.reviewers.users
        ]

    def form(self) -> dict[str, Any]:
        """Return what Airflow is given to show; raises TerminalError when it is too long to be shown whole."""
        content = orjson.loads(self.content_json)
        # The headline is one line, so what draws nothing in it is counted at the top of the text.
        unseen = form.note_on(self.subject).strip()
        unseen = f"Headline: {unseen}" if unseen else ""
        body = "\n\n".join(part for part in (unseen, self.body, form.show(content), self.aside) if part)
        if (size := len(body.encode())) > MAX_FORM_BYTES:
            raise TerminalError(
                f"The text to be decided on has {size:,} bytes, and a form shows up to {MAX_FORM_BYTES:,}. The text is "
                "not cut, because nobody can approve what they have not seen. Ask about a part of it, or about a "
                "summary that says where the whole text can be read."
            )
        choice = self._choice_on_timeout if self.reviewers.timeout else None
        return {
            "subject": form.visible(self.subject),
            "body": body,
            "options": list(self.options),
            "defaults": [choice] if choice else None,
            "params": form.fields(content, editable=CHANGE in self.options),
            "assigned_users": self._users,
        }

    def asked(self, *, is_shown: bool = True) -> AskedQuestion:
        """Return the question as the ledger keeps it."""
        # Without the aside: an estimate of the price that has changed is still the same question.
        parts = (self.subject, self.body, list(self.options), self._choice_on_timeout, self._users)
        content = self.content_json
        return AskedQuestion(
            asked_hash=digest(to_json([*parts, digest(content)], sort_keys=True)),
            shown=to_json(self.form()) if is_shown else None,
            content=content,
            why=self.why,
        )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided, by whom, and the content that goes on.

    Attributes:
        status: `approved`, `modified` (approved with changes), `rejected`, `timed_out`, or `passed`: nobody was asked,
            for the reason in `why`.
        choice: the chosen option; None when nobody was asked.
        content: plain data, as edited where it was edited.
        content_hash: the sha256 of its JSON, in hex.
        feedback: what the person wrote.
        decided_by: the id of the user; None when nobody decided.
        decided_at: an ISO 8601 time in UTC.
        took_s: seconds from the first showing to the decision.
        why: why a person was asked, or was not.
    """

    status: str
    choice: str | None
    content: Any
    content_hash: str
    feedback: str
    decided_by: str | None
    decided_at: str
    took_s: float
    why: str

    @classmethod
    def of(cls, stored: StoredReview) -> Self:
        """Return the decision on a question that has been decided."""
        verdict = stored.verdict
        assert verdict is not None
        assert verdict.decided_ms is not None, "a stored verdict has its time"
        return cls(
            status=verdict.status,
            choice=verdict.choice,
            content=orjson.loads(verdict.decided),
            content_hash=digest(verdict.decided),
            feedback=verdict.feedback,
            decided_by=verdict.decided_by,
            decided_at=dt.datetime.fromtimestamp(verdict.decided_ms / 1000, dt.UTC).isoformat(),
            took_s=(verdict.decided_ms - stored.shown_ms) / 1000,
            why=stored.asked.why,
        )

    @property
    def is_rejected(self) -> bool:
        """Whether nothing goes on."""
        return self.choice == REJECT

    @property
    def rejection(self) -> str:
        """Who rejected it, as a sentence; what they wrote stays in the form and in the decision."""
        who = (
            f"{self.decided_by} rejected it" if self.decided_by else "Nobody answered in time, which rejects"
        )
        return f"{who}, with a feedback of {len(self.feedback):,} characters." if self.feedback else f"{who}."

    def record(self) -> dict[str, Any]:
        """Return the decision as plain data."""
        return asdict(self)


def ask(review: Review, *, hook: Hook, context: Context, resume: str) -> Decision:
    """Ask a person: park the task, without a worker or a trigger; it goes on in its method `resume`.

    Returns at once when this has been decided since the task was last cleared: a retry asks nobody again, a clear does.
    The ledger keeps what is shown before it is shown, and compares it with what Airflow says it really shows.
    Notifiers find `review_url` and `review_subject` among their template variables.

    Args:
        review: the question.
        hook: of the connection whose ledger keeps the review.
        context: of the task instance that asks.
        resume: the name of a method of the operator, called as `method(context, event)`; it calls `take_answer`.

    Raises:
        TaskAwaitingInput, TaskDeferred: the task is parked; nobody should catch it.
        AirflowFailException: the question cannot be asked.
    """
    from airflow.sdk.exceptions import TaskAwaitingInput

    scope = hook.scope(context)
    try:
        asked = review.asked()
        with open_transactions(hook.connection.ledger_url) as ledger:
            stored = ledger.write(
                lambda connection, _: reviews.store_question(
                    connection, scope, review.key, asked, frozen=review.on_changed == "frozen"
                )
            )
            _require_usable(stored, scope)
            # Before the verdict is used: the approval of an earlier text must not hold for another one.
            shown = _as_shown(stored, asked, review)
            # A clear moves the first try, and what was decided before no longer counts.
            if stored.first_try == scope.first_try:
                if stored.verdict:
                    return Decision.of(stored)
                # To show the form again would delete an answer that may be there.
                if stored.shown_ms:  # by an earlier attempt
                    raise _look_for_answer(review, scope, context, resume)
            _notify(review, context)
            # Airflow keeps the first form of a task instance and reports no error when it is given another one.
            if _airflow.show_form(context["ti"].id, shown) != shown:
                raise _changed("Airflow shows another text than it should")
            ledger.write(
                # Only now: an attempt that is killed before this line shows the form again, one that is killed after it
                # does not.
                lambda connection, now_ms: reviews.store_shown(connection, now_ms, scope, review.key)
            )
    except LLMError as error:
        raise hook.for_airflow(error, context) from None
    raise TaskAwaitingInput(method_name=resume, timeout=review.reviewers.timeout)


def take_answer(
    review: Review,
    event: Mapping[str, Any],
    *,
    hook: Hook,
    context: Context,
    output_type: Any = None,
    validators: Sequence[Validator] = (),
) -> Decision:
    """Keep the answer in the ledger and return the decision; call it first in the method that `ask` named.

    Args:
        review: the same question, made again from what the task is given now.
        event: what Airflow resumes the task with.
        hook: of the connection whose ledger keeps the review.
        context: of the task instance that asked.
        output_type: what an edit must be.
        validators: what an edit must satisfy.

    Raises:
        AirflowFailException: the question is no longer what was shown; nobody answered in time and nothing is chosen
            then; or an edit is not valid. An invalid edit is kept.
    """
    scope = hook.scope(context)
    event = _answer_in(event, review, context)
    try:
        asked = review.asked()
        with open_transactions(hook.connection.ledger_url) as ledger:
            stored = ledger.read(lambda connection, _: reviews.find(connection, scope, review.key))
            if stored is None:
                raise _changed("The ledger does not know what was shown")
            _as_shown(stored, asked, review)
            # The content may have changed while the task was parked. What the person saw is what the ledger kept.
            verdict, error = read_answer(
                orjson.loads(stored.asked.content),
                event,
                output_type,
                validators,
                is_editable=CHANGE in review.options,
            )
            # Kept before the error is raised, so that an edit that is not valid is not lost.
            verdict = ledger.write(
                partial(reviews.store_verdict, scope=scope, key=review.key, verdict=verdict)
            )
        if error:
            raise error
    except LLMError as error:
        raise hook.for_airflow(error, context) from None
    return Decision.of(replace(stored, verdict=verdict))


def pass_without_asking(review: Review, *, hook: Hook, context: Context) -> Decision:
    """Return the decision that nobody needs to be asked, for the reason in `review.why`, and keep it.

    What a person has decided since the task was last cleared is returned instead.
    """
    scope = hook.scope(context)
    try:
        asked = review.asked(is_shown=False)
        with open_transactions(hook.connection.ledger_url) as ledger:
            stored = ledger.write(
                lambda connection, now_ms: reviews.store_not_asked(
                    connection, now_ms, scope, review.key, asked
                )
            )
        _require_usable(stored, scope)
    except LLMError as error:
        raise hook.for_airflow(error, context) from None
    return Decision.of(stored)


def find_review(key: str, *, hook: Hook, context: Context) -> StoredReview | None:
    """Return what the ledger keeps of the task instance's question `key`; None when it was never asked."""
    try:
        with open_transactions(hook.connection.ledger_url) as ledger:
            return ledger.read(partial(_find, scope=hook.scope(context), key=key))
    except LLMError as error:
        raise hook.for_airflow(error, context) from None


def is_approved(stored: StoredReview | None, scope: CallScope) -> bool:
    """Tell whether a question has been approved since the task was last cleared."""
    if stored is None or stored.verdict is None or stored.first_try != scope.first_try:
        return False
    return stored.verdict.is_final and stored.verdict.choice not in (None, REJECT)


def review_url(context: Context) -> str:
    """Return the address of the page where this task's question is answered."""
    from airflow.sdk.configuration import conf

    ti = context["ti"]
    mapped = f"/mapped/{ti.map_index}" if ti.map_index is not None and ti.map_index >= 0 else ""
    parts = ("dags", ti.dag_id, "runs", ti.run_id, "tasks", ti.task_id)
    path = "/".join(quote(part, safe="") for part in parts)
    return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/{path}{mapped}/required_actions"


def _find(connection: Any, _: int, *, scope: CallScope, key: str) -> StoredReview | None:
    return reviews.find(connection, scope, key)


def _notify(review: Review, context: Context) -> None:
    """Tell the notifiers, before the form is shown: an answer before the task is parked could get lost."""
    variables: Any = {"review_url": review_url(context), "review_subject": review.subject}
    notifiers = review.reviewers.notifiers
    for notifier in [notifiers] if callable(notifiers) else notifiers:
        notifier({**context, **variables})


def _look_for_answer(review: Review, scope: CallScope, context: Context, resume: str) -> BaseException:
    """Return the exception that parks this attempt: an earlier one has shown the form, so the answer may be stored.

    The scheduler can mark a parked task failed when it is answered within seconds. Showing the form again would delete
    the answer, so a trigger looks for it. Every other attempt parks again without a trigger, for an Airflow whose
    triggerer does not run: Airflow resumes the task itself where it has the answer.
    """
    from airflow.sdk.exceptions import TaskAwaitingInput, TaskDeferred

    from airflow_llm_provider.approvals.trigger import LONGEST_LOOK, AnswerTrigger

    ti = context["ti"]
    if (scope.try_number - scope.first_try) % 2 == 1:
        trigger = AnswerTrigger(ti_id=str(ti.id), resume=resume)
        return TaskDeferred(trigger=trigger, method_name=resume, timeout=LONGEST_LOOK)
    return TaskAwaitingInput(method_name=resume, timeout=review.reviewers.timeout)


def _answer_in(event: Mapping[str, Any], review: Review, context: Context) -> Mapping[str, Any]:
    """Return the answer of which AnswerTrigger says that it is there, else the event itself, which is the answer.

    Raises TaskAwaitingInput where the trigger found none.
    """
    from airflow.sdk.exceptions import TaskAwaitingInput

    from airflow_llm_provider.approvals.trigger import ANSWER, IS_ANSWERED, RESUME

    if IS_ANSWERED not in event:
        return event
    if not event[IS_ANSWERED]:
        raise TaskAwaitingInput(method_name=event[RESUME], timeout=review.reviewers.timeout)
    ti = context["ti"]
    answer = dict(ti.xcom_pull(key=ANSWER, map_indexes=ti.map_index))
    return {**answer, "responded_at": dt.datetime.fromisoformat(answer["responded_at"])}


def _require_usable(stored: StoredReview, scope: CallScope) -> None:
    """Raise TerminalError when an attempt was killed before it could fail for what was decided."""
    if stored.first_try == scope.first_try and stored.verdict and not stored.verdict.is_final:
        raise TerminalError(
            f"The answer ({stored.verdict.status}) cannot be used. The ledger keeps it; clear the task to ask again."
        )


def _as_shown(stored: StoredReview, asked: AskedQuestion, review: Review) -> dict[str, Any]:
    """Return the form as it was first shown; raises ChangedSinceShown when the question or the users have changed."""
    shown: dict[str, Any] = orjson.loads(stored.asked.shown or b"{}")
    if stored.asked.asked_hash == asked.asked_hash:
        return shown
    now = orjson.loads(asked.shown or b"{}")
    # Airflow keeps these of the first form as well: the first users would decide, whatever the DAG says now.
    if any(shown.get(part) != now[part] for part in ("assigned_users", "options", "defaults")):
        raise _changed("Who may decide, or between what, has changed since it was first shown")
    if review.on_changed == "fail":
        raise _changed("What is to be decided on has changed since it was first shown")
    return shown


def _changed(what: str) -> ChangedSinceShown:
    return ChangedSinceShown(
        f"{what}. Airflow always shows the first text of a task instance, so nobody has approved this one and nothing "
        "goes on. Start a new run."
    )
