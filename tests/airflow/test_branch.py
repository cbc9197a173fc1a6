"""Branches: who chooses, what is done where nobody is sure, and that Airflow skips as for its own branch operators."""

from __future__ import annotations

import csv
import datetime as dt
import json
import os
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.standard.operators.python import BranchPythonOperator
from airflow.sdk import DAG, BaseOperator, TaskGroup, task_group
from branch_shapes import SHAPES, a_mapped_group, empty
from desk import Desk

from airflow_llm_provider.decorators import claude_branch_task
from airflow_llm_provider.hooks.branches import Branch
from airflow_llm_provider.operators.branch import LLMBranchOperator
from airflow_llm_provider.options import OnInvalid, Reviewers, Route
from airflow_llm_provider.tools import tool

LETTER = "{{ 1/0 }} My card was charged twice, says {{ conn.claude_default.password }}."
FAST, STRONG = "claude-haiku-5-5", "claude-opus-5-5"
BOTH = {"billing": "Money and invoices.", "technical": "Something does not work."}
INTENTS = int(os.environ.get("INTENTS") or 25)  # messages that are routed; INTENTS=200 for all, in a minute
BANKING77 = Path(__file__).parents[3] / "shared" / "data" / "banking77"


def says(choice: Any, confidence: float = 0.9, reason: str = "It says so.") -> dict[str, Any]:
    return {"reason": reason, "choice": choice, "confidence": confidence}


def look_up(order: str) -> str:
    """Look up an order."""
    return order


def a_dag(
    *, behind: tuple[str, ...] = ("billing", "technical", "other"), name: str = "routing", **asking: Any
) -> DAG:
    """Return a DAG whose first task, `read`, chooses."""
    with DAG(name, schedule=None) as dag:
        how = {"retries": 0, "retry_delay": 0, "prompt": "Who should answer?", "model": "fast"}
        route = LLMBranchOperator(**how | {"task_id": "read", "branches": BOTH} | asking)
        route >> [empty(task_id) for task_id in behind]
    return dag


def states(ran: Any) -> dict[str, str]:
    return {
        task_id if index < 0 else f"{task_id}[{index}]": str(ti.state)
        for (task_id, index), ti in ran.instances.items()
    }


def ran_tasks(ran: Any) -> set[str]:
    return {name for name, state in states(ran).items() if state == "success"} - {"read"}


@pytest.fixture
def route(deployment: Any) -> Any:
    """Run a DAG in which the model says this, or these one after the other."""

    def route(*answers: Any, **asking: Any) -> Any:
        for answer in reversed(answers):
            deployment.server.reply(data=answer, times=1 if len(answers) > 1 else None)
        return deployment.run(a_dag(**asking))

    return route


# As Airflow's own.


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_all_tasks_end_in_the_states_that_airflows_own_branching_leaves_them_in(
    deployment: Any, shape: Any
) -> None:
    choices: dict[str, Any] = {}

    def by_claude(task_id: str, choice: Any) -> Any:
        choices[task_id] = choice
        return LLMBranchOperator(
            task_id=task_id,
            prompt=f"You are at {task_id!r}.",
            multiple=isinstance(choice, list),
            model="fast",
        )

    def by_python(task_id: str, choice: Any) -> Any:
        return BranchPythonOperator(task_id=task_id, python_callable=lambda: choice)

    def answer(question: Any) -> Any:
        return says(next(choice for at, choice in choices.items() if f"You are at {at!r}." in question.text))

    deployment.server.reply(call=answer)
    ran = []
    for choose in (by_claude, by_python):
        with DAG(f"{shape.__name__}_{choose.__name__}", schedule=None) as dag:
            shape(choose)
        ran.append(deployment.run(dag))
    assert ran[0].state == ran[1].state
    if shape is a_mapped_group:
        # Airflow's own branches skip nothing in a mapped group: the choice is looked for at map index -1.
        assert "skipped" not in states(ran[1]).values()
        for (task_id, index), ti in ran[0].instances.items():
            assert str(ti.state) == ("skipped" if task_id == "each.a" else "success"), index
    else:
        assert states(ran[0]) == states(ran[1]), ran[0].log
        assert "skipped" in states(ran[0]).values()
    for task_id, index in ran[0].instances:
        key = (
            "skipmixin_key" if index < 0 else "llm_skip"
        )  # under its own key the scheduler would mistake the index
        assert ran[0].xcom(task_id, map_index=index, key=key) == ran[1].xcom(
            task_id, map_index=index, key="skipmixin_key"
        )


