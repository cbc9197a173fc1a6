"""What goes on is what was decided on, byte for byte, whatever happens to the tasks while the approval is open."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from desk import Desk, hash_of

from airflow_llm_provider.options import Reviewers

ALL = ("ask", "draft", "approval", "send")
GONE_ON, FAILED, SKIPPED, OPEN = "success", "failed", "skipped", "awaiting_input"


class Letters:
    """A DAG in which Claude drafts, code adds `ending`, a person decides, and the letter is sent."""

    def __init__(self, deployment: Any, **approval: Any) -> None:
        self.ending = "Yours, Acme"
        self.failures: list[Exception] = []
        self.reviewers = approval.pop("reviewers", {})
        self.approval = approval
        self.desk = Desk(deployment=deployment, make=self.make)

    def make(self) -> Any:
        from airflow.sdk import DAG, task

        from airflow_llm_provider.operators.claude import ClaudeOperator
        from airflow_llm_provider.sensors.approval import ApprovalSensor

        with DAG("letters", schedule=None, default_args={"retry_delay": 0}) as dag:
            asked = ClaudeOperator(task_id="ask", prompt="Draft a reminder.", model="fast", reuse="always")

            @task
            def draft(text: str) -> str:
                return f"{text}\r\n{self.ending}\n"

            def go_wrong(context: Any) -> None:
                if self.failures:
                    raise self.failures.pop()

            approved = ApprovalSensor(
                task_id="approval",
                content=draft(asked.output),
                subject="Send it?",
                reviewers=Reviewers(**{"notifiers": [go_wrong], **self.reviewers}),
                retries=2,
                **self.approval,
            )

            @task
            def send(content: str) -> str:
                return content

            send(approved.output["content"])
        return dag


def clear_all(letters: Letters) -> None:
    letters.desk.clear(*ALL)


def clear_sensor(letters: Letters) -> None:
    letters.desk.clear("approval", "send")


def clear_upstream_only(letters: Letters) -> None:
    letters.desk.clear("draft")


def retry(letters: Letters) -> None:
    """The worker fails between showing the question and parking, twice."""
    letters.failures = [RuntimeError("killed"), RuntimeError("killed")]
    letters.desk.clear("approval")
    assert letters.desk.log.count("RuntimeError: killed") >= 2


def run_again(letters: Letters) -> None:
    letters.desk = Desk(deployment=letters.desk.deployment, make=letters.make).start()


def nothing(letters: Letters) -> None:
    pass


def approve(desk: Desk) -> None:
    desk.answer("Approve")


def edit(desk: Desk) -> None:
    desk.answer("Approve with changes", content=["Dear Ms. Mill,", "pay!"])


def stay_silent(desk: Desk) -> None:
    desk.let_time_pass()


def held(desk: Desk) -> str:
    """Return the text that Airflow's form shows, as the content it stands for."""
    return "\n".join(desk.form()["params"]["content"]["value"])


SILENCE = {"reviewers": {"timeout": dt.timedelta(milliseconds=1), "on_timeout": "approve"}}
DECISIONS = (approve, edit, stay_silent)
MATRIX = [
    # what happens while it is open, whether the draft is then another, how it is decided, on_changed, the end
    *(
        (event, False, decide, "fail", GONE_ON)
        for event in (nothing, clear_all, clear_sensor, clear_upstream_only, retry, run_again)
        for decide in DECISIONS
    ),
    *(
        (event, True, decide, "frozen", GONE_ON)
        for event in (clear_all, clear_upstream_only)
        for decide in DECISIONS
    ),
    *((clear_upstream_only, True, decide, "fail", FAILED) for decide in DECISIONS),
    (clear_all, True, approve, "fail", FAILED),
    (run_again, True, approve, "fail", GONE_ON),  # a new run asks anew
    (run_again, True, approve, "frozen", GONE_ON),
    (clear_sensor, True, approve, "fail", GONE_ON),  # the draft was not made again
]


@pytest.mark.parametrize(
    ("event", "is_changed", "decide", "on_changed", "end"),
    [
        pytest.param(*case, id="-".join(getattr(part, "__name__", str(part)) for part in case))
        for case in MATRIX
    ],
)
def test_what_goes_on_is_what_was_decided_on(
    deployment: Any,
    event: Callable[[Letters], None],
    is_changed: bool,
    decide: Callable[[Desk], None],
    on_changed: str,
    end: str,
) -> None:
    letters = Letters(deployment, on_changed=on_changed, **(SILENCE if decide is stay_silent else {}))
    first = letters.desk.start()
    assert first.states()["approval"] == OPEN, first.log
    asked = deployment.server.seen
    first_text = held(first)
    letters.ending = "Yours sincerely, Beta" if is_changed else letters.ending
    event(letters)
    desk = letters.desk
    if desk.states()["approval"] == OPEN:
        shown = held(desk)
        decide(desk)
        (row,) = desk.reviews
        if desk is first:
            assert shown == first_text  # Airflow shows nothing else, ever
        decided = "Dear Ms. Mill,\npay!" if decide is edit else shown
    if end == GONE_ON:
        assert desk.states()["send"] == GONE_ON, desk.log
        sent = desk.xcom("send")
        assert sent == decided
        assert hash_of(sent) == row["decided_hash"] == desk.xcom()["content_hash"]
    else:
        assert desk.states()["approval"] == FAILED
        assert desk.xcom("send") is None
        assert "ChangedSinceShown: What is to be decided on has changed since it was first shown" in desk.log
        assert "Start a new run" in desk.log
        assert desk.log.count("ChangedSinceShown") < 4  # no retry
    assert deployment.server.seen == asked == 1


