"""Questions to a person: parked on Airflow's required actions, and read when the answer comes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict
from urllib.parse import quote

import orjson

from airflow_llm_provider.approvals import form
from airflow_llm_provider.approvals.answer import read_answer
from airflow_llm_provider.approvals.form import APPROVE, CHANGE, REJECT
from airflow_llm_provider.engine.request import to_json
from airflow_llm_provider.errors import ChangedSinceShown, TerminalError
from airflow_llm_provider.ledger import reviews
from airflow_llm_provider.ledger.reviews import AskedQuestion, StoredReview, digest
from airflow_llm_provider.validators import Validator

if TYPE_CHECKING:
    from airflow.sdk import BaseNotifier, Context

    from airflow_llm_provider.engine.run import Engine
    from airflow_llm_provider.hooks.claude import ClaudeHook
    from airflow_llm_provider.ledger.records import CallScope

# Shown whole or not at all: MySQL's text columns end at 65,535 bytes, and so does a reader's patience.
MAX_SHOWN_BYTES = 60_000


class User(TypedDict):
    """A user of Airflow, as its auth manager knows them."""

    id: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Review:
    """A question to a person, and the content that is decided on.

    content: text or data that JSON can hold; shown whole, and what goes on.
    subject: the form's headline. body: Markdown above the content: what others wrote goes through `form.line`
        or `form.frame`. aside: Markdown below it that may change without the question being another, such as
        what the content cost.
    options: what can be chosen; with CHANGE among them the content can be edited in the form. REJECT rejects,
        every other option approves; Airflow shows up to four as buttons, more as a list.
    on_timeout: the option that is taken after `response_timeout`; None: the task fails.
    assigned_users: who may decide, as ids or with names; empty: whoever may answer for the DAG.
    on_changed: what happens when the question is no longer what was first shown, which Airflow keeps showing
        through retries and clears: `fail`, or `frozen`: what was first shown is decided on, and goes on.
    key: tells apart the reviews that a task instance keeps. Airflow itself shows *one* question a task
        instance, ever: a second one fails with ChangedSinceShown.
    why: why a person is asked, or is not; kept, and part of the decision.
    """

    subject: str
    content: Any
    body: str = ""
    aside: str = ""
    options: Sequence[str] = (APPROVE, REJECT)
    response_timeout: dt.timedelta | None = None
    on_timeout: str | None = REJECT
    assigned_users: Sequence[str | User] = ()
    on_changed: Literal["fail", "frozen"] = "fail"
    key: str = ""
    why: str = ""

    @property
    def content_json(self) -> bytes:
        """The content's bytes, which its hash is of."""
        from pydantic_core import to_jsonable_python

        return to_json(to_jsonable_python(self.content, by_alias=True))

    @property
    def _users(self) -> list[User]:
        return [
            {"id": user, "name": user} if isinstance(user, str) else {"id": user["id"], "name": user["name"]}
            for user in self.assigned_users
        ]

    def form(self) -> dict[str, Any]:
        """Return what Airflow is given to show; raises TerminalError when it is too long to be shown whole."""
        content = orjson.loads(self.content_json)
        body = "\n\n".join(part for part in (self.body, form.show(content), self.aside) if part)
        if (size := len(body.encode())) > MAX_SHOWN_BYTES:
            raise TerminalError(
                f"The text to be decided on has {size:,} bytes, and a form shows up to {MAX_SHOWN_BYTES:,}. None of it "
                "is cut, since nobody can approve what they have not seen: ask about a part, or about a summary "
                "with the place where all of it can be read."
            )
        return {
            "subject": self.subject,
            "body": body,
            "options": list(self.options),
            "defaults": [self.on_timeout] if self.response_timeout and self.on_timeout else None,
            "params": form.fields(content, editable=CHANGE in self.options),
            "assigned_users": self._users,
        }

    def asked(self, *, is_shown: bool = True) -> AskedQuestion:
        """Return the question as the ledger keeps it."""
        parts = (self.subject, self.body, list(self.options), self.on_timeout, self._users)
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

    status: `approved`, `modified` (approved with changes), `rejected`, `timed_out`, or `passed`: nobody was
        asked, for the reason in `why`.
    choice: the option taken; None when nobody was asked. content: plain data, as edited where it was.
    content_hash: sha256 of its JSON. decided_by: the user's id; None when nobody was.
    took_s: from the first showing to the decision.
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
    def of(cls, kept: StoredReview) -> Self:
        """Return the decision on a question that has one."""
        assert kept.verdict is not None
        verdict = kept.verdict
        return cls(
            status=verdict.status,
            choice=verdict.choice,
            content=orjson.loads(verdict.decided),
            content_hash=digest(verdict.decided),
            feedback=verdict.feedback,
            decided_by=verdict.decided_by,
            decided_at=dt.datetime.fromtimestamp(verdict.decided_ms / 1000, dt.UTC).isoformat(),
            took_s=max(0, verdict.decided_ms - kept.shown_ms) / 1000,
            why=kept.asked.why,
        )

    @property
    def is_rejected(self) -> bool:
        """Whether nothing goes on."""
        return self.choice == REJECT

    @property
    def refusal(self) -> str:
        """Who said no, and why."""
        who = f"{self.decided_by} said no" if self.decided_by else "Nobody decided in time, which means no"
        return f"{who}: {self.feedback}" if self.feedback else f"{who}."

    def record(self) -> dict[str, Any]:
        """Return the decision as plain data."""
        return asdict(self)