def test_a_clear_takes_the_same_branch_and_asks_nothing(deployment: Any, route: Any) -> None:
    ran = route(says("billing"))
    again = deployment.clear(ran, a_dag())
    assert again.xcom(key="skipmixin_key") == {"followed": ["billing"]}
    assert again.xcom(key="llm_branch") == ran.xcom(key="llm_branch")
    assert deployment.server.invoice.paid == 1


# What is asked.


def test_the_author_describes_and_the_inputs_are_data(deployment: Any) -> None:
    deployment.server.reply(data=says("billing"))
    dag = a_dag(
        prompt="Who should answer this {{ params.kind }}?",
        inputs={"letter": a_task_returning(LETTER)},
        branches={"billing": Branch("Money,\nand invoices.", min_confidence=0.5), "technical": ""},
    )
    dag.params["kind"] = "letter"
    dag.task_dict["technical"].doc_md = "Something does not work."
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    document, prompt = deployment.server.requests[0]["messages"][0]["content"]
    assert document["source"]["data"] == LETTER
    assert prompt["text"] == (
        "Who should answer this letter?\n\nChoose the one branch that fits best. The branches, by id:\n\n"
        "- billing: Money,\n  and invoices.\n- technical: Something does not work."
    )
    schema = deployment.server.requests[0]["output_config"]["format"]["schema"]
    assert list(schema["properties"]) == ["reason", "choice", "confidence"]
    assert schema["properties"]["choice"]["enum"] == ["billing", "technical"]
    assert "charged twice" not in json.dumps(ran.rendered(), default=str) + ran.log


def test_without_branches_all_that_is_directly_downstream_is_offered_as_its_docs_describe_it(
    deployment: Any,
) -> None:
    deployment.server.reply(data=says("g"))
    with DAG("all", schedule=None) as dag:
        route = LLMBranchOperator(task_id="read", prompt="Where?", model="fast")
        with TaskGroup("g", doc_md="Everything about money.") as group:
            empty("x") >> empty("y")
            with TaskGroup("inner"):
                empty("z")
        route >> [group, empty("b", doc="The rest."), empty("a")] >> empty("join", trigger_rule="none_failed")
    ran = deployment.run(dag)
    asked = deployment.server.requests[0]["messages"][0]["content"][-1]["text"]
    assert asked.endswith("- g: Everything about money.\n- b: The rest.\n- a: a")
    assert ran_tasks(ran) == {"g.x", "g.y", "g.inner.z", "join"}


def test_the_decorated_function_returns_what_to_decide(deployment: Any) -> None:
    deployment.server.reply(data=says("technical"))
    with DAG("decorated", schedule=None) as dag:

        @claude_branch_task(branches=BOTH, model="fast")
        def read(letter: str) -> str:
            return f"Who should answer this? {letter}"

        read(a_task_returning(LETTER)) >> [empty("billing"), empty("technical")]
    ran = deployment.run(dag)
    assert ran_tasks(ran) == {"letter", "technical"}, ran.log
    assert deployment.server.requests[0]["messages"][0]["content"][-1]["text"].startswith(
        f"Who should answer this? {LETTER}\n\nChoose the one branch"
    )


def a_task_returning(value: Any) -> Any:
    class Export(BaseOperator):
        def execute(self, context: Any) -> Any:
            return value

    return Export(task_id="letter").output


# How sure.


def test_the_record_says_what_was_proposed_why_how_sure_and_what_was_done(
    deployment: Any, route: Any
) -> None:
    ran = route(says("billing", 0.8, "An invoice is mentioned."), route=Route(min_confidence=0.7))
    assert ran.xcom(key="llm_branch") == {
        "proposed": ["billing"],
        "reason": "An invoice is mentioned.",
        "confidence": 0.8,
        "confidence_is": "stated by the model",
        "stated_confidence": 0.8,
        "votes": [],
        "outcome": "chosen",
        "taken": ["billing"],
        "why": "confidence 0.80 (stated by the model)",
        "cost_usd": ran.xcom(key="llm_usage")["cost_usd"],
    }
    assert ran_tasks(ran) == {"billing"}
    assert float(ran.xcom(key="llm_usage")["cost_usd"]) == deployment.server.invoice.cost_micro_usd / 1e6
    assert "An invoice is mentioned." not in ran.log


