"""Above a bar a person sees the estimate before anything is sent, and says whether it may be spent."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from desk import Desk
from test_budgets import Told

from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.options import Budget, Reviewers
from airflow_llm_provider.triggers.claude import ClaudeTrigger
from airflow_llm_provider.triggers.deferral import NeedsWorker, encode_arguments

LETTERS = [f"Letter {n}: we owe you ${n}.00." for n in range(12)]


@pytest.fixture
def ask(deployment: Any) -> Callable[..., Desk]:
    """Start a run of one documents task with these arguments; the bar is one that every price is above."""

    def start(**arguments: Any) -> Desk:
        asking = terms(deployment) | {"documents": LETTERS} | budgeted({"confirm_above_usd": 0} | arguments)

        def make() -> Any:
            from airflow.sdk import DAG

            with DAG("nightly", schedule=None) as dag:
                ClaudeDocumentsOperator(task_id="approval", **asking)
            return dag

        return Desk(deployment=deployment, make=make).start()

    return start


def budgeted(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with those of a Budget put into one."""
    names = ("task_usd", "run_usd", "on_exceeded", "confirm_above_usd")
    budget = Budget(**{name: arguments.pop(name) for name in names if name in arguments})
    return {**arguments, "budget": budget}


def terms(deployment: Any) -> dict[str, Any]:
    output = f"{deployment.folder}/out/"
    return {"prompt": "What is owed?", "output": output, "model": "fast", "retry_delay": dt.timedelta(0)}


def test_nothing_is_sent_before_the_yes_and_the_estimate_is_shown(deployment: Any, ask: Any) -> None:
    ask(documents=LETTERS[:5], confirm_above_usd=None)
    assert (seen := deployment.server.seen) == 5
    estimate = ask(dry_run=True).xcom()
    desk = ask(confirm_above_usd="{{ '0.00001' }}")
    assert desk.states() == {"approval": "awaiting_input"}, desk.log
    assert deployment.server.seen == seen
    form = desk.form()
    shown = form["body"].replace("\\", "")
    likely = estimate["cost_usd"]["likely"]
    assert form["subject"] == f"Ask about 7 documents, for about ${likely}?"
    assert form["options"] == ["Approve", "Reject"]
    for row in ("documents | 12", "cached | 5", "to ask | 7", "time | ", "estimated | from 5 answers of"):
        assert f"| {row}" in shown
    assert f" to {likely} to " in shown
    assert f"**Asked because:** about ${likely}, which is above $0.000010" in shown

    desk.answer("Approve", user="ada")
    assert desk.states() == {"approval": "success"}, desk.log
    outcomes = desk.xcom()["outcomes"]
    assert (outcomes["reused"], outcomes["answered"]) == (5, 7)
    assert deployment.server.seen == seen + 7
    assert "Approved by ada: about $" in desk.log


def test_a_no_sends_nothing_and_is_not_tried_again(deployment: Any, ask: Any) -> None:
    desk = ask(retries=2).answer("Reject", user="ada", feedback="Not this month.")
    assert desk.states() == {"approval": "failed"}
    assert deployment.server.seen == 0
    assert "nightly.approval: Rejected: The price was not approved (about $" in desk.log
    assert (
        "ada rejected it, with a feedback of 15 characters. Nothing was sent. Clear the task to ask again."
        in desk.log
    )


def test_a_notifier_may_stand_alone(deployment: Any, ask: Any) -> None:
    Told.heard.clear()
    desk = ask(reviewers=Reviewers(notifiers=Told("{{ review_subject }}")))
    assert desk.states() == {"approval": "awaiting_input"}, desk.log
    assert Told.heard == [desk.form()["subject"]]


def test_silence_is_a_no_once_its_time_is_over(deployment: Any, ask: Any) -> None:
    soon = Reviewers(timeout=dt.timedelta(milliseconds=1), users=["ada"])
    desk = ask(reviewers=soon).let_time_pass()
    assert desk.form()["assignees"] == [{"id": "ada", "name": "ada"}]
    assert desk.states() == {"approval": "failed"}
    assert "Nobody answered in time, which rejects." in desk.log
    assert deployment.server.seen == 0


def test_below_the_bar_nobody_is_asked(deployment: Any, ask: Any) -> None:
    desk = ask(confirm_above_usd=1)
    assert desk.states() == {"approval": "success"}, desk.log
    assert desk.form() is None
    assert "Nobody was asked: about $" in desk.log
    assert "not above $1.000000" in desk.log
    assert deployment.server.invoice.paid == 12


def test_what_is_all_in_the_ledger_is_above_no_bar(deployment: Any, ask: Any) -> None:
    ask(confirm_above_usd=None)
    assert ask().states() == {"approval": "success"}
    assert deployment.server.invoice.paid == 12


def test_an_unknown_price_is_above_every_bar(deployment: Any, ask: Any) -> None:
    desk = ask(model="claude-next-preview", confirm_above_usd=1_000)
    assert desk.form()["subject"] == "Ask about 12 documents, for an unknown price?"
    assert "a model has no known price" in desk.form()["body"].replace("\\", "")
    assert deployment.server.seen == 0
    desk.answer("Approve")
    assert deployment.server.seen > 0  # and only then learns that the stand-in has no such model