def test_a_decided_approval_that_is_cleared_is_asked_anew_and_never_taken_for_decided(
    deployment: Any,
) -> None:
    letters = Letters(deployment)
    desk = letters.desk.start().answer("Approve")
    first = desk.xcom("send")
    desk.clear("approval", "send")
    assert desk.states()["approval"] == OPEN
    desk.answer("Reject", feedback="Not any more.")
    assert desk.states()["send"] == SKIPPED
    letters.ending = "Another"
    desk.clear("draft", "approval", "send")
    assert desk.states()["approval"] == FAILED  # Airflow would go on showing the first
    assert hash_of(first) == desk.reviews[0]["content_hash"]


def test_text_that_airflow_does_not_show_is_never_approved(deployment: Any) -> None:
    """The ledger was lost, and Airflow holds what nobody can vouch for."""
    import sqlalchemy as sa

    from airflow_llm_provider.ledger.schema import review

    letters = Letters(deployment, on_changed="frozen")
    desk = letters.desk.start()
    engine = sa.create_engine(deployment.ledger_url)
    with engine.begin() as connection:
        connection.execute(review.delete())
    engine.dispose()
    letters.ending = "Yours, Mallory"
    desk.clear("draft", "approval")
    assert desk.states()["approval"] == FAILED
    assert "ChangedSinceShown: Airflow shows another text than it should" in desk.log


def test_the_ledgers_own_text_is_checked_too(deployment: Any) -> None:
    import zlib

    import sqlalchemy as sa

    from airflow_llm_provider.ledger.schema import review

    desk = Letters(deployment).desk.start()
    engine = sa.create_engine(deployment.ledger_url)
    with engine.begin() as connection:
        connection.execute(review.update().values(content=zlib.compress(b'"Pay Mallory."')))
    engine.dispose()
    desk.answer("Approve")
    assert desk.states()["approval"] == FAILED
    assert desk.xcom("send") is None


def test_who_may_decide_can_not_change_under_an_open_question(deployment: Any) -> None:
    letters = Letters(deployment, on_changed="frozen", reviewers={"users": ["ada"]})
    desk = letters.desk.start()
    letters.reviewers["users"] = ["bob"]
    desk.clear("approval")
    assert desk.states()["approval"] == FAILED
    assert "Who may decide, or between what, has changed since it was first shown" in desk.log


HIDDEN = "\u200b\ufe0f\u3164\u2800\U000e0041"


def test_what_draws_nothing_is_a_code_and_counted_in_headline_text_and_field() -> None:
    from airflow_llm_provider.approvals.form import APPROVE, CHANGE, CONTENT, REJECT
    from airflow_llm_provider.approvals.review import Review

    text = f"Pay{HIDDEN} 40."
    shown = Review(subject=f"Pay{HIDDEN}?", content=text, options=(APPROVE, CHANGE, REJECT)).form()
    assert shown["subject"] == "Pay\\u200b\\ufe0f\\u3164\\u2800\\U000e0041?"
    assert not {*HIDDEN} & {*shown["subject"], *shown["body"]}
    assert shown["body"].count("5 characters draw nothing") == 2  # of the headline and of the text
    field = shown["params"][CONTENT]
    assert "5 characters draw nothing" in field["description"]
    assert field["value"] == [text]  # what nobody touches stays what it was


def test_what_draws_nothing_is_a_code_and_counted_in_the_arguments_of_a_tool() -> None:
    from airflow_llm_provider.approvals.tools import review_of
    from airflow_llm_provider.engine.request import to_json
    from airflow_llm_provider.engine.tool_loop import ApprovalNeeded, ToolCall
    from airflow_llm_provider.ledger.effects import Intent
    from airflow_llm_provider.ledger.records import CallScope
    from airflow_llm_provider.tools import Tool

    def pay(to: str) -> str:
        """Pay somebody."""
        return to

    scope = CallScope(dag_id="letters", run_id="one", task_id="pay", trace_id="0" * 32)
    calls = [
        ToolCall(
            tool=Tool(function=pay, needs_approval=True),
            arguments={"to": to},
            intent=Intent(
                scope=scope,
                item_id=None,
                call_id="a" * 32,
                tool_use_id=f"toolu_{to}",
                tool="pay",
                is_irreversible=False,
                arguments=to_json({"to": to}),
            ),
        )
        for to in (f"Ms.{HIDDEN} Mill", "Mr. Hill")
    ]
    for asked in (calls[:1], calls):
        shown = review_of(ApprovalNeeded("b" * 64, asked), Reviewers()).form()
        assert not {*HIDDEN} & {*shown["subject"], *shown["body"]}
        assert "5 characters draw nothing" in shown["body"]
        assert "Ms.\\u200b\\ufe0f\\u3164\\u2800\\U000e0041 Mill" in shown["body"]