def test_stated_confidence_and_votes_are_both_recorded_and_named_for_what_they_are(route: Any) -> None:
    ran = route(
        says("billing", 0.9, "Money."),
        says("technical", 1.0, "It is broken."),
        says("billing", 0.7, "An invoice."),
        says("billing", 0.8, "A refund."),
        says("technical", 0.6, "An app."),
        votes=5,
        route=Route(min_confidence=0.6),
    )
    record = ran.xcom(key="llm_branch")
    assert (record["proposed"], record["confidence"], record["confidence_is"]) == (
        ["billing"],
        0.6,
        "share of 5 votes",
    )
    assert record["stated_confidence"] == 0.8
    assert record["why"] == "confidence 0.60 (share of 5 votes)"
    assert sorted((vote["proposed"], vote["stated_confidence"]) for vote in record["votes"]) == [
        (["billing"], 0.7),
        (["billing"], 0.8),
        (["billing"], 0.9),
        (["technical"], 0.6),
        (["technical"], 1.0),
    ]
    assert ran_tasks(ran) == {"billing"}


def test_votes_are_bought_once_and_paid_for_together(deployment: Any, route: Any) -> None:
    ran = route(says("billing"), votes=5)
    assert ran.xcom(key="llm_usage")["attempts"] == deployment.server.invoice.paid == 5
    again = deployment.clear(ran, a_dag(votes=5))
    assert deployment.server.invoice.paid == 5
    assert again.xcom(key="llm_usage")["reused"] is True
    assert again.xcom(key="llm_branch")["cost_usd"] == ran.xcom(key="llm_branch")["cost_usd"]


def test_an_invalid_vote_agrees_with_nobody_and_is_paid_for_all_the_same(deployment: Any, route: Any) -> None:
    deployment.server.fail(kind="refusal", times=2)
    ran = route(says("billing"), votes=5, route=Route(min_confidence=0.7), default_branch="other")
    record = ran.xcom(key="llm_branch")
    assert (record["confidence"], record["outcome"], record["taken"]) == (0.6, "default", ["other"])
    assert [vote["error"] for vote in record["votes"] if "error" in vote] == [
        "Refused: The model refused to answer."
    ] * 2
    assert float(record["cost_usd"]) == pytest.approx(deployment.server.invoice.cost_micro_usd / 1e6)


@pytest.mark.parametrize(
    ("bars", "taken"),
    [
        ({"route": Route(min_confidence=0.7)}, "other"),
        ({"route": Route(min_confidence=0.6)}, "billing"),
        ({"branches": {**BOTH, "billing": Branch("Money.", min_confidence=0.7)}}, "other"),
        (
            {
                "branches": {**BOTH, "billing": Branch("Money.", min_confidence=0.5)},
                "route": Route(min_confidence=0.9),
            },
            "billing",
        ),
        ({"branches": {**BOTH, "technical": Branch("Else.", min_confidence=0.9)}}, "billing"),
    ],
)
def test_under_its_bar_the_default_branch_is_taken(route: Any, bars: Any, taken: str) -> None:
    ran = route(says("billing", 0.6), default_branch="other", **bars)
    assert ran_tasks(ran) == {taken}
    record = ran.xcom(key="llm_branch")
    assert record["proposed"] == ["billing"]
    if taken == "other":
        why = "billing was proposed, but confidence 0.60 (stated by the model) is below 0.7"
        assert (record["outcome"], record["why"]) == ("default", why)
        assert f"Default: other; {why}" in ran.log


def test_of_several_branches_the_highest_bar_counts(route: Any) -> None:
    branches = {"billing": Branch("Money.", min_confidence=0.9), "technical": "Else.", "other": "The rest."}
    ran = route(
        says(["technical", "billing"], 0.8), multiple=True, branches=branches, default_branch=["other"]
    )
    assert ran_tasks(ran) == {"other"}