def test_a_retry_asks_nobody_again_and_a_clear_does(deployment: Any, ask: Any) -> None:
    deployment.server.fail(status=400, times=3)  # three dead letters
    desk = ask(retries=1).answer("Approve")
    assert desk.states() == {"approval": "failed"}, desk.log
    first = deployment.server.invoice.paid
    assert desk.try_again("approval").states() == {"approval": "success"}, desk.log
    assert deployment.server.invoice.paid == 12 > first

    assert desk.clear("approval").states() == {"approval": "success"}  # all is in the ledger
    desk = ask(version="2", retries=1).answer("Approve")
    assert desk.clear("approval").states() == {"approval": "success"}
    assert deployment.server.invoice.paid == 24


def test_a_clear_before_all_is_paid_asks_again_with_the_same_form(deployment: Any, ask: Any) -> None:
    desk = ask().answer("Reject")
    form = desk.form()
    desk.clear("approval")
    assert (desk.states(), desk.form()) == ({"approval": "awaiting_input"}, form)
    assert desk.answer("Approve").states() == {"approval": "success"}, desk.log
    assert deployment.server.invoice.paid == 12


def test_a_yes_does_not_cover_what_has_grown_since(deployment: Any, ask: Any) -> None:
    inbox = deployment.files(4)
    desk = ask(documents=str(inbox), confirm_above_usd=0)
    deployment.files(5)  # one more is about what was shown
    assert desk.answer("Approve").states() == {"approval": "success"}, desk.log
    assert deployment.server.invoice.paid == 5

    desk = ask(documents=str(inbox), version="2")
    deployment.files(40)
    assert desk.answer("Approve").states() == {"approval": "failed"}
    assert "ChangedSinceShown: The price is now $" in desk.log
    assert desk.clear("approval").states() == {"approval": "failed"}, "nobody is asked for a yes of no use"
    assert deployment.server.invoice.paid == 5


def test_nobody_is_asked_for_what_could_not_be_done(deployment: Any, ask: Any) -> None:
    desk = ask(output="{{ 'rows.jsonl' }}")  # a template, so it is known only when the task runs
    assert desk.states() == {"approval": "failed"}
    assert "output= is not valid, it is of type str: it is relative" in desk.log
    assert desk.form() is None


