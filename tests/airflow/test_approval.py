"""A person decides on what a task produced: approve, change, reject, or say nothing."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator
from email import message_from_bytes, policy
from typing import Any

import pydantic
import pytest
import structlog
from desk import Desk, approval, hash_of

from airflow_llm_provider.approvals import form
from airflow_llm_provider.options import Reviewers
from airflow_llm_provider.sensors.conditions import AboveCost, BelowConfidence, OnComplaints
from airflow_llm_provider.testing.processes import free_port
from airflow_llm_provider.validators import Judge, quotes_in_source

REFUND = {"customer": "Ms. Mill", "amount": 40.0, "items": ["kettle"], "confidence": 0.4}
SOON = dt.timedelta(milliseconds=1)


class Refund(pydantic.BaseModel):
    customer: str
    amount: float = pydantic.Field(le=100)
    items: list[str]
    confidence: float


def is_round(refund: Refund) -> str | None:
    return None if refund.amount % 5 == 0 else f"{refund.amount:g} is no multiple of 5."


@pytest.fixture
def ask(deployment: Any) -> Any:
    """Start a run whose approval is asked with these arguments."""

    def start(**arguments: Any) -> Desk:
        return Desk(deployment=deployment, make=approval(**arguments)).start()

    yield start
    assert deployment.server.seen == 0  # nothing here asks a model


def test_what_is_approved_goes_on_and_says_who_when_and_how_long(ask: Any) -> None:
    desk = ask(risk="It can't be called *back*.", usage={"model": "claude-haiku-5-5", "cost_usd": "0.0012"})
    assert desk.states()["approval"] == "awaiting_input"
    shown = desk.form()
    assert shown["subject"] == "Send this letter?"
    assert shown["options"] == ["Approve", "Approve with changes", "Reject"]
    assert shown["body"] == (
        "**Risk:** It can\\'t be called \\*back\\*\\.\n\n"
        "```text\nDear Ms. Mill, you owe us $12.50.\n```\n\n"
        "**Cost:** \\$0\\.0012 \\(claude\\-haiku\\-5\\-5\\)"
    )
    desk.answer(feedback="Fine.")
    assert desk.states() == dict.fromkeys(("draft", "approval", "send", "after"), "success")
    assert desk.xcom("send") == "Dear Ms. Mill, you owe us $12.50."
    decision = desk.xcom()
    assert 0 < decision.pop("took_s") < 60
    assert dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(decision.pop("decided_at")) < dt.timedelta(
        minutes=1
    )
    assert decision == {
        "status": "approved",
        "choice": "Approve",
        "content": "Dear Ms. Mill, you owe us $12.50.",
        "content_hash": hash_of("Dear Ms. Mill, you owe us $12.50."),
        "feedback": "Fine.",
        "decided_by": "ada",
        "why": "always asked",
    }
    (row,) = desk.reviews
    assert (row["status"], row["decided_by"], row["feedback"]) == ("approved", "ada", "Fine.")
    assert row["decided_hash"] == row["content_hash"] == decision["content_hash"]


def test_what_is_changed_in_the_form_goes_on_as_it_was_typed(ask: Any) -> None:
    desk = ask(draft=REFUND, output_type=Refund, validators=[is_round])
    # As a browser sends it: 40.0 has become 40, and that is no change.
    desk.answer("Approve with changes", content={**REFUND, "amount": 40, "customer": "Ms. Hill"})
    assert desk.xcom()["status"] == "modified"
    assert desk.xcom("send") == {**REFUND, "customer": "Ms. Hill"}
    assert json.dumps(desk.xcom("send")["amount"]) == "40.0"
    (row,) = desk.reviews
    assert row["decided_hash"] == desk.xcom()["content_hash"] == hash_of(desk.xcom("send"))
    assert row["content_hash"] == hash_of(REFUND)


def test_a_typed_answer_goes_on_as_the_data_it_is_written_as(ask: Any) -> None:
    from airflow.sdk.execution_time.task_runner import _register_deserialization_allowed_classes

    # As a worker does when it has parsed the DAG file.
    _register_deserialization_allowed_classes(approval(output_type=Refund)(), structlog.get_logger())
    desk = ask(draft=Refund(**REFUND), output_type=Refund)
    assert "| amount | 40\\.0 |" in desk.form()["body"]
    assert desk.answer("Approve").xcom("send") == REFUND


def test_text_that_was_no_valid_answer_can_be_made_one(ask: Any) -> None:
    desk = ask(draft="The amount is 40.", output_type=Refund)
    desk.answer("Approve with changes", content=json.dumps(REFUND, indent=1).split("\n"))
    assert (desk.xcom()["status"], desk.xcom("send")) == ("modified", REFUND)


@pytest.mark.parametrize("choice", ["Approve", "Approve with changes"])
def test_what_stands_in_the_form_is_decided_on_whichever_button_it_was(ask: Any, choice: str) -> None:
    desk = ask().answer(choice, content=["Dear Ms. Mill,", "never mind."], feedback=None)
    assert (desk.xcom()["status"], desk.xcom("send")) == ("modified", "Dear Ms. Mill,\nnever mind.")
    desk = ask(draft=REFUND).answer(choice, content={**REFUND, "amount": 40})
    assert (desk.xcom()["status"], desk.xcom("send")) == ("approved", REFUND)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        ({**REFUND, "amount": 400}, "amount: Input should be less than or equal to 100"),
        ({**REFUND, "amount": 41}, "The validator is_round complained about the answer in 23 characters."),
        ({"customer": "Ms. Mill"}, "amount: Field required"),
        (None, "The edited content is empty."),
    ],
)
def test_an_edit_that_is_not_valid_fails_without_a_retry_and_is_kept(
    ask: Any, edit: Any, complaint: str
) -> None:
    desk = ask(draft=REFUND, output_type=Refund, validators=[is_round], retries=2)
    desk.answer("Approve with changes", content=edit)
    assert desk.states()["approval"] == "failed"
    assert "approvals.approval: InvalidOutput: The edit is not valid: " in desk.log
    assert complaint in desk.log
    assert desk.xcom("send") is None
    (row,) = desk.reviews
    assert (row["status"], row["decided_hash"]) == ("invalid", hash_of(edit))
    # Cleared, the same is asked anew, and can be decided after all.
    desk.clear("approval", "send", "after").answer("Approve")
    assert desk.xcom("send") == REFUND


def test_a_rejection_skips_what_comes_next_just_as_airflows_own(deployment: Any) -> None:
    from airflow.sdk import DAG, task

    from airflow_llm_provider.sensors.approval import ApprovalSensor

    def states(theirs: bool, ignore: bool) -> dict[str, str]:
        def make() -> Any:
            from airflow.providers.standard.operators.hitl import ApprovalOperator

            with DAG(f"skips_{theirs}_{ignore}", schedule=None) as dag:
                if theirs:
                    asked = ApprovalOperator(
                        task_id="approval", subject="?", body="?", ignore_downstream_trigger_rules=ignore
                    )
                else:
                    asked = ApprovalSensor(
                        task_id="approval", subject="?", content="?", ignore_downstream_trigger_rules=ignore
                    )
                tasks = {
                    name: task(task_id=name, trigger_rule=rule)(lambda: None)()
                    for name, rule in {
                        "next": "all_success",
                        "also_next": "all_done",
                        "later": "all_success",
                        "join": "all_done",
                        "beside": "all_success",
                    }.items()
                }
                tidy = task(task_id="tidy")(lambda: None)().as_teardown()
                asked >> [tasks["next"], tasks["also_next"]]
                tasks["next"] >> tasks["later"] >> tasks["join"]
                [asked, tasks["beside"]] >> tidy
            return dag

        return Desk(deployment=deployment, make=make).start().answer("Reject").states()

    for ignore in (False, True):
        ours = states(False, ignore)
        assert ours == states(True, ignore)
        assert ours["next"] == ours["also_next"] == ours["later"] == "skipped"
        assert ours["join"] == ("skipped" if ignore else "success")
        assert ours["tidy"] == "success"


def test_a_rejection_can_fail_the_task_for_good(ask: Any) -> None:
    desk = ask(on_reject="fail", retries=2).answer("Reject", feedback="She has paid.")
    assert desk.states()["approval"] == "failed"
    assert desk.states()["send"] == "upstream_failed"
    assert "approvals.approval: Rejected: ada rejected it, with a feedback of 13 characters." in desk.log
    assert desk.reviews[0]["status"] == "rejected"


def test_a_rejection_can_lead_to_a_branch_of_its_own(ask: Any) -> None:
    desk = ask(on_reject="redo", dag_id="redoing").answer("Reject", feedback="Too harsh.")
    assert (desk.states()["send"], desk.states()["redo"]) == ("skipped", "success")
    assert desk.xcom("redo") == "Too harsh."
    assert desk.xcom()["status"] == "rejected"
    assert desk.xcom(key="content") is None  # nothing goes on
    desk = ask(on_reject="redo", dag_id="redoing").answer("Approve")
    assert (desk.states()["send"], desk.states()["redo"]) == ("success", "skipped")


def test_a_branch_that_is_not_there_fails_before_anybody_is_asked(ask: Any) -> None:
    desk = ask(on_reject="repeat")
    assert desk.states()["approval"] == "failed"
    assert (
        "on_reject='repeat' is neither 'skip' nor 'fail', nor a task or group directly downstream" in desk.log
    )
    assert desk.form() is None


@pytest.mark.parametrize(
    ("on_timeout", "sent", "status"),
    [
        ("reject", "skipped", "timed_out"),
        ("approve", "success", "timed_out"),
        ("fail", "upstream_failed", None),
    ],
)
def test_silence_means_what_the_author_said(ask: Any, on_timeout: str, sent: str, status: str | None) -> None:
    desk = ask(reviewers=Reviewers(timeout=SOON, on_timeout=on_timeout), retries=2).let_time_pass()
    assert desk.states()["send"] == sent
    assert desk.reviews[0]["status"] == "timed_out"
    decision = desk.xcom()
    assert (decision and decision["status"]) == status
    if on_timeout == "fail":
        assert desk.states()["approval"] == "failed"
        assert "Nobody answered in time, and nothing is chosen then." in desk.log
    else:
        assert decision["decided_by"] is None


@pytest.mark.parametrize(
    ("when", "about", "why"),
    [
        (BelowConfidence(0.8), {}, "confidence 0.4 is below 0.8"),
        (AboveCost(0.01), {"usage": {"cost_usd": "0.010001"}}, "it cost $0.010001, more than $0.01"),
        (
            OnComplaints(),
            {"checks": {"valid": True, "complaints": ["no date"]}},
            "a validator complained: no date",
        ),
        (lambda content: "a kettle" if "kettle" in content["items"] else None, {}, "a kettle"),
    ],
)
def test_a_person_is_asked_when_it_matters_and_told_why(
    ask: Any, when: Any, about: dict[str, Any], why: str
) -> None:
    desk = ask(when=when, draft=REFUND, **about)
    assert desk.states()["approval"] == "awaiting_input"
    assert form.titled("Asked because", why) in desk.form()["body"]
    assert desk.reviews[0]["why"] == why


def test_what_passed_without_a_person_says_so_and_why(ask: Any) -> None:
    desk = ask(when=[BelowConfidence(0.4), OnComplaints()], draft=REFUND)
    assert desk.states()["send"] == "success"
    decision = desk.xcom()
    assert (decision["status"], decision["decided_by"]) == ("passed", None)
    assert decision["why"] == "confidence 0.4 is not below 0.4; no validator complained"
    assert hash_of(desk.xcom("send")) == decision["content_hash"] == desk.reviews[0]["decided_hash"]


def test_a_mapped_approval_asks_about_each_with_what_it_cost(deployment: Any) -> None:
    from airflow.sdk import DAG

    from airflow_llm_provider.operators.claude import ClaudeOperator
    from airflow_llm_provider.sensors.approval import ApprovalSensor

    def make() -> Any:
        with DAG("mapped", schedule=None) as dag:
            letters = ClaudeOperator.partial(task_id="letter", model="fast").expand(
                prompt=["Greet.", "Write a letter that reminds of a payment, at length."]
            )
            ApprovalSensor.partial(task_id="approval", subject="Send {{ ti.map_index }}?").expand(
                content=letters.output
            )
        return dag

    desk = Desk(deployment=deployment, make=make).start()
    costs = [desk.xcom("letter", "llm_usage", index)["cost_usd"] for index in (0, 1)]
    assert costs[0] != costs[1]
    for index in (0, 1):
        shown = desk.form(map_index=index)
        assert shown["subject"] == f"Send {index}?"
        assert form.titled("Cost", f"${costs[index]} (claude-haiku-5-5)") in shown["body"]
    desk.answer("Reject", map_index=0).answer("Approve", map_index=1)
    assert [desk.xcom(map_index=index)["status"] for index in (0, 1)] == ["rejected", "approved"]
    assert desk.xcom(key="content", map_index=1) == desk.xcom("letter", map_index=1)


def test_a_retry_after_the_decision_asks_nobody_again_and_a_clear_does(ask: Any) -> None:
    failures = [RuntimeError("The network is gone.")]

    def fail_once(context: Any, result: Any = None) -> None:
        if failures:
            raise failures.pop()

    desk = ask(retries=1, post_execute=fail_once).answer("Approve", feedback="Once.")
    assert "The network is gone." in desk.log
    assert desk.states()["send"] == "success"
    assert desk.xcom()["feedback"] == "Once."
    desk.clear("approval", "send", "after")
    assert desk.states()["approval"] == "awaiting_input"
    desk.answer("Reject", feedback="On second thought.")
    assert desk.states()["send"] == "skipped"
    assert desk.xcom()["feedback"] == "On second thought."


@pytest.mark.parametrize("silent", [False, True])
def test_what_may_not_go_on_does_not_either_when_the_task_is_killed_before_it_can_fail(
    ask: Any, silent: bool
) -> None:
    if silent:
        desk = ask(reviewers=Reviewers(timeout=SOON, on_timeout="fail"), retries=2).let_time_pass()
    else:
        desk = ask(draft=REFUND, output_type=Refund, retries=2)
        desk.answer("Approve with changes", content={**REFUND, "amount": 400})
    desk.try_again("approval")
    assert desk.states()["approval"] == "failed"
    assert f"The answer ({'timed_out' if silent else 'invalid'}) cannot be used" in desk.log
    assert desk.xcom("send") is None
    assert desk.xcom(key="content") is None


def test_an_edit_that_was_not_offered_is_not_taken(ask: Any) -> None:
    desk = ask(editable=False).answer("Approve", content=["Dear Ms. Mill, forget it."])
    assert desk.states()["approval"] == "failed"
    assert "No changes were offered." in desk.log
    assert desk.xcom("send") is None


def test_nothing_can_be_decided_on_too(deployment: Any) -> None:
    def make() -> Any:
        from airflow.sdk import DAG

        from airflow_llm_provider.sensors.approval import ApprovalSensor

        with DAG("empty", schedule=None) as dag:
            ApprovalSensor.partial(task_id="approval", subject="?", when=lambda content: False).expand(
                content=["", 0, []]
            )
        return dag

    desk = Desk(deployment=deployment, make=make).start()
    assert [desk.xcom(key="content", map_index=n) for n in range(3)] == ["", 0, []], desk.log


def test_what_is_too_long_to_be_shown_whole_is_not_asked_about(ask: Any) -> None:
    desk = ask(draft="word " * 12_001, editable=False)
    assert desk.states()["approval"] == "failed"
    assert "has 60,017 bytes, and a form shows up to 60,000. The text is not cut" in desk.log
    assert desk.form() is None
    assert (
        ask(draft="word " * 12_001, when=OnComplaints()).states()["send"] == "success"
    )  # nobody need see it


def test_content_is_not_shown_among_the_rendered_templates(ask: Any) -> None:
    from airflow.models.renderedtifields import RenderedTaskInstanceFields
    from airflow.utils.session import create_session

    desk = ask(draft="A secret {{ conn.claude_default.password }}.")
    with create_session() as session:
        fields = [
            row.rendered_fields
            for row in session.query(RenderedTaskInstanceFields).filter_by(
                run_id=desk.run_id, task_id="approval"
            )
        ]
    assert fields
    assert "secret" not in str(fields)
    assert "{{ conn.claude_default.password }}" in desk.form()["body"]


def test_an_edit_that_could_not_be_checked_is_not_asked_for(ask: Any) -> None:
    for validator in (Judge(criteria=["It is polite."]), quotes_in_source("customer")):
        desk = ask(validators=[validator])
        assert desk.states()["approval"] == "failed"
        assert "an edit is checked without a model and without the source it came from" in desk.log
        assert desk.form() is None


def test_an_editor_is_only_offered_where_it_may_be_used(ask: Any) -> None:
    shown = ask(editable=False).form()
    assert (shown["options"], list(shown["params"])) == (["Approve", "Reject"], ["feedback"])


def test_wrong_arguments_are_named_when_the_dag_is_parsed() -> None:
    for wrong, named in (
        ({"on_changed": "frosen"}, "on_changed='frosen': choose one of fail, frozen."),
        ({"when": "sometimes"}, "when='sometimes': use always, a condition"),
        ({"when": OnComplaints}, "when=OnComplaints: give it its arguments, as in OnComplaints(…)."),
        ({"when": ["always", 0.8]}, "when=0.8 is neither a condition"),
        ({"reviewers": 3600}, "reviewers= is a int: give user names or Reviewers(users=…, timeout=…)."),
        ({"reviewers": [3600]}, "reviewers.users=3600: give a user name, or a dict of id and name."),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(named)):
            approval(**wrong)()


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A mail server that notifiers reach as `smtp_default`."""
    from aiosmtpd.controller import Controller

    mails: list[Any] = []

    class Keep:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
            mails.append(message_from_bytes(envelope.content, policy=policy.default))
            return "250 kept"

    controller = Controller(Keep(), hostname="127.0.0.1", port=free_port())
    controller.start()
    plain = {"disable_ssl": True, "disable_tls": True}
    connection = {"conn_type": "smtp", "host": "127.0.0.1", "port": controller.port, "extra": plain}
    monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", json.dumps(connection))
    yield mails
    controller.stop()


def test_a_mail_leads_straight_to_the_decision(
    ask: Any, mailbox: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.com/team/")

    def notifier() -> Any:
        return SmtpNotifier(
            to="ada@example.com",
            from_email="airflow@example.com",
            subject="To decide: {{ review_subject }}",
            html_content='<a href="{{ review_url }}">{{ ti.dag_id }}</a>',
        )

    desk = ask(reviewers=Reviewers(notifiers=[notifier()]))
    (mail,) = mailbox
    assert mail["subject"] == "To decide: Send this letter?"
    run = desk.run_id.replace(":", "%3A").replace("+", "%2B")
    url = f"https://airflow.example.com/team/dags/approvals/runs/{run}/tasks/approval/required_actions"
    assert f'<a href="{url}">approvals</a>' in mail.get_body(("html",)).get_content()
    assert "Dear Ms. Mill" not in mail.as_string()