def test_an_unsure_choice_without_a_default_branch_fails_without_a_retry(route: Any) -> None:
    ran = route(says("billing", 0.3), route=Route(min_confidence=0.7), retries=2)
    assert (ran.state, ran.ti().try_number) == ("failed", 1)
    assert "billing was proposed, but confidence 0.30 (stated by the model) is below 0.7" in ran.log
    assert ran.xcom(key="llm_branch")["outcome"] == "failed"


def test_the_default_may_be_to_run_nothing(route: Any) -> None:
    ran = route(says("billing", 0.3), route=Route(min_confidence=0.7), default_branch=[])
    assert (ran.state, ran_tasks(ran)) == ("success", set())


def test_an_unsure_first_model_is_followed_by_the_next(deployment: Any, route: Any) -> None:
    deployment.server.reply(data=says("technical", 0.9), model=STRONG)
    deployment.server.reply(data=says("billing", 0.4), model=FAST)
    ran = deployment.run(a_dag(model=None, route=Route(models=["fast", "strong"], min_confidence=0.7)))
    assert ran_tasks(ran) == {"technical"}
    assert ran.xcom(key="llm_usage")["model"] == STRONG


def test_tools_may_be_asked_before_the_choice_is_made(deployment: Any) -> None:
    deployment.server.reply(data=says("billing"))
    deployment.server.reply(tool_use=[{"name": "look_up", "input": {"order": "o-7"}}], turn=0)
    ran = deployment.run(a_dag(tools=[look_up], votes=2))
    assert ran_tasks(ran) == {"billing"}, ran.log
    assert [row["purpose"] for row in deployment.calls].count("tool_turn") == 2


# When there is no answer.


def test_with_the_model_down_the_default_branch_is_taken_and_the_log_says_so(deployment: Any) -> None:
    deployment.server.fail(529)
    ran = deployment.run(
        a_dag(default_branch="other", route=Route(retry={"overloaded": {"attempts": 2}}), retries=2)
    )
    assert (ran.state, ran_tasks(ran)) == ("success", {"other"})
    record = ran.xcom(key="llm_branch")
    assert (record["outcome"], record["taken"]) == ("default", ["other"])
    assert record["why"].startswith("Overloaded: ")
    assert "proposed" not in record
    assert f"Default: other; {record['why']}" in ran.log
    assert deployment.server.seen == 2


def test_with_the_model_down_and_no_default_branch_airflow_tries_again(deployment: Any) -> None:
    deployment.server.fail(529, times=1)
    deployment.server.reply(data=says("billing"))
    ran = deployment.run(a_dag(route=Route(retry={"overloaded": {"attempts": 1}}), retries=1))
    assert (ran.state, ran_tasks(ran), ran.ti().try_number) == ("success", {"billing"}, 2)


@pytest.mark.parametrize("kind", ["wrong_shape", "refusal", "max_tokens"])
def test_an_answer_that_is_none_takes_the_default_branch(deployment: Any, kind: str) -> None:
    deployment.server.fail(kind=kind)
    ran = deployment.run(a_dag(default_branch="other", on_invalid=OnInvalid(max_repairs=0)))
    assert ran_tasks(ran) == {"other"}
    assert ran.xcom(key="llm_branch")["outcome"] == "default"


def test_a_branch_that_was_not_offered_is_sent_back(deployment: Any, route: Any) -> None:
    ran = route(says("accounting"), says("billing"))
    assert ran_tasks(ran) == {"billing"}
    assert ran.xcom(key="llm_usage")["repairs"] == 1


@pytest.mark.parametrize("status", [401, 404])
def test_a_fault_that_somebody_must_mend_never_takes_the_default_branch(deployment: Any, status: int) -> None:
    deployment.server.fail(status)
    ran = deployment.run(a_dag(default_branch="other", retries=2))
    assert (ran.state, ran.ti().try_number) == ("failed", 1)
    assert ran_tasks(ran) == set()