def test_each_mapped_task_and_a_decorated_one_ask_for_themselves(deployment: Any) -> None:
    def make() -> Any:
        from airflow.sdk import DAG, task

        asking = terms(deployment) | budgeted({"confirm_above_usd": 0})
        with DAG("nightly", schedule=None) as dag:

            @task.claude_documents(task_id="approval", **asking)
            def letters(start: int) -> list[str]:
                return LETTERS[start : start + 6]

            letters.expand(start=[0, 6])
        return dag

    desk = Desk(deployment=deployment, make=make).start()
    assert deployment.server.seen == 0, desk.log
    assert [desk.form(map_index=n)["subject"][:21] for n in (0, 1)] == ["Ask about 6 documents"] * 2
    desk.answer("Reject", map_index=0).answer("Approve", map_index=1)
    assert desk.xcom(map_index=1)["outcomes"]["answered"] == 6
    assert desk.xcom(map_index=0) is None
    assert deployment.server.invoice.paid == 6


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"budget": {"task_usd": 1}}, "budget= is a dict: give an amount in US dollars"),
        ({"reviewers": 60}, "reviewers= is a int: give user names"),
    ],
)
def test_what_can_not_be_meant_fails_the_parse(arguments: Any, complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        ClaudeDocumentsOperator(
            task_id="ask", documents=[], prompt="What?", output="/tmp/x.jsonl", **arguments
        )


def test_a_budget_that_asks_is_raised_for_the_task_by_what_a_person_says(deployment: Any, ask: Any) -> None:
    deployment.server.reply(text="word " * 1_600)  # $0.001; a document is held at $0.0045
    desk = ask(run_usd=0.006, on_exceeded="ask", confirm_above_usd=None, retries=1, max_in_flight=2)
    assert desk.states() == {"approval": "awaiting_input"}, desk.log
    paid = deployment.server.invoice.paid
    assert 1 <= paid < 12
    assert desk.xcom(key="manifest")["outcomes"] == {
        **dict.fromkeys(("reused", "repaired", "dead_letter"), 0),
        "answered": paid,
        "pending": 12 - paid,
    }
    shown = desk.form()["body"].replace("\\", "")
    assert f"{12 - paid} of 12 documents are pending. run nightly/" in shown
    assert "left in budget 'budget.run_usd'" in shown
    offered = float(desk.form()["params"]["content"]["value"]["raise to (USD)"])
    assert offered > 0.012  # what all twelve will have cost
    desk.answer("Approve")
    assert desk.states() == {"approval": "success"}, desk.log
    assert deployment.server.invoice.paid == 12


def test_what_a_person_types_is_the_cap_and_nothing_else_of_it_counts(deployment: Any, ask: Any) -> None:
    deployment.server.reply(text="word " * 1_600)
    desk = ask(run_usd=0.006, on_exceeded="ask", confirm_above_usd=None, retries=1, max_in_flight=1)
    paid = deployment.server.invoice.paid
    content = desk.form()["params"]["content"]["value"]
    desk.answer("Approve with changes", content={**content, "budget": "all", "raise to (USD)": 0.0083})
    assert desk.states() == {"approval": "failed"}
    assert paid < deployment.server.invoice.paid < 12
    assert deployment.server.invoice.cost_micro_usd <= 8_300
    assert "It is not raised: it was raised to $0.0083 before. Clear the task to ask again." in desk.log

    assert desk.clear("approval").states() == {"approval": "awaiting_input"}
    typed = {**content, "raise to (USD)": "a lot"}
    assert desk.answer("Approve with changes", content=typed).states() == {"approval": "failed"}
    assert "'raise to (USD)' is not an amount in US dollars" in desk.log
    assert desk.clear("approval").answer("Reject", feedback="No more.").states() == {"approval": "failed"}
    assert "BudgetExceeded: " in desk.log
    assert "It is not raised: ada rejected it, with a feedback of 8 characters." in desk.log


def standing(deployment: Any, **fields: Any) -> None:
    from airflow_llm_provider.ledger import budgets
    from airflow_llm_provider.ledger.database import Database

    database = Database(deployment.ledger_url)
    database.migrate()
    with database.write() as connection:
        budgets.set_budget(connection, budgets.Budget(cap_micro_usd=10, on_exceeded="ask", **fields))
    database.close()


@pytest.mark.parametrize(
    "budget", [{"name": "daily", "scope": "all", "per": "day"}, {"name": "each", "scope": "call"}]
)
def test_a_single_question_asks_about_a_standing_budget_for_itself_alone(
    deployment: Any, budget: Any
) -> None:
    standing(deployment, **budget)

    def make() -> Any:
        from airflow.sdk import DAG

        from airflow_llm_provider.operators.claude import ClaudeOperator

        with DAG("calls", schedule=None) as dag:
            ClaudeOperator(task_id="approval", prompt="What is owed?", model="fast")
            ClaudeOperator(task_id="other", prompt="By whom?", model="fast")
        return dag

    desk = Desk(deployment=deployment, make=make).start()
    assert desk.states() == dict.fromkeys(("approval", "other"), "awaiting_input"), desk.log
    assert desk.form()["subject"] == f"Raise budget {budget['name']}?"
    assert deployment.server.seen == 0
    desk.answer("Approve")
    assert desk.states() == {"approval": "success", "other": "awaiting_input"}, desk.log
    assert deployment.server.invoice.paid == 1


def test_a_deferred_function_asks_about_a_standing_budget_from_a_worker(deployment: Any) -> None:
    standing(deployment, name="daily", scope="all", per="day")

    def make() -> Any:
        from airflow.sdk import DAG, task

        with DAG("calls", schedule=None) as dag:

            @task.claude(task_id="approval", model="fast", deferrable=True)
            def ask() -> str:
                return "What is owed?"

            ask()
        return dag

    desk = Desk(deployment=deployment, make=make).start()
    assert desk.trigger().states() == {"approval": "awaiting_input"}, desk.log
    assert desk.form()["subject"] == "Raise budget daily?"
    assert deployment.server.seen == 0
    assert desk.answer("Approve").trigger().states() == {"approval": "success"}, desk.log
    assert deployment.server.invoice.paid == 1


def test_a_task_that_has_asked_about_its_price_says_that_it_can_not_ask_again(
    deployment: Any, ask: Any
) -> None:
    desk = ask(task_usd=0.0001, on_exceeded="ask").answer("Approve")
    assert desk.states() == {"approval": "failed"}
    assert "left in budget 'budget.task_usd'" in desk.log
    assert "It is not raised: " in desk.log
    assert "Airflow shows another text than it should" in desk.log
    assert deployment.server.seen == 0


def test_a_budget_that_asks_keeps_a_deferrable_task_in_a_worker() -> None:
    with pytest.raises(NeedsWorker, match="parks the task"):
        encode_arguments({"budget": Budget(on_exceeded="ask")})


async def test_a_standing_budget_that_asks_sends_a_deferred_task_to_a_worker(deployment: Any) -> None:
    from airflow.sdk import DAG

    from airflow_llm_provider.operators.claude import ClaudeOperator

    standing(deployment, name="daily", scope="all", per="day")
    with DAG("calls", schedule=None):
        task = ClaudeOperator(task_id="ask", prompt="What is owed?", model="fast", deferrable=True)
    trigger = ClaudeTrigger(**task.start_trigger_args.trigger_kwargs)
    one = {"dag_id": "calls", "run_id": "today", "task_id": "ask", "map_index": -1}
    trigger.task_instance = SimpleNamespace(**one, try_number=1, max_tries=0, task=task)
    trigger._context = {"ti": trigger.task_instance}
    event = await anext(trigger.run())
    assert event.payload["needs_worker"].startswith("a person is asked: all, ")
    assert deployment.server.seen == 0
