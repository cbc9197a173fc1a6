"""The example DAGs: what the UI shows of them, what parsing them costs, and that they run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

DAGS = Path(__file__).parents[2] / "dags"
NAMES = sorted(file.stem for file in DAGS.glob("*.py"))
CONTRACT = "This lease runs for 10 years. The rent is GBP 98,400.00 a year. The deposit is kept for ever."

Load = Callable[[str], Any]


@pytest.fixture
def load(airflow_home: Path) -> Load:
    """Return a function that loads a DAG from its file as Airflow does."""

    def load(name: str) -> Any:
        from airflow.dag_processing.dagbag import DagBag

        bag = DagBag(dag_folder=DAGS / f"{name}.py")
        assert not bag.import_errors
        assert not bag.captured_warnings
        (dag,) = bag.dags.values()
        for task in dag.tasks:
            task.retries = 0
        return dag

    return load


def test_there_are_the_four_and_the_license_audit() -> None:
    assert NAMES == [
        "human_checkpoint",
        "license_audit",
        "parallel_fan_out",
        "sequential_chain",
        "support_routing",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_dag_says_whose_it_is_when_it_runs_and_what_it_does(load: Load, name: str) -> None:
    dag = load(name)
    assert dag.dag_id == name
    assert {task.owner for task in dag.tasks}.isdisjoint({"airflow", ""})
    assert {"claude", "example"} <= dag.tags
    assert dag.catchup is False
    assert dag.schedule is not None
    assert len(dag.doc_md) > 500
    assert not [task.task_id for task in dag.tasks if not task.downstream_list and not task.upstream_list]


@pytest.mark.parametrize("name", NAMES)
def test_the_form_can_be_sent_off_as_it_opens_and_explains_its_fields(load: Load, name: str) -> None:
    params = load(name).params
    params.validate()
    for field in params.values():
        assert field.schema["title"]
        assert field.description


@pytest.mark.parametrize("name", NAMES)
def test_parsing_a_dag_loads_nothing_that_only_a_call_needs(name: str) -> None:
    heavy = (
        "anthropic",
        "aiohttp",
        "genai_prices",
        "pypdfium2",
        "airflow_llm_provider.engine.run",
    )
    code = (
        f"import runpy, sys; runpy.run_path({str(DAGS / name)!r} + '.py')\n"
        f"print(sorted(set({heavy!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_contract_is_read_in_three_calls_of_rising_tiers(deployment: Any, load: Load) -> None:
    ran = deployment.run(load("sequential_chain"), run_conf={"text": CONTRACT, "side": "tenant"})
    assert ran.state == "success", ran.log
    assert [(call["task_id"], call["model"].split("-")[1]) for call in deployment.calls] == [
        ("terms", "haiku"),
        ("risks", "sonnet"),
        ("summary", "sonnet"),
    ]
    page = ran.xcom("page")
    assert "- price: GBP 98,400.00" in page
    assert page.endswith(ran.xcom("summary"))
    assert "tenant" in json.dumps(deployment.server.requests[1]["messages"])


def test_a_contract_that_was_read_is_not_paid_for_in_the_next_run(deployment: Any, load: Load) -> None:
    for _ in range(2):
        assert deployment.run(load("sequential_chain")).state == "success"
    assert deployment.server.invoice.paid == 3


def test_a_made_up_quote_goes_back_to_the_model(deployment: Any, load: Load) -> None:
    risk = {"area": "money", "severity": "high", "consequence": "It is gone.", "ask_for": "Give it back."}
    server = deployment.server
    server.reply(
        data={"risks": [risk | {"quote": "The deposit is kept for ever."}]}, model="claude-sonnet-5-5"
    )
    server.reply(data={"risks": [risk | {"quote": "The sky is green."}]}, model="claude-sonnet-5-5", times=1)
    ran = deployment.run(load("sequential_chain"), run_conf={"text": CONTRACT})
    assert ran.state == "success", ran.log
    assert [risk["quote"] for risk in ran.xcom("risks")["risks"]] == ["The deposit is kept for ever."]
    assert [call["purpose"] for call in deployment.calls if call["task_id"] == "risks"] == [
        "answer",
        "repair",
    ]


def test_one_specialist_who_says_stop_blocks_what_the_synthesis_would_sign(
    deployment: Any, load: Load
) -> None:
    server = deployment.server
    server.reply(data={"verdict": "negotiate", "findings": []}, model="claude-sonnet-5-5")
    server.reply(
        data={"verdict": "stop", "findings": []},
        matching=lambda question: "data protection" in question.prompt,
    )
    server.reply(
        data={"decision": "sign", "reasons": [], "negotiate": [], "contradictions": []},
        model="claude-opus-5-5",
    )
    ran = deployment.run(load("parallel_fan_out"))
    assert ran.state == "success", ran.log
    decision = ran.xcom("decision")
    assert (decision["decision"], decision["may_sign"], decision["blocked_by"]) == (
        "sign",
        False,
        ["compliance"],
    )
    assert server.invoice.paid == 5
    synthesis = next(request for request in server.requests if request["model"] == "claude-opus-5-5")
    documents = [
        block["title"] for block in synthesis["messages"][0]["content"] if block["type"] == "document"
    ]
    assert sorted(documents) == ["compliance", "finance", "legal", "planning"]  # and not the contract


def choice(branch: str, confidence: float) -> dict[str, Any]:
    return {"reason": "It says so.", "choice": branch, "confidence": confidence}


@pytest.mark.parametrize(
    ("message", "desk", "model", "tools"),
    [
        ("double_charge", "billing", "claude-sonnet-5-5", ["invoices", "open_ticket"]),
        ("sync_stopped", "technical", "claude-opus-5-5", ["service_status", "open_ticket"]),
        ("wants_to_leave", "contract", "claude-sonnet-5-5", ["contract_ends", "invoices"]),
    ],
)
def test_a_message_reaches_the_desk_with_its_own_model_and_tools(
    deployment: Any, load: Load, message: str, desk: str, model: str, tools: list[str]
) -> None:
    ran = deployment.run(load("support_routing"), run_conf={"message": message})
    assert ran.state == "success", ran.log
    assert ran.xcom("draft")["desk"] == desk
    triage, answer = deployment.server.requests
    assert triage["model"] == "claude-haiku-5-5"
    assert (answer["model"], [tool["name"] for tool in answer["tools"]]) == (model, tools)
    assert "maker of shop software" in json.dumps(answer["system"])
    states = {task: ran.ti(task).state for task in ("billing", "technical", "contract", "a_person")}
    assert [task for task, state in states.items() if state == "success"] == [desk]
    assert {state for task, state in states.items() if task != desk} == {"skipped"}


def test_a_specialist_looks_things_up_and_opens_one_ticket(
    deployment: Any, load: Load, airflow_home: Path
) -> None:
    tickets = airflow_home / "support_tickets.jsonl"
    tickets.unlink(missing_ok=True)
    ticket = {"account": "C-1042", "team": "billing", "text": "R-88952 was charged twice."}
    server = deployment.server
    server.reply(data=choice("billing", 0.95), model="claude-haiku-5-5")
    server.reply(
        tool_use=[
            {"name": "invoices", "input": {"account": "C-1042"}},
            {"name": "invoices", "input": {"account": "C-9999"}},
        ],
        model="claude-sonnet-5-5",
        turn=0,
    )
    server.reply(tool_use=[{"name": "open_ticket", "input": ticket}], model="claude-sonnet-5-5", turn=1)
    server.reply(text="We have opened a ticket.", model="claude-sonnet-5-5", turn=2)
    dag = load("support_routing")
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    assert ran.xcom("draft")["text"] == "We have opened a ticket."
    found, missing = server.requests[2]["messages"][-1]["content"]
    assert "R-88952" in json.dumps(found)
    assert missing["is_error"]
    assert "no account" in json.dumps(missing)
    assert [json.loads(line) for line in tickets.read_text().splitlines()] == [
        {"number": "T-00001", **ticket}
    ]


def test_a_message_nobody_is_sure_of_goes_to_a_person(deployment: Any, load: Load) -> None:
    deployment.server.reply(
        data=choice("contract", 0.7), model="claude-haiku-5-5"
    )  # over 0.6, its own bar is 0.8
    ran = deployment.run(load("support_routing"), run_conf={"message": "unclear"})
    assert ran.state == "success", ran.log
    draft = ran.xcom("draft")
    assert draft["desk"] == "a_person"
    assert "below 0.8" in draft["why"]
    assert "call me when you can" in draft["text"]
    assert deployment.server.invoice.paid == 1


PLAN = {
    "credits": [{"account": "C-0415", "amount_eur": 44.5, "reason": "24/7, below 99.9 percent"}],
    "letter": "We are sorry.",
}


def test_what_is_let_through_is_booked_as_it_is(deployment: Any, load: Load) -> None:
    deployment.server.reply(data=PLAN)
    dag = load("human_checkpoint")
    # A parked task waits for a person and a scheduler; tests/system has both.
    dag.get_task("approval").when = lambda plan: False
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    booked = json.loads(Path(ran.xcom("book")).read_text())
    assert {name: booked[name] for name in PLAN} == PLAN
    assert booked["content_hash"] == ran.xcom("approval")["content_hash"]
    assert booked["approved_by"] is None


def test_a_plan_that_breaks_the_rules_is_put_right_before_a_person_sees_it(
    deployment: Any, load: Load
) -> None:
    deployment.server.reply(data=PLAN)
    dear = {**PLAN["credits"][0], "amount_eur": 900.0}
    deployment.server.reply(data={**PLAN, "credits": [dear]}, times=1)
    dag = load("human_checkpoint")
    dag.get_task("approval").when = lambda plan: False
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    assert ran.xcom("plan") == PLAN
    assert "limited to EUR 500.00 each: C-0415 EUR 900.00" in json.dumps(deployment.server.requests[1])