def park(
    review: Review,
    *,
    hook: ClaudeHook,
    context: Context,
    resume: str,
    notifiers: BaseNotifier | Sequence[BaseNotifier] = (),
) -> Decision:
    """Ask a person: park the task, without worker or trigger, and go on in its method `resume` with the answer.

    Returns at once what was decided before in this going of the task: a retry asks nobody again, a clear
    does. What is shown is kept in the ledger before it is shown, and Airflow's word for what it really shows
    is compared with it. Notifiers find `review_url` and `review_subject` among their template variables.

    resume: method of the operator, called as `method(context, event)`; it calls `decision`.
    Raises TaskAwaitingInput, which nobody should catch, and AirflowFailException.
    """
    from airflow.sdk.exceptions import TaskAwaitingInput

    scope, is_frozen = hook.scope(context), review.on_changed == "frozen"

    async def keep(engine: Engine) -> tuple[StoredReview, dict[str, Any]]:
        asked = review.asked()
        kept = await engine.ledger.write(
            lambda connection, now_ms: reviews.store_question(
                connection, now_ms, scope, review.key, asked, frozen=is_frozen
            )
        )
        return _standing(kept, scope), _as_shown(kept, asked, review)

    kept, shown = hook.run(keep, context=context)
    if kept.verdict and kept.first_try == scope.first_try:
        return Decision.of(kept)
    if _put_to_airflow(context, shown) != shown:
        raise hook.for_airflow(_changed("Airflow holds another text than should be shown"), context)
    variables: Any = {"review_url": decision_url(context), "review_subject": review.subject}
    for notifier in [notifiers] if callable(notifiers) else notifiers:
        notifier({**context, **variables})
    raise TaskAwaitingInput(method_name=resume, timeout=review.response_timeout)


def decision(
    review: Review,
    event: Mapping[str, Any],
    *,
    hook: ClaudeHook,
    context: Context,
    output_type: Any = None,
    validators: Sequence[Validator] = (),
) -> Decision:
    """Return what was decided, and keep it; call it first in the method that `park` named.

    review: the same as was parked, made anew from what the task is given now.
    output_type, validators: what an edit must be and satisfy.

    Raises AirflowFailException when the question is no longer what was shown, when nobody answered in time
    and no option was to be taken, and for an edit that is not valid; the edit is kept.
    """
    scope = hook.scope(context)

    async def settle(engine: Engine) -> Decision:
        asked = review.asked()
        kept = await engine.ledger.read(lambda connection, _: reviews.find(connection, scope, review.key))
        if kept is None:
            raise _changed("The ledger knows nothing of what was shown")
        _as_shown(kept, asked, review)
        verdict, error = read_answer(
            orjson.loads(kept.asked.content),
            event,
            output_type,
            validators,
            is_editable=CHANGE in review.options,
        )
        await engine.ledger.write(
            lambda connection, _: reviews.store_verdict(connection, scope, review.key, verdict)
        )
        if error:
            raise error
        return Decision.of(replace(kept, verdict=verdict))

    return hook.run(settle, context=context)


