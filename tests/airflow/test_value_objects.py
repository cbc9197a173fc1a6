"""Value objects as arguments: default_args, mapping, templates and XComs, in a worker and in the triggerer."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator, task
from airflow.triggers.base import TaskSuccessEvent
from desk import Desk

from airflow_llm_provider import (
    Budget,
    ClaudeDocumentsOperator,
    ClaudeOperator,
    LLMBranchOperator,
    OnInvalid,
    Reading,
    RequestFields,
    Reviewers,
    Route,
    ValidationRepairOperator,
)
from airflow_llm_provider.documents.output import read_dead_letters
from airflow_llm_provider.operators.task import SHARED_TEMPLATE_FIELDS
from airflow_llm_provider.options import VALUE_OBJECTS
from airflow_llm_provider.triggers.arguments import resolved
from airflow_llm_provider.triggers.claude import TEMPLATES, ClaudeTrigger

FAST, STRONG = "claude-haiku-5-5", "claude-opus-5-5"
TOO_LITTLE = 0.000_001
SCHEMA = {
    "type": "object",
    "properties": {"amount": {"type": "number"}},
    "required": ["amount"],
    "additionalProperties": False,
}


class Given(BaseOperator):
    """An upstream task that, unlike `@task`, does not log what it returns."""

    def __init__(self, *, value: Any, **kwargs: Any) -> None:
        super().__init__(**{"task_id": "given", **kwargs})
        self.value = value

    def execute(self, context: Any) -> Any:
        return self.value


def models(deployment: Any) -> list[str]:
    return [row["model"] for row in deployment.calls]


# What Airflow allows.


def test_default_args_may_hold_value_objects_and_a_task_may_have_its_own(deployment: Any) -> None:
    default_args = {
        "model": "fast",
        "request": RequestFields(max_tokens=900),
        "budget": Budget(task_usd=TOO_LITTLE),
    }
    with DAG("defaults", schedule=None, default_args=default_args) as dag:
        ClaudeOperator(task_id="default", prompt="One?")
        ClaudeOperator(task_id="own", prompt="Two?", budget=1, request=RequestFields(max_tokens=700))
        ClaudeOperator.partial(task_id="mapped", budget=1).expand(prompt=["Three?"])
    ran = deployment.run(dag)
    assert {task_id: ran.ti(task_id, index).state for task_id, index in ran.instances} == {
        "default": "failed",
        "own": "success",
        "mapped": "success",
    }
    assert sorted(request["max_tokens"] for request in deployment.server.requests) == [700, 900]


@pytest.mark.parametrize(
    "routes",
    [
        [Route(models=["fast"]), Route(models=["strong"])],
        [["fast"], ["strong"]],
        [Route(models=["{{ 'fast' }}"]), ["{{ 'strong' }}"]],
    ],
    ids=["value objects", "plain values", "templates"],
)
@pytest.mark.parametrize("by", ["expand", "expand_kwargs"])
def test_a_task_may_be_mapped_over_value_objects_and_over_plain_values(
    deployment: Any, routes: list[Any], by: str
) -> None:
    with DAG("mapped", schedule=None) as dag:
        partial = ClaudeOperator.partial(task_id="read", prompt="Hello?")
        if by == "expand":
            partial.expand(route=routes)
        else:
            partial.expand_kwargs([{"route": route} for route in routes])
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    assert [ran.xcom(key="llm_usage", map_index=index)["model"] for index in (0, 1)] == [FAST, STRONG]


def test_documents_may_be_mapped_over_readings(deployment: Any) -> None:
    folder = deployment.files(2)
    (folder / "LICENSE").write_text("You owe us nothing.")
    with DAG("mapped", schedule=None) as dag:
        ClaudeDocumentsOperator.partial(
            task_id="read", documents=str(folder), prompt="?", output=deployment.output, model="fast"
        ).expand(reading=[Reading(pattern="LICENSE*"), Reading(pattern="*.txt")])
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    assert [ran.xcom(map_index=index)["documents"] for index in (0, 1)] == [1, 2]


# Templates.


@pytest.mark.parametrize(
    "budget",
    ["{{ params.cap }}", Budget(task_usd="{{ params.cap }}"), Budget(run_usd="{{ params.cap }}")],
    ids=["plain", "task", "run"],
)
@pytest.mark.parametrize(("cap", "state"), [(TOO_LITTLE, "failed"), (1, "success"), (None, "success")])
def test_a_budget_may_be_a_template(deployment: Any, budget: Any, cap: float | None, state: str) -> None:
    with DAG("templates", schedule=None, params={"cap": None}) as dag:
        ClaudeOperator(task_id="read", prompt="Hello?", model="fast", budget=budget)
    ran = deployment.run(dag, run_conf={"cap": cap})
    assert ran.state == state, ran.log
    assert ("left in budget 'budget." in ran.log) is (state == "failed")


@pytest.mark.parametrize(
    "route", [Route(models=["{{ params.tier }}"]), ["{{ params.tier }}"]], ids=["object", "plain"]
)
def test_the_models_of_a_route_may_be_templates(deployment: Any, route: Any) -> None:
    with DAG("templates", schedule=None, params={"tier": "strong"}) as dag:
        ClaudeOperator(task_id="read", prompt="Hello?", route=route)
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    assert models(deployment) == [STRONG]


def test_the_folder_of_dead_letters_may_be_a_template(deployment: Any) -> None:
    deployment.server.fail(kind="wrong_shape")
    folder = f"{deployment.folder}/{{{{ run_id }}}}"
    on_invalid = OnInvalid(max_repairs=0, then="dead_letter", dead_letters=folder)
    with DAG("templates", schedule=None) as dag:
        ClaudeOperator(task_id="read", prompt="?", model="fast", output_type=SCHEMA, on_invalid=on_invalid)
    ran = deployment.run(dag)
    assert ran.ti().state == "skipped", ran.log
    (letter,) = read_dead_letters(deployment.folder / ran.run_id)
    assert letter["reason"] == "invalid_output"


def test_the_fields_of_a_reading_may_be_templates(deployment: Any) -> None:
    folder = deployment.files(2)
    (folder / "LICENSE").write_text("You owe us nothing.")
    reading = Reading(pattern="{{ params.pattern }}")
    dag = deployment.dag(documents=str(folder), reading=reading, params={"pattern": "LICENSE*"})
    assert [row["document_id"] for row in deployment.run(dag).rows] == ["LICENSE"]
    reading = Reading(id_field="{{ params.id }}", text_field="{{ params.text }}")
    rows = [{"number": 7, "body": "We owe you $3.00."}]
    dag = deployment.dag(documents=rows, reading=reading, params={"id": "number", "text": "body"})
    assert [row["document_id"] for row in deployment.run(dag).rows] == ["7"]


def test_a_template_that_makes_a_field_invalid_fails_for_good_and_its_value_is_not_shown(
    deployment: Any,
) -> None:
    with DAG("templates", schedule=None, params={"cap": "a secret"}) as dag:
        ClaudeOperator(
            task_id="read", prompt="?", retries=2, retry_delay=0, budget=Budget(run_usd="{{ params.cap }}")
        )
    ran = deployment.run(dag)
    assert (ran.state, ran.ti().try_number, deployment.server.seen) == ("failed", 1, 0)
    assert "read: budget.run_usd= is not valid, it is of type str: give an amount" in ran.log
    assert "a secret:" not in ran.log
    assert "='a secret'" not in ran.log


@pytest.mark.parametrize("value", [TOO_LITTLE, str(TOO_LITTLE)], ids=["number", "text"])
def test_a_budget_may_come_from_another_task(deployment: Any, value: Any) -> None:
    with DAG("xcoms", schedule=None) as dag:
        budget = Given(value=value).output
        ClaudeOperator(task_id="read", prompt="?", model="fast", budget=budget)
        ClaudeDocumentsOperator(
            task_id="documents",
            documents=deployment.texts(1),
            prompt="?",
            output=deployment.output,
            model="fast",
            budget=budget,
        )
    ran = deployment.run(dag)
    assert ran.ti("read").state == ran.ti("documents").state == "failed"
    assert ran.log.count("left in budget 'budget.task_usd'") >= 2
    assert deployment.server.seen == 0


def test_what_another_task_gave_for_a_budget_is_not_rendered(deployment: Any) -> None:
    with DAG("xcoms", schedule=None) as dag:
        ClaudeOperator(task_id="read", prompt="?", budget=Given(value="{{ 1 + 1 }}").output)
    ran = deployment.run(dag)
    assert ran.state == "failed"
    assert "budget.task_usd" in ran.log
    assert deployment.server.seen == 0


def test_rendering_does_not_change_a_value_object_that_tasks_share(deployment: Any) -> None:
    route = Route(models=["{{ params.tier }}"], fallbacks=["{{ params.tier }}"])
    budget = Budget(task_usd="{{ 1 if ti.task_id == 'first' else 2 }}")
    before = dataclasses.asdict(route), dataclasses.asdict(budget)
    with DAG("shared", schedule=None, params={"tier": "fast"}) as dag:
        first = ClaudeOperator(task_id="first", prompt="One?", route=route, budget=budget)
        second = ClaudeOperator(task_id="second", prompt="Two?", route=route, budget=budget)
        over = ClaudeOperator.partial(task_id="over", route=route, budget=budget).expand(prompt=["a", "b"])
        first >> second >> over
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    assert (dataclasses.asdict(route), dataclasses.asdict(budget)) == before
    rendered = {task_id: ran.rendered(task_id)["budget"] for task_id in ("first", "second")}
    assert "task_usd='1'" in str(rendered["first"])
    assert "task_usd='2'" in str(rendered["second"])
    assert set(models(deployment)) == {FAST}


def test_users_and_notifiers_are_not_templates_of_a_value_object() -> None:
    assert [name for name, cls in VALUE_OBJECTS.items() if hasattr(cls, "template_fields")] == [
        "budget",
        "on_invalid",
        "reading",
        "route",
    ]


@pytest.mark.parametrize(
    "operator", [ClaudeOperator, ClaudeDocumentsOperator, LLMBranchOperator, ValidationRepairOperator]
)
def test_the_value_objects_with_templates_are_rendered_by_every_operator_that_takes_them(
    operator: Any,
) -> None:
    import inspect

    taken = set(VALUE_OBJECTS) & set(inspect.signature(ClaudeOperator).parameters)
    if operator is ClaudeDocumentsOperator:
        taken = set(VALUE_OBJECTS) & set(inspect.signature(operator).parameters)
    templated = {name for name in taken if hasattr(VALUE_OBJECTS[name], "template_fields")}
    assert templated <= set(operator.template_fields)
    assert set(SHARED_TEMPLATE_FIELDS) <= set(operator.template_fields)


# In the triggerer.


def call_of(made: Any) -> dict[str, Any]:
    assert made.start_from_trigger is True
    arguments: dict[str, Any] = json.loads(made.start_trigger_args.trigger_kwargs["call"])["arguments"]
    return arguments


def in_trigger(dag: DAG, task_id: str, *, map_index: int = -1, **context: Any) -> dict[str, Any]:
    """Return the arguments of a task instance as its trigger resolves them."""
    from airflow.serialization.serialized_objects import DagSerialization

    stored: Any = DagSerialization.from_dict(DagSerialization.to_dict(dag)).get_task(task_id)
    ti = SimpleNamespace(dag_id=dag.dag_id, run_id="today", task_id=task_id, map_index=map_index, task=stored)
    return asyncio.run(resolved(call_of(dag.task_dict[task_id]), {"ti": ti, **context}, TEMPLATES))  # type: ignore[arg-type]


VALUES: dict[str, Any] = {
    "route": Route(models=["{{ params.tier }}", "strong"], min_confidence=0.5),
    "budget": Budget(task_usd="{{ params.cap }}", run_usd=5),
    "request": RequestFields(max_tokens=900, stop_sequences=["{{ not a template }}"]),
}


def test_a_trigger_renders_value_objects_as_a_worker_does() -> None:
    with DAG("deferred", schedule=None) as dag:
        ClaudeOperator(task_id="read", prompt="?", deferrable=True, **VALUES)
    given = in_trigger(dag, "read", params={"tier": "fast", "cap": 2})
    assert list(given["route"].models) == ["fast", "strong"]
    assert given["route"].min_confidence == 0.5
    assert (given["budget"].task_usd, given["budget"].run_usd) == ("2", 5)
    assert given["request"].stop_sequences == ["{{ not a template }}"]


def test_a_trigger_renders_the_plain_values_that_stand_for_value_objects() -> None:
    with DAG("deferred", schedule=None) as dag:
        ClaudeOperator(
            task_id="read",
            prompt="?",
            deferrable=True,
            route=["{{ params.tier }}", "strong"],
            budget="{{ params.cap }}",
        )
    given = in_trigger(dag, "read", params={"tier": "fast", "cap": 2})
    assert (given["route"], given["budget"]) == (["fast", "strong"], "2")


@pytest.mark.parametrize("map_index", [0, 1])
def test_a_mapped_instance_in_a_trigger_has_them_too(map_index: int) -> None:
    with DAG("deferred", schedule=None) as dag:
        ClaudeOperator.partial(task_id="read", deferrable=True, **VALUES).expand(prompt=["a", "b"])
    given = in_trigger(dag, "read", map_index=map_index, params={"tier": "fast", "cap": 2})
    assert given["prompt"] == ["a", "b"][map_index]
    assert list(given["route"].models) == ["fast", "strong"]
    assert given["budget"].task_usd == "2"


@pytest.mark.parametrize("map_index", [0, 1])
def test_plain_values_may_be_mapped_over_in_a_trigger(map_index: int) -> None:
    with DAG("deferred", schedule=None) as dag:
        ClaudeOperator.partial(task_id="read", prompt="?", deferrable=True).expand(
            budget=[1, "{{ params.cap }}"]
        )
    given = in_trigger(dag, "read", map_index=map_index, params={"cap": 2})
    assert given["budget"] == [1, "2"][map_index]


def run_trigger(deployment: Any, make: Any) -> Any:
    """Run the DAG that `make` makes until its task `read` has deferred; return the event of its trigger."""
    import sqlalchemy as sa
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.sdk.execution_time import task_runner
    from airflow.utils.session import create_session

    async def asend(message: Any) -> None:
        """Drop an XCom."""

    desk = Desk(deployment=deployment, make=make).start()
    assert desk.states()["read"] == "deferred", desk.log
    with create_session() as session, deployment.monkeypatch.context() as patch:
        patch.setattr(task_runner, "SUPERVISOR_COMMS", SimpleNamespace(asend=asend), raising=False)
        where = (TaskInstance.run_id == desk.run_id, TaskInstance.task_id == "read")
        ti = session.scalar(sa.select(TaskInstance).where(*where))
        row = session.get(Trigger, ti.trigger_id)
        trigger = ClaudeTrigger(**row.kwargs)
        trigger.task_instance = ti

        async def first_event() -> Any:
            return await anext(trigger.run())

        return asyncio.run(first_event())


def test_a_decorated_call_that_has_deferred_keeps_its_value_objects_to_the_wire(deployment: Any) -> None:
    def make() -> DAG:
        with DAG("deferred", schedule=None, params={"tier": "strong"}) as dag:

            @task.claude(
                deferrable=True,
                route=Route(models=["{{ params.tier }}"]),
                request=RequestFields(max_tokens=700),
                budget=Budget(run_usd=1),
                reviewers=Reviewers(users=["ada"]),
            )
            def read() -> str:
                return "{{ 1/0 }} Hello?"

            read()
        return dag

    assert isinstance(run_trigger(deployment, make), TaskSuccessEvent)
    (sent,) = deployment.server.requests
    assert (sent["model"], sent["max_tokens"]) == (STRONG, 700)
    assert sent["messages"][0]["content"][-1]["text"] == "{{ 1/0 }} Hello?"


@pytest.mark.parametrize("deferrable", [False, True], ids=["worker", "triggerer"])
def test_a_document_that_looks_like_a_reference_stays_data(deployment: Any, deferrable: bool) -> None:
    hostile = {"__xcom__": ["given", "return_value"]}

    def make() -> DAG:
        with DAG("hostile", schedule=None) as dag:
            letter = Given(value=hostile).output

            @task.claude(deferrable=deferrable, model="fast", inputs={"letter": letter})
            def read(letter: Any) -> str:
                return f"{{{{ 1/0 }}}} {json.dumps(letter)}"

            read(letter)
        return dag

    if deferrable:
        assert isinstance(run_trigger(deployment, make), TaskSuccessEvent)
    else:
        desk = Desk(deployment=deployment, make=make).start()
        assert desk.states()["read"] == "success", desk.log
    document, prompt = deployment.server.requests[-1]["messages"][0]["content"]
    assert json.loads(document["source"]["data"]) == hostile
    assert prompt["text"] == f"{{{{ 1/0 }}}} {json.dumps(hostile)}"


def test_dag_test_runs_a_deferred_call_in_the_worker(deployment: Any) -> None:
    with DAG("tested", schedule=None) as dag:

        @task.claude(deferrable=True, model="fast")
        def read() -> str:
            return "Hello?"

        read()
    ran = deployment.run(dag)  # by dag.test(), which gives a trigger no task instance
    assert (ran.state, ran.xcom()) == ("success", "Hello?"), ran.log


def test_the_shared_prompt_is_cached_for_as_long_as_the_request_says(deployment: Any) -> None:
    request = RequestFields(cache_ttl="1h", service_tier="standard_only")
    system = "You are a careful accountant. " * 400
    ran = deployment.ask(deployment.texts(3), system=system, request=request)
    assert ran.state == "success", ran.log
    sent = deployment.server.requests
    assert {one["service_tier"] for one in sent} == {"standard_only"}
    marks = [
        block["cache_control"]
        for one in sent
        for block in one["messages"][0]["content"]
        if "cache_control" in block
    ]
    assert marks == [{"type": "ephemeral", "ttl": "1h"}] * 3
    assert sum(line.cache_write_1h_tokens for line in deployment.server.invoice.lines) > 0
    # Neither shapes the answer: another lifetime or tier pays for nothing again.
    assert deployment.ask(deployment.texts(3), system=system).outcomes == {"reused": 3}