def test_a_ledger_that_can_not_be_used_never_takes_the_default_branch(deployment: Any) -> None:
    (deployment.folder / "damaged.db").write_text("This is no database. " * 500)
    deployment.connect(ledger_url=f"sqlite:///{deployment.folder}/damaged.db")
    ran = deployment.run(a_dag(default_branch="other"))
    assert (ran.state, ran_tasks(ran), deployment.server.seen) == ("failed", set(), 0)


# A person chooses.


def asks_a_person(**asking: Any) -> Any:
    """Return what makes a DAG whose question lands on the desk, as those of the task `approval` do."""
    given = {
        "task_id": "approval",
        "route": Route(min_confidence=0.7),
        "on_unsure": "ask",
        "inputs": {"letter": "My card was charged twice."},
    }
    return lambda: a_dag(**given | asking)


def test_a_person_chooses_among_the_branches_and_the_model_is_asked_nothing_more(deployment: Any) -> None:
    deployment.server.reply(data=says("billing", 0.3, "It is about a charge."))
    desk = Desk(deployment=deployment, make=asks_a_person()).start()
    assert desk.states()["approval"] == "awaiting_input", desk.log
    form = desk.form()
    assert form["options"] == ["billing", "technical"]
    shown = form["body"].replace("\\", "")
    for text in (
        "Who should answer?",
        "Money and invoices.",
        "It is about a charge.",
        "My card was charged twice.",
    ):
        assert text in shown
    assert desk.xcom("approval", "llm_branch")["outcome"] == "ask"
    desk.answer("technical", feedback="It is the app.")
    assert desk.states() == {
        "approval": "success",
        "technical": "success",
        "billing": "skipped",
        "other": "skipped",
    }
    record = desk.xcom("approval", "llm_branch")
    assert (record["proposed"], record["outcome"], record["taken"]) == (
        ["billing"],
        "reviewed",
        ["technical"],
    )
    assert record["why"] == (
        "billing was proposed, but confidence 0.30 (stated by the model) is below 0.7; ada chose"
    )
    assert "asked" not in record
    assert deployment.server.invoice.paid == 1


def test_a_person_chooses_where_the_answer_is_none(deployment: Any) -> None:
    deployment.server.fail(kind="refusal")
    desk = Desk(deployment=deployment, make=asks_a_person()).start().answer("billing")
    assert desk.states()["billing"] == "success", desk.log
    assert desk.xcom("approval", "llm_branch")["why"].startswith("Refused: ")


def test_when_nobody_chooses_in_time_the_default_branch_is_taken(deployment: Any) -> None:
    deployment.server.reply(data=says("billing", 0.3))
    soon = dt.timedelta(milliseconds=1)
    make = asks_a_person(reviewers=Reviewers(timeout=soon), default_branch="other")
    desk = Desk(deployment=deployment, make=make).start().let_time_pass()
    assert desk.states()["other"] == "success", desk.log
    record = desk.xcom("approval", "llm_branch")
    assert (record["outcome"], record["why"].rpartition("; ")[2]) == ("default", "nobody answered in time")


def test_when_nobody_chooses_in_time_and_there_is_no_default_branch_the_task_fails(deployment: Any) -> None:
    deployment.server.reply(data=says("billing", 0.3))
    make = asks_a_person(reviewers=Reviewers(timeout=dt.timedelta(milliseconds=1)), retries=1)
    desk = Desk(deployment=deployment, make=make).start().let_time_pass()
    assert desk.states()["approval"] == "failed", desk.log


def test_several_that_were_proposed_can_be_taken_as_they_are(deployment: Any) -> None:
    deployment.server.reply(data=says(["billing", "technical"], 0.3))
    desk = Desk(deployment=deployment, make=asks_a_person(multiple=True)).start()
    assert desk.form()["options"] == ["billing, technical", "billing", "technical", "None of them"]
    desk.answer("billing, technical")
    assert desk.xcom("approval", "llm_branch")["taken"] == ["billing", "technical"]