def let_pass(review: Review, *, hook: ClaudeHook, context: Context) -> Decision:
    """Return the decision that nobody needed to be asked, for the reason in `review.why`, and keep it.

    What a person decided before in this going of the task is returned instead.
    """
    scope = hook.scope(context)

    async def keep(engine: Engine) -> Decision:
        asked = review.asked(is_shown=False)
        kept = await engine.ledger.write(
            lambda connection, now_ms: reviews.store_not_asked(connection, now_ms, scope, review.key, asked)
        )
        return Decision.of(_standing(kept, scope))

    return hook.run(keep, context=context)


def terms(approval: Mapping[str, Any]) -> dict[str, Any]:
    """Return who is asked and for how long, as a Review takes them: notifiers are told by `park`."""
    return {name: value for name, value in approval.items() if name != "notifiers"}


def decision_url(context: Context) -> str:
    """Return the address of the page where this task's question is decided."""
    from airflow.sdk.configuration import conf

    ti = context["ti"]
    mapped = f"/mapped/{ti.map_index}" if ti.map_index is not None and ti.map_index >= 0 else ""
    parts = ("dags", ti.dag_id, "runs", ti.run_id, "tasks", ti.task_id)
    path = "/".join(quote(part, safe="") for part in parts)
    return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/{path}{mapped}/required_actions"


def _standing(kept: StoredReview, scope: CallScope) -> StoredReview:
    """Return a question; raises TerminalError where a try was killed before it could fail for what was decided."""
    if kept.first_try == scope.first_try and kept.verdict and not kept.verdict.is_final:
        raise TerminalError(
            f"What was decided ({kept.verdict.status}) may not go on. It is kept in the ledger; clear the task to be "
            "asked again."
        )
    return kept


def _as_shown(kept: StoredReview, asked: AskedQuestion, review: Review) -> dict[str, Any]:
    """Return the form as it was first shown; raises ChangedSinceShown when another is asked, or others are."""
    shown: dict[str, Any] = orjson.loads(kept.asked.shown or b"{}")
    if kept.asked.asked_hash == asked.asked_hash:
        return shown
    now = orjson.loads(asked.shown or b"{}")
    if any(shown.get(part) != now[part] for part in ("assigned_users", "options", "defaults")):
        raise _changed("Who may decide, or between what, has changed since it was first shown")
    if review.on_changed == "fail":
        raise _changed("What is to be decided on has changed since it was first shown")
    return shown


def _changed(what: str) -> ChangedSinceShown:
    return ChangedSinceShown(
        f"{what}, and Airflow shows a task instance's first text for ever. Nobody has approved this one, so nothing "
        "goes on: start a new run."
    )


def _put_to_airflow(context: Context, shown: Mapping[str, Any]) -> dict[str, Any]:
    """Give Airflow the form; return the one that it will show, which is the first it was given."""
    from airflow.sdk.execution_time.comms import CreateHITLDetailPayload, HITLDetailRequestResult
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    # As airflow.sdk's upsert_hitl_detail() does, which keeps the reply to itself.
    reply = SUPERVISOR_COMMS.send(CreateHITLDetailPayload(ti_id=context["ti"].id, **shown))
    assert isinstance(reply, HITLDetailRequestResult), reply
    held = reply.model_dump(mode="json", include=set(shown))
    return held | {"assigned_users": held["assigned_users"] or [], "params": held["params"] or {}}
