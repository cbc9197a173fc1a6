"""Tools in real task instances: what a retry and a clear find, and what a person is asked."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from airflow.sdk import DAG, task
from desk import Desk

from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.options import Reviewers, Route, ToolLimits
from airflow_llm_provider.testing.standin import StandIn
from airflow_llm_provider.tools import tool


class Shop:
    """Tools that count how often they ran."""

    def __init__(self) -> None:
        self.runs: list[tuple[str, Any]] = []

    def owed(self, customer: str) -> dict[str, float]:
        """Look up what a customer is owed."""
        self.runs.append(("owed", customer))
        return {"amount": 40.0}

    def refund(self, customer: str, amount: float, currency: str = "EUR") -> str:
        """Pay *money* back."""
        self.runs.append(("refund", amount))
        return f"{amount:.2f} refunded to {customer}"

    def paying(self, **marks: bool) -> Any:
        return tool(irreversible=True, **marks)(self.refund)


ANSWER = {
    "type": "object",
    "properties": {"refunded": {"type": "number"}},
    "required": ["refunded"],
    "additionalProperties": False,
}


@pytest.fixture
def shop() -> Shop:
    return Shop()


REFUND = {"name": "refund", "input": {"customer": "Mill", "amount": 40.0}}


def script(server: StandIn) -> None:
    """Look the customer up, refund, answer."""
    server.reply(data={"refunded": 40.0})
    server.reply(tool_use=[{"name": "owed", "input": {"customer": "Mill"}}], turn=0)
    server.reply(text="I refund that.", tool_use=[REFUND], turn=1)


def asking(shop: Shop, *tools: Any, **arguments: Any) -> DAG:
    with DAG("refunds", schedule=None) as dag:
        ClaudeOperator(
            task_id="read",
            prompt="Refund Ms. Mill what she is owed.",
            output_type=ANSWER,
            model="fast",
            tools=[shop.owed, *tools],
            retry_delay=dt.timedelta(0),
            **arguments,
        )
    return dag


def test_tools_are_called_and_the_answer_is_data(deployment: Any, shop: Shop) -> None:
    script(deployment.server)
    ran = deployment.run(asking(shop, shop.paying()))
    assert ran.xcom() == {"refunded": 40.0}
    assert shop.runs == [("owed", "Mill"), ("refund", 40.0)]
    usage = ran.xcom(key="llm_usage")
    assert (usage["attempts"], usage["repairs"]) == (3, 0)
    assert usage["cost_usd"] == f"{deployment.balance().cost_micro_usd / 1e6:.6f}"
    assert "Tool refund(33 bytes of arguments) returned 22 characters in " in ran.log
    assert [row["purpose"] for row in deployment.calls] == ["answer", "tool_turn", "tool_turn"]


def test_a_function_that_returns_the_prompt_may_have_tools(deployment: Any, shop: Shop) -> None:
    script(deployment.server)
    with DAG("refunds", schedule=None) as dag:

        @task.claude(model="fast", tools=[shop.owed, shop.paying()], output_type=ANSWER)
        def read() -> str:
            return "Refund Ms. Mill what she is owed."

        read()
    assert deployment.run(dag).xcom() == {"refunded": 40.0}


def test_a_retry_and_a_clear_buy_nothing_and_run_nothing_again(deployment: Any, shop: Shop) -> None:
    script(deployment.server)
    deployment.server.fail(500, times=1, after=2)  # the third turn

    def make() -> DAG:
        return asking(shop, shop.paying(), retries=1, route=Route(retry={"server": {"attempts": 1}}))

    ran = deployment.run(make())
    assert (ran.state, ran.ti().try_number) == ("success", 2)
    assert deployment.server.invoice.paid == 3
    assert shop.runs == [("owed", "Mill"), ("refund", 40.0)]
    assert deployment.clear(ran, make()).xcom() == {"refunded": 40.0}
    assert deployment.server.invoice.paid == 3
    assert len(shop.runs) == 2
    assert deployment.run(make()).state == "success"  # another run
    assert len(shop.runs) == 4


def test_a_model_that_never_stops_calling_fails_the_task_without_a_retry(deployment: Any, shop: Shop) -> None:
    deployment.server.reply(tool_use=[{"name": "owed", "input": {"customer": "Mill"}}])
    ran = deployment.run(asking(shop, retries=2, tool_limits=ToolLimits(max_turns=2)))
    assert ran.state == "failed"
    assert "refunds.read: ToolLimit: The model still calls tools (owed) after 2 turns" in ran.log
    assert ran.ti().try_number == 1
    assert deployment.server.invoice.paid == 3
    assert deployment.run(asking(shop, tool_limits=ToolLimits(max_usd=0.000_001))).state == "failed"
    assert deployment.server.invoice.paid == 3


def nobody(amount, to: str) -> None: ...


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClaudeOperator(task_id="read", prompt="?", tools=[nobody]),
        lambda: ClaudeOperator.partial(task_id="read", tools=[nobody]).expand(prompt=["?"]),
    ],
)
def test_what_cannot_be_a_tool_is_refused_when_the_dag_is_parsed(make: Any) -> None:
    with DAG("refunds", schedule=None), pytest.raises(TypeError, match="nobody: the parameter 'amount'"):
        make()


@pytest.mark.parametrize(
    ("reviewers", "complaint"),
    [
        (lambda: {"timeout": 3}, "reviewers= is a dict: give user names or Reviewers"),
        (lambda: Reviewers(timeout=3), "reviewers.timeout=3: give a timedelta"),
        (lambda: Reviewers(users="ada"), "reviewers.users='ada': give a list"),  # and not three users
    ],
)
def test_reviewers_that_are_not_valid_are_refused_when_the_dag_is_parsed(
    shop: Shop, reviewers: Any, complaint: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=complaint):
        asking(shop, reviewers=reviewers())


def test_what_has_tools_runs_in_a_worker_and_says_so(
    deployment: Any, shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    script(deployment.server)
    dag = asking(shop, shop.paying(), deferrable=True)
    assert "although deferrable=True: it has tools, which are Python." in caplog.text
    assert deployment.run(dag).xcom() == {"refunded": 40.0}


# -- a person ----------------------------------------------------------------------------------------


def parked(deployment: Any, shop: Shop, **arguments: Any) -> Desk:
    return Desk(
        deployment=deployment, make=lambda: asking(shop, shop.paying(needs_approval=True), **arguments)
    ).start()


def test_a_person_sees_what_would_be_called_and_says_yes(deployment: Any, shop: Shop) -> None:
    script(deployment.server)
    desk = parked(deployment, shop)
    assert desk.states()["read"] == "awaiting_input"
    assert shop.runs == [("owed", "Mill")]
    form = desk.form("read")
    assert form["subject"] == "May the model call refund?"
    assert form["options"] == ["Approve", "Reject"]
    assert "Pay \\*money\\* back" in form["body"]
    assert "It can't be undone, and runs once." in form["body"]
    assert "| customer | Mill |" in form["body"]
    assert "| amount | 40\\.0 |" in form["body"]
    assert "| currency | EUR |" in form["body"]
    desk.answer(task_id="read")
    assert desk.states()["read"] == "success"
    assert desk.xcom("read") == {"refunded": 40.0}
    assert shop.runs == [("owed", "Mill"), ("refund", 40.0)]
    assert deployment.server.invoice.paid == 3
    assert [(row["status"], row["decided_by"]) for row in desk.reviews] == [("approved", "ada")]
    # Cleared, nobody is asked again: it has happened.
    desk.clear("read")
    assert desk.states()["read"] == "success"
    assert len(shop.runs) == 2
    assert deployment.server.invoice.paid == 3


def test_a_refusal_is_told_to_the_model_with_its_reason(deployment: Any, shop: Shop) -> None:
    script(deployment.server)
    desk = parked(deployment, shop).answer("Reject", task_id="read", feedback="She was refunded in May.")
    assert desk.xcom("read") == {"refunded": 40.0}  # as the script has it
    assert shop.runs == [("owed", "Mill")]
    *_, last = deployment.server.requests
    told = last["messages"][-1]["content"][0]
    assert told["is_error"] is True
    assert told["content"] == "A person refused this call, and nothing was done. She was refunded in May."


def test_nobody_in_time_is_a_refusal(deployment: Any, shop: Shop) -> None:
    script(deployment.server)
    desk = parked(deployment, shop, reviewers=Reviewers(timeout=dt.timedelta(milliseconds=1)))
    desk.let_time_pass()
    assert desk.states()["read"] == "success"
    assert shop.runs == [("owed", "Mill")]
    assert "Nobody answered in time." in json.dumps(deployment.server.requests[-1])


def test_a_function_that_returns_the_prompt_parks_too(deployment: Any, shop: Shop) -> None:
    script(deployment.server)

    def make() -> DAG:
        with DAG("refunds", schedule=None) as dag:

            @task.claude(
                model="fast", tools=[shop.owed, shop.paying(needs_approval=True)], output_type=ANSWER
            )
            def read() -> str:
                return "Refund Ms. Mill what she is owed."

            read()
        return dag

    desk = Desk(deployment=deployment, make=make).start()
    assert desk.states()["read"] == "awaiting_input"
    desk.answer(task_id="read")
    assert desk.xcom("read") == {"refunded": 40.0}
    assert shop.runs == [("owed", "Mill"), ("refund", 40.0)]


def test_a_second_question_of_one_task_is_refused_before_anything_happens(
    deployment: Any, shop: Shop
) -> None:
    server = deployment.server
    server.reply(tool_use=[{"name": "owed", "input": {"customer": "Hill"}}], turn=1)
    server.reply(tool_use=[{"name": "owed", "input": {"customer": "Mill"}}], turn=0)

    def make() -> DAG:
        with DAG("refunds", schedule=None) as dag:
            ClaudeOperator(
                task_id="read", prompt="?", model="fast", tools=[tool(needs_approval=True)(shop.owed)]
            )
        return dag

    desk = Desk(deployment=deployment, make=make).start().answer(task_id="read")
    assert desk.states()["read"] == "failed"
    assert shop.runs == [("owed", "Mill")]
    assert (
        "owed(19 bytes of arguments) must be approved first. A person has been asked about other calls"
        in desk.log
    )