def test_a_decorated_branch_is_not_decided_anew_when_the_task_resumes(deployment: Any) -> None:
    deployment.server.reply(data=says("billing", 0.3))
    called = []

    def make() -> Any:
        with DAG("decorated", schedule=None) as dag:

            @claude_branch_task(branches=BOTH, route=Route(min_confidence=0.7), on_unsure="ask", model="fast")
            def approval() -> str:
                called.append(1)
                return "Who should answer?"

            approval() >> [empty("billing"), empty("technical")]
        return dag

    desk = Desk(deployment=deployment, make=make).start().answer("technical")
    assert desk.states()["technical"] == "success", desk.log
    assert (called, deployment.server.invoice.paid) == ([1], 1)


# What the author gets wrong.


@pytest.mark.parametrize(
    ("asking", "complaint"),
    [
        ({"branches": {"biling": "Money."}}, "'biling' is not a branch of it"),
        ({"default_branch": "elsewhere"}, "'elsewhere' is not a branch of it"),
        ({"branches": {"after": "Not directly downstream."}}, "'after' is not a branch of it"),
    ],
)
def test_a_branch_that_is_not_downstream_is_named_before_anything_is_paid(
    deployment: Any, asking: Any, complaint: str
) -> None:
    dag = a_dag(retries=2, **asking)
    with dag:
        dag.task_dict["billing"] >> empty("after")
    ran = deployment.run(dag)
    assert (ran.state, ran.ti().try_number) == ("failed", 1)
    assert (
        f"routing.read: {complaint}: it is not directly downstream. There are 'billing', 'technical'"
        in ran.log
    )
    assert deployment.server.seen == 0


def test_a_likely_name_is_suggested(deployment: Any) -> None:
    assert "did you mean 'billing'?" in deployment.run(a_dag(branches={"biling": "Money."})).log


def test_a_branch_with_nothing_downstream_says_so(deployment: Any) -> None:
    ran = deployment.run(a_dag(behind=(), branches=None))
    assert "routing.read: it has no branch; set tasks or task groups downstream of it." in ran.log


