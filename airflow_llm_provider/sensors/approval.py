"""ApprovalSensor: a person decides on what a task produced, and exactly that goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import BaseOperator, SkipMixin, XComArg
from airflow.sdk.exceptions import AirflowFailException

from airflow_llm_provider import _airflow
from airflow_llm_provider.approvals.retries import add_retries, with_retries
from airflow_llm_provider.argument_checks import require_choice
from airflow_llm_provider.errors import Rejected
from airflow_llm_provider.hooks import downstream
from airflow_llm_provider.hooks.arguments import require_arguments
from airflow_llm_provider.hooks.claude import ClaudeHook
from airflow_llm_provider.hooks.connection import DEFAULT_CONNECTION
from airflow_llm_provider.options import Reviewers, User
from airflow_llm_provider.sensors.conditions import Facts, When, judge, require_conditions

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.definitions.mappedoperator import OperatorPartial
    from airflow.sdk.types import Operator

    from airflow_llm_provider.approvals.review import Decision, Review

OnChanged = Literal["fail", "frozen"]


class Content:
    """The content once it is resolved: Airflow does not show it under Rendered Templates."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "<content>"


# Not a BaseSensorOperator: that has a timeout of its own, of seven days.
class ApprovalSensor(BaseOperator, SkipMixin):
    """Ask a person to approve, change or reject what a task produced; waits without a worker or a trigger.

    Nobody is asked twice: a retry finds what was answered, and only a clear asks again. So `retries` is 3 by default,
    and `retry_delay` 10 seconds: an answer within seconds after the question was shown can make Airflow fail the task.

    A rejection holds in mapped tasks and mapped task groups, too: what is downstream at the same map index is skipped.
    Where a task downstream belongs to several map indexes, such as a task that joins them, the sensor fails instead,
    and a task directly downstream whose trigger rule runs after failures is an error when the DAG is parsed.

    The task returns a dict with status (approved, modified, rejected, timed_out, passed), choice, content,
    content_hash, feedback, decided_by, decided_at, took_s and why. A second XCom, `content`, is what goes on, as it was
    shown or typed.

    Args:
        content: what is decided on, and goes on: text, or anything JSON can hold, most often another task's `.output`.
            It is shown whole, up to 60,000 bytes; a longer content fails the task.
        subject: the headline of the question; templates work here, and in `action` and `risk`.
        action: what will be done once it is approved.
        risk: what that may do.
        editable: whether "Approve with changes" is offered. An edit is typed in the form and checked when the task
            resumes; one that is not valid fails the task, and the ledger keeps it.
        output_type: what an edit must be, as for ClaudeOperator. What was typed goes on.
        validators: functions of the edited value that return None or a complaint.
        when: whether a person is asked at all: `always`; BelowConfidence, AboveCost, OnComplaints or RandomShare of
            `sensors.conditions`; a function of the content that returns whether, or the reason; or a list, of which any
            one asks.
        on_reject: `skip` what is downstream, `fail`, or the id of a task or group directly downstream, which runs after
            a rejection only, and then alone.
        ignore_downstream_trigger_rules: with `skip`: skip all that is downstream. By default only what is directly
            downstream is skipped, and trigger rules decide about the rest.
        reviewers: who is asked, for how long, and what happens when nobody answers; user names or a Reviewers. In the
            templates of its notifiers, `{{ review_url }}` is the page of the question and `{{ review_subject }}` its
            headline.
        on_changed: what happens when the content or the question is no longer what was first shown, which Airflow shows
            through retries and clears: `fail`, or `frozen`: what was first shown is decided on and goes on.
        claude_conn_id: the Airflow connection, of type `claude`, whose ledger keeps what was shown and decided. No
            model is asked.

    Raises:
        AirflowFailException: for what a retry cannot help.
    """

    template_fields: Sequence[str] = ("subject", "content", "action", "risk", "claude_conn_id")
    deserialization_allowed_class_fields = ("output_type",)
    # With SkipMixin as a base, this lets the scheduler look for decisions to skip: of a mapped task and of a plain one.
    inherits_from_skipmixin = True
    ui_color = "#e6e0f0"

    def __init__(
        self,
        *,
        content: Any,
        subject: str,
        action: str | None = None,
        risk: str | None = None,
        editable: bool = True,
        output_type: Any = None,
        validators: Sequence[Any] = (),
        when: When | Sequence[When] = "always",
        on_reject: str = "skip",
        ignore_downstream_trigger_rules: bool = False,
        reviewers: Reviewers | Sequence[User] | str | None = None,
        on_changed: OnChanged = "fail",
        claude_conn_id: str = DEFAULT_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(**with_retries(kwargs))
        self._content: Any = content
        # Known only here: once the content is resolved, nothing tells where it came from.
        self._sources = sorted({task.task_id for task, _ in XComArg.iter_xcom_references(content)})
        self.subject = subject
        self.action = action
        self.risk = risk
        self.editable = editable
        self.output_type = output_type
        self.validators = validators
        self.when = when
        self.on_reject = on_reject
        self.ignore_downstream_trigger_rules = ignore_downstream_trigger_rules
        self.reviewers = reviewers
        self.on_changed = on_changed
        self.claude_conn_id = claude_conn_id
        self.require_arguments(vars(self))

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Return a partial, with its arguments checked when the DAG is parsed."""
        cls.require_arguments(kwargs)
        made = super().partial(**kwargs)
        add_retries(made, kwargs)
        return _airflow.CheckedPartial.of(made)

    @classmethod
    def require_arguments(cls, arguments: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError, when the DAG is parsed, for arguments that are not valid."""
        require_arguments(arguments, templated=cls.template_fields)
        require_conditions(arguments.get("when", "always"))
        require_choice("on_changed", arguments.get("on_changed", "fail"), ("fail", "frozen"))
        Reviewers.of(arguments.get("reviewers"))

    @classmethod
    def require_complete(cls, task: Operator) -> None:
        """Prepare the tasks downstream, when the DAG is complete; raise ValueError where a rejection could not hold."""
        given = task.partial_kwargs if hasattr(task, "partial_kwargs") else vars(task)
        on_reject = given.get("on_reject", "skip")
        if on_reject == "fail":
            return
        is_all = given.get("ignore_downstream_trigger_rules", False) and on_reject == "skip"
        relatives = task.get_flat_relatives(upstream=False) if is_all else task.downstream_list
        downstream.require_skippable(task, relatives, or_fail=on_reject == "skip")
        downstream.keep_skipped(task)

    def resolve_template_files(self) -> None:
        """Prepare what depends on the tasks downstream; Airflow calls this when the DAG is complete."""
        super().resolve_template_files()
        if self.get_dag() is not None:
            self.require_complete(self)

    @property
    def content(self) -> Any:
        """What is decided on."""
        return self._content

    @content.setter
    def content(self, content: Any) -> None:
        # The constructor sets `_content`, so that Airflow sees what to resolve; once resolved, it is data.
        self._content = Content(content)

    @cached_property
    def hook(self) -> ClaudeHook:
        """The hook of the connection whose ledger is used."""
        return ClaudeHook(self.claude_conn_id)

    def execute(self, context: Context) -> dict[str, Any]:
        """Ask, or say why nobody is asked."""
        from airflow_llm_provider.approvals.review import ask, pass_without_asking

        # Both checks come first: a person must not be asked for what could not be carried out.
        self._require_rejection_target()
        self._require_plain_validators()
        facts = self._facts(context)
        asks, reason = judge(self.when, facts)
        review = self._review(facts, reason)
        if asks:
            decision = ask(review, hook=self.hook, context=context, resume="execute_complete")
        else:
            decision = pass_without_asking(review, hook=self.hook, context=context)
        return self._carry_out(decision, context)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Go on with what was answered."""
        from airflow_llm_provider.approvals.review import take_answer

        decision = take_answer(
            self._review(self._facts(context)),
            event,
            hook=self.hook,
            context=context,
            output_type=self.output_type,
            validators=self.validators,
        )
        return self._carry_out(decision, context)

    def _review(self, facts: Facts, reason: str = "") -> Review:
        from airflow_llm_provider.approvals import form
        from airflow_llm_provider.approvals.form import APPROVE, CHANGE, REJECT
        from airflow_llm_provider.approvals.review import Review

        body = [
            form.titled(title, text) for title, text in (("Action", self.action), ("Risk", self.risk)) if text
        ]
        cost = facts.cost_usd
        models = sorted({str(usage.get("model")) for usage in facts.usages})
        aside = [form.titled("Cost", f"${cost} ({', '.join(models)})")] if cost is not None else []
        if self.when != "always":
            aside.append(form.titled("Asked because", reason))
        return Review(
            subject=self.subject,
            content=facts.content,
            body="\n\n".join(body),
            aside="\n\n".join(aside),
            options=(APPROVE, CHANGE, REJECT) if self.editable else (APPROVE, REJECT),
            reviewers=Reviewers.of(self.reviewers),
            on_changed=self.on_changed,
            why=reason,
        )

    def _facts(self, context: Context) -> Facts:
        ti = context["ti"]
        # A template names no task that could be seen here, so all tasks directly upstream count.
        sources = self._sources or sorted(self.upstream_task_ids)
        return Facts(
            # Airflow resolves nothing that is empty.
            content=self._content.value if isinstance(self._content, Content) else self._content,
            usages=[record for source in sources for record in _pulled(ti, source, "llm_usage")],
            checks=[record for source in sources for record in _pulled(ti, source, "llm_checks")],
            identity=f"{ti.run_id}\0{ti.task_id}\0{ti.map_index}",
        )

    def _carry_out(self, decision: Decision, context: Context) -> dict[str, Any]:
        """Return the decision, and skip what it does not let run."""
        ti, record = context["ti"], decision.record()
        if decision.choice is None:
            self.log.info("Nobody was asked. The XCom return_value says why.")
        else:
            who = decision.decided_by or "nobody in time"
            self.log.info("%s by %s after %.0f s", decision.status, who, decision.took_s)
        if decision.is_rejected and self.on_reject == "fail":
            raise self.hook.for_airflow(Rejected(decision.rejection), context)
        if self.do_xcom_push:
            # Pushed now: Airflow pushes nothing for a task that skips others.
            ti.xcom_push("return_value", record)
            # What was rejected must not be found by a task that reads this XCom.
            if not decision.is_rejected:
                ti.xcom_push("content", decision.content)
        if decision.is_rejected and self.on_reject == "skip":
            is_all = self.ignore_downstream_trigger_rules
            relatives = self.get_flat_relatives if is_all else self.get_direct_relatives
            # A teardown runs whatever was decided, as after Airflow's own approval operator.
            tasks = [task for task in relatives(upstream=False) if not task.is_teardown]
            downstream.skip(context, tasks, why=decision.rejection)
        elif self.on_reject not in ("skip", "fail"):
            others = self.downstream_task_ids - set(self._rejection_target)
            downstream.skip_all_except(context, self._rejection_target if decision.is_rejected else others)
        return record

    @property
    def _rejection_target(self) -> list[str]:
        """The tasks that run after a rejection."""
        group = self.dag.task_group_dict.get(self.on_reject) if self.dag else None
        return [root.task_id for root in group.roots] if group else [self.on_reject]

    def _require_rejection_target(self) -> None:
        """Fail before a person is asked for a decision that could not be carried out."""
        if (
            self.on_reject not in ("skip", "fail")
            and not set(self._rejection_target) <= self.downstream_task_ids
        ):
            raise AirflowFailException(
                f"{self.task_id}: on_reject={self.on_reject!r} is neither 'skip' nor 'fail', nor a task or group "
                f"directly downstream; there are {', '.join(sorted(self.downstream_task_ids)) or 'none'}."
            )

    def _require_plain_validators(self) -> None:
        """Fail before a person is asked for an edit that could not be checked."""
        from airflow_llm_provider.engine.checks import reads_source
        from airflow_llm_provider.validators import Judge

        for validator in self.validators:
            if isinstance(validator, Judge) or reads_source(validator):
                raise AirflowFailException(
                    f"{self.task_id}: an edit is checked without a model and without the source it came from, so "
                    f"{validator!r} cannot be one of the validators here."
                )


def _pulled(ti: Any, task_id: str, key: str) -> list[Any]:
    """Return what a task pushed: its instance of the same map index, where there is one, else all."""
    if ti.map_index is not None and ti.map_index >= 0:
        found = ti.xcom_pull(task_ids=task_id, key=key, map_indexes=ti.map_index)
        if found is not None:
            return [found]
    found = ti.xcom_pull(task_ids=task_id, key=key)
    return found if isinstance(found, list) else [found] if found is not None else []