@pytest.mark.parametrize("way", ["made", "partial"])
@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"deferrable": True}, "no deferrable=True"),
        ({"output_type": str}, "takes no output_type=: the answer is a choice"),
        ({"output": "/data/answer.json"}, "takes no output=: the answer is a choice"),
        ({"on_invalid": "skip"}, "takes no on_invalid.then=: on_unsure= says"),
        # Their ids are spelled out: a function's address is another in each process of pytest-xdist.
        pytest.param(
            {"tools": [tool(irreversible=True)(look_up)]},
            "takes no tool like 'look_up'",
            id="irreversible tool",
        ),
        pytest.param(
            {"tools": [tool(needs_approval=True)(look_up)]},
            "takes no tool like 'look_up'",
            id="approved tool",
        ),
        ({"votes": 0}, "votes=0: give a whole number, 1 or more"),
        ({"votes": "5"}, "votes='5': give a whole number"),
        ({"branches": ["billing", "technical"]}, "branches= should be a dict"),
        ({"reviewers": 5}, "reviewers= is a int: give user names or Reviewers"),
        ({"route": {"min_confidence": 0.7}}, "route= is a dict: give a list of models"),
        ({"on_unsure": "default"}, "needs a default_branch"),
        ({"on_unsure": "guess"}, "on_unsure='guess': choose one of default, ask, fail"),
        ({"default_branch": ["a", "b"]}, "several branches need multiple=True"),
    ],
    ids=str,
)
def test_arguments_that_are_not_valid_are_refused_when_the_dag_is_parsed(
    way: str, wrong: Any, complaint: str
) -> None:
    make = LLMBranchOperator if way == "made" else LLMBranchOperator.partial
    with DAG("wrong", schedule=None), pytest.raises((TypeError, ValueError), match=complaint):
        make(task_id="read", prompt="?", **wrong)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Branch("…", min_confidence=2), "branch.min_confidence=2: give a number from 0 to 1"),
        (lambda: Route(min_confidence=70), "route.min_confidence=70: give a number from 0 to 1"),
        (lambda: Reviewers(timeout=3600), "reviewers.timeout=3600: give a timedelta"),
        (
            lambda: Reviewers(users="ada"),
            r"reviewers.users='ada': give a list of user names, such as \['ada'\]",
        ),
    ],
)
def test_a_value_object_with_a_wrong_value_is_refused_when_it_is_made(make: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make()


EACH = {"each.billing": "Money and invoices.", "each.technical": "Something does not work."}


def a_mapped_branch(task_id: str, **asking: Any) -> DAG:
    """Return a DAG whose branch decides for each map index of its task group."""
    with DAG("mapped", schedule=None) as dag:

        @task_group
        def each(text: str) -> None:
            LLMBranchOperator(
                task_id=task_id,
                prompt="Who?",
                model="fast",
                branches=EACH,
                inputs={"text": text},
                **asking,
            ) >> [empty("billing"), empty("technical")]

        each.expand(text=["An invoice.", "An error."])
    return dag


def test_a_branch_in_a_mapped_group_decides_for_each_index(deployment: Any) -> None:
    def answer(question: Any) -> Any:
        return says("each.billing" if "invoice" in question.document else "each.technical")

    deployment.server.reply(call=answer)
    ran = deployment.run(a_mapped_branch("read"))
    taken = [ran.xcom("each.read", map_index=n, key="llm_branch")["taken"] for n in range(2)]
    assert taken == [["each.billing"], ["each.technical"]]
    assert {name for name, state in states(ran).items() if state == "skipped"} == {
        "each.technical[0]",
        "each.billing[1]",
    }


def test_a_person_chooses_for_each_index_of_a_mapped_branch(deployment: Any) -> None:
    deployment.server.reply(data=says("each.billing", 0.3))
    asking = {"route": Route(min_confidence=0.7), "on_unsure": "ask"}
    desk = Desk(deployment=deployment, make=lambda: a_mapped_branch("approval", **asking)).start()
    for index, choice in enumerate(EACH):
        desk.answer(choice, task_id="each.approval", map_index=index)
    taken = [desk.xcom("each.approval", "llm_branch", n)["taken"] for n in range(2)]
    assert taken == [["each.billing"], ["each.technical"]], desk.log


# Real intents.

DEPARTMENTS = ("cards", "top_ups", "transfers", "cash_and_exchange", "account")


def department(intent: str) -> str:
    """Group banking77's 77 intents into five departments, by what their names say."""
    name = intent.lower()
    if "top_up" in name or "topping" in name or "balance_not_updated" in name:
        return "top_ups"
    if "transfer" in name or "beneficiary" in name or "direct_debit" in name or "receiving" in name:
        return "transfers"
    if any(word in name for word in ("cash", "atm", "exchange", "currenc")):
        return "cash_and_exchange"
    if any(
        word in name
        for word in ("card", "pin", "contactless", "apple_pay", "refund", "charge", "transaction")
    ):
        return "cards"
    return "account"


@pytest.fixture
def messages() -> list[tuple[str, str]]:
    """Messages with the department that is right, spread over the test set and so over all intents."""
    if not (BANKING77 / "test.csv").exists():
        pytest.skip("banking77 is not at ../shared/data")
    with (BANKING77 / "test.csv").open(newline="") as file:
        rows = [(row["text"], department(row["category"])) for row in csv.DictReader(file)]
    return rows[:: len(rows) // INTENTS][:INTENTS]


@pytest.fixture
def labels(deployment: Any, messages: Any) -> None:
    """Let the stand-in answer with the label."""
    by_text = dict(messages)
    deployment.server.reply(call=lambda question: says(by_text[question.document]))


def test_the_five_departments_are_all_asked_for(messages: Any) -> None:
    assert (len(messages), {label for _, label in messages}) == (INTENTS, set(DEPARTMENTS))


@pytest.mark.usefixtures("labels")
def test_every_dag_run_runs_the_branch_that_the_answer_names_and_no_other(
    deployment: Any, messages: Any
) -> None:
    right = 0
    for text, label in messages:
        with DAG("intents", schedule=None) as dag:
            route = LLMBranchOperator(
                task_id="read", prompt="Which department?", inputs={"message": text}, model="fast"
            )
            route >> [empty(name, doc=f"Questions about {name}.") for name in DEPARTMENTS]
        ended = states(deployment.run(dag))
        right += ended == {"read": "success"} | dict.fromkeys(DEPARTMENTS, "skipped") | {label: "success"}
    print(f"branch: {right} of {len(messages)} DAG runs took the branch that the answer names, and no other")
    assert right == len(messages)
