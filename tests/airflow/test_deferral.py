"""Deferral: whether a call starts in the triggerer is decided when the DAG is parsed; arguments travel as JSON."""

from __future__ import annotations

import dataclasses
import json
import logging
from types import SimpleNamespace
from typing import Literal

import pydantic
import pytest
from airflow.sdk import DAG, Asset, Param, task, task_group

from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.options import Budget, LongInput, OnInvalid, RequestFields, Reviewers, Route
from airflow_llm_provider.triggers.claude import TEMPLATES, ClaudeTrigger
from airflow_llm_provider.triggers.deferral import (
    ARGUMENTS,
    TRIGGER,
    NeedsWorker,
    decoded,
    encode,
    encode_arguments,
)

pytestmark = pytest.mark.usefixtures("airflow_home")


class Debt(pydantic.BaseModel):
    amount: float


LocalDebt = type("LocalDebt", (Debt,), {"__module__": "unusual_prefix_0a1b_nightly"})


def look_up(order: str) -> str:
    """Look up an order."""
    return order


ASKED = {"task_id": "ask", "prompt": "What is owed?", "deferrable": True}


def asked(*, dag=(), **more):
    with DAG("deferral", schedule=None, **dict(dag)) as made:
        task = ClaudeOperator(**ASKED | more)
    assert task.dag is made
    return task


def mapped(dag=(), by="expand", **more):
    """Return a task mapped over what `more` holds under `over`."""
    over = more.pop("over")
    with DAG("deferral", schedule=None, **dict(dag)):
        partial = ClaudeOperator.partial(**{k: v for k, v in ASKED.items() if k not in over} | more)
        return partial.expand_kwargs(over) if by == "kwargs" else partial.expand(**over)


def call_of(task):
    """Return what the trigger is told."""
    assert task.start_from_trigger is True
    assert task.start_trigger_args.trigger_cls == TRIGGER
    assert task.start_trigger_args.next_method == "resume"
    return json.loads(task.start_trigger_args.trigger_kwargs["call"])


# What starts in the triggerer.


def test_a_call_is_handed_to_the_triggerer_as_plain_data():
    call = call_of(
        asked(output_type=list[Debt], route=["fast", "strong"], tags=["nightly"], do_xcom_push=False)
    )
    assert call["push"] is False
    arguments = call["arguments"]
    assert set(arguments) == set(ARGUMENTS) - {"validators", "tools", "reviewers"}
    assert arguments["route"] == ["fast", "strong"]
    assert arguments["output_type"] == {"list of": f"{__name__}:Debt"}


@pytest.mark.parametrize(
    "output_type", [None, str, int, Debt, list[str], Literal["a", "b"], {"enum": ["a", "b"]}]
)
def test_a_type_that_has_a_name_goes_to_the_triggerer(output_type):
    assert asked(output_type=output_type).start_from_trigger is True


def test_a_call_that_is_not_deferrable_logs_nothing(caplog):
    task = asked(deferrable=False, validators=[bool])
    assert not task.start_from_trigger
    assert caplog.text == ""


def test_an_xcom_is_handed_over_as_a_reference():
    with DAG("deferral", schedule=None):

        @task
        def letter():
            return "We owe you $7."

        ask = ClaudeOperator(**ASKED, inputs={"letter": letter()})
    assert call_of(ask)["arguments"]["inputs"] == {"letter": {"__xcom__": ["letter", "return_value"]}}
    assert ask.upstream_task_ids == {"letter"}


@pytest.mark.parametrize(
    ("by", "over"),
    [
        ("expand", {"prompt": ["a", "b"]}),
        ("expand", {"prompt": ["a", "b"], "model": ["fast", "strong"]}),
        ("kwargs", [{"prompt": "a"}, {"prompt": "b", "model": "strong"}]),
    ],
)
def test_a_call_mapped_over_literals_goes_to_the_triggerer(by, over):
    assert mapped(by=by, over=over).start_from_trigger is True


@pytest.mark.parametrize("by", ["expand", "kwargs", "kwargs, one by one"])
def test_a_call_mapped_over_an_xcom_goes_to_the_triggerer(by):
    with DAG("deferral", schedule=None):

        @task
        def rows():
            return []

        partial = ClaudeOperator.partial(task_id="ask", deferrable=True)
        match by:
            case "expand":
                ask = partial.expand(prompt=rows())
            case "kwargs":
                ask = partial.expand_kwargs(rows())
            case _:
                ask = partial.expand_kwargs([rows(), {"prompt": "?"}])
    assert ask.start_from_trigger is True


def test_deferrable_may_come_from_the_dags_default_arguments():
    with DAG("deferral", schedule=None, default_args={"deferrable": True}):
        plain = ClaudeOperator(task_id="plain", prompt="?")
        over = ClaudeOperator.partial(task_id="over").expand(prompt=["a", "b"])
    assert plain.start_from_trigger is True
    assert over.start_from_trigger is True


# What needs a worker, and says so.

REASONS = {
    "outlets": ({"outlets": [Asset("rows")]}, {}, "it has outlets"),
    "on_success": ({"on_success_callback": print}, {}, "it has on_success_callback"),
    "on_execute": ({"on_execute_callback": print}, {}, "it has on_execute_callback"),
    "on_skipped": ({"on_skipped_callback": print}, {}, "it has on_skipped_callback"),
    "pre_execute": ({"pre_execute": print}, {}, "it has pre_execute"),
    "post_execute": ({"post_execute": print}, {}, "it has post_execute"),
    "multiple outputs": ({"multiple_outputs": True}, {}, "it has multiple_outputs"),
    "own params": ({"params": {"law": Param("Swiss", type="string")}}, {}, "it has params of its own (law)"),
    "macros": ({}, {"user_defined_macros": {"a": 1}}, "macros, filters or Jinja settings"),
    "filters": ({}, {"user_defined_filters": {"a": str}}, "macros, filters or Jinja settings"),
    "searchpath": ({}, {"template_searchpath": "/"}, "macros, filters or Jinja settings"),
    "jinja": ({}, {"jinja_environment_kwargs": {"trim_blocks": True}}, "macros, filters or Jinja settings"),
    "native": ({}, {"render_template_as_native_obj": True}, "renders templates as native objects"),
    "validators": ({"validators": [bool]}, {}, "it has validators, which are Python"),
    "DAG file's type": ({"output_type": LocalDebt}, {}, "can't be imported by name"),
    "list of it": ({"output_type": list[LocalDebt]}, {}, "can't be imported by name"),
    "never": ({"reuse": "never"}, {}, "reuse='never'"),
    "state": ({"prompt": "{{ prev_start_date_success }} {{ task_state_store }}"}, {}, "its templates use"),
    "previous": ({"system": "{{ prev_data_interval_end_success }}"}, {}, "its templates use prev_"),
    "object": ({"inputs": {"what": object()}}, {}, "a object cannot be handed to the triggerer"),
    "tools": ({"tools": [look_up]}, {}, "it has tools, which are Python"),
    "skip": ({"on_invalid": "skip"}, {}, "on_invalid.then='skip', and only a worker does anything but fail"),
    "notifiers": ({"budget": Budget(notifiers=[print])}, {}, "its budget has notifiers, which are Python"),
    "ask": ({"budget": Budget(on_exceeded="ask")}, {}, "budget.on_exceeded='ask' parks the task"),
}


@pytest.mark.parametrize(("more", "dag", "reason"), REASONS.values(), ids=REASONS)
def test_a_call_that_needs_a_worker_says_why_when_it_is_parsed(caplog, more, dag, reason):
    task = asked(dag=dag, **more)
    assert not task.start_from_trigger
    (said,) = [record for record in caplog.records if record.name == "airflow_llm_provider.triggers.deferral"]
    assert said.levelno == logging.WARNING
    assert said.getMessage().startswith("ask runs in a worker although deferrable=True: ")
    assert reason in said.getMessage()


@pytest.mark.parametrize(
    ("more", "dag", "reason"),
    [case for name, case in REASONS.items() if name != "own params"],
    ids=[name for name in REASONS if name != "own params"],
)
def test_a_mapped_call_that_needs_a_worker_says_so_too(caplog, more, dag, reason):
    over = {"version": ["1", "2"]}
    task = mapped(dag=dag, over=over, **more)
    assert not task.start_from_trigger
    assert reason in caplog.text


def test_params_that_are_the_dags_are_no_reason(caplog):
    assert asked(dag={"params": {"law": "Swiss"}}).start_from_trigger is True
    assert asked(dag={"params": {"law": "Swiss"}}, params={"law": "Dutch"}).start_from_trigger is False


@pytest.mark.parametrize(
    ("by", "over", "reason"),
    [
        ("kwargs", [{"prompt": "a", "env": "dev"}], "it is mapped over env"),
        ("expand", {"prompt": ["{{ prev_start_date_success }}"]}, "its templates use"),
        ("expand", {"prompt": ["a"], "output_type": [Debt]}, "cannot be handed to the triggerer"),
        ("expand", {"budget": [Budget(task_usd=1)]}, "it is mapped over value objects (budget)"),
        (
            "kwargs",
            [{"prompt": "a", "route": Route(models=["fast"])}],
            "it is mapped over value objects (route)",
        ),
    ],
)
def test_mapping_over_what_a_trigger_can_not_know_needs_a_worker(caplog, by, over, reason):
    assert not mapped(by=by, over=over).start_from_trigger
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"on_invalid": encode(OnInvalid(then="skip"))}, "on_invalid.then='skip'"),
        ({"budget": encode(Budget(on_exceeded="ask"))}, "budget.on_exceeded='ask'"),
        ({"reuse": "never"}, "reuse='never' tells a retry from a clear"),
    ],
    ids=["on_invalid", "budget", "reuse"],
)
async def test_what_only_the_value_at_run_time_tells_sends_the_call_to_a_worker(deployment, given, reason):
    call = call_of(asked())
    trigger = ClaudeTrigger(json.dumps({**call, "arguments": {**call["arguments"], **given}}))
    one = {"dag_id": "deferral", "run_id": "today", "task_id": "ask", "map_index": -1}
    trigger.task_instance = SimpleNamespace(**one, try_number=1, max_tries=0, task=asked(deferrable=False))
    trigger._context = {"ti": trigger.task_instance}
    event = await anext(trigger.run())
    assert event.payload["needs_worker"].startswith(reason)
    assert deployment.server.seen == 0


def test_a_call_mapped_over_plain_values_of_value_objects_goes_to_the_triggerer():
    assert mapped(over={"route": [["fast"], ["fast", "strong"]]}, budget=2).start_from_trigger is True
    assert mapped(by="kwargs", over=[{"prompt": "a", "budget": 1}]).start_from_trigger is True


@pytest.mark.parametrize("how", ["mapped upstream", "map", "zip", "concat", "input map", "input mapped"])
def test_an_xcom_that_a_trigger_can_not_follow_needs_a_worker(caplog, how):
    with DAG("deferral", schedule=None):

        @task
        def some(n=0):
            return ["a"]

        many = some.override(task_id="many").expand(n=[1, 2])
        source = {
            "mapped upstream": lambda: many,
            "map": lambda: some().map(str.upper),
            "zip": lambda: some().zip(some.override(task_id="other")()),
            "concat": lambda: some().concat(some.override(task_id="other")()),
            "input map": lambda: some().map(str.upper),
            "input mapped": lambda: many,
        }[how]()
        if "input" in how:
            ask = ClaudeOperator(**ASKED, inputs={"letter": source})
        else:
            ask = ClaudeOperator.partial(task_id="ask", deferrable=True).expand(prompt=source)
    assert not ask.start_from_trigger
    assert (
        "its upstream 'many' is mapped" if "mapped" in how else "it uses .map(), .zip() or .concat()"
    ) in (caplog.text)


def test_a_call_in_a_mapped_task_group_needs_a_worker(caplog):
    with DAG("deferral", schedule=None) as dag:

        @task_group
        def each(n):
            ClaudeOperator(**ASKED)

        each.expand(n=[1, 2])
    assert not dag.task_dict["each.ask"].start_from_trigger
    assert "it is in a mapped task group" in caplog.text


def test_a_decorated_function_runs_in_a_worker_and_only_then_defers(caplog):
    with DAG("deferral", schedule=None):

        @task.claude(deferrable=True)
        def ask():
            return "What is owed?"

        made = ask().operator
    assert not made.start_from_trigger
    assert made.deferrable is True
    assert caplog.text == ""


# What is handed over.


def test_only_data_is_encoded():
    assert encode({"a": [1, "b", None, (True, 1.5)]}) == {"a": [1, "b", None, [True, 1.5]]}
    with pytest.raises(NeedsWorker, match="a set cannot be handed"):
        encode({1})


def test_the_trigger_renders_what_the_operator_renders():
    names = {"output" if field == "output_path" else field for field in ClaudeOperator.template_fields}
    # Inputs that are files are read in a worker, so that roots are never needed in the triggerer.
    assert set(TEMPLATES) == names - {"allowed_roots"}


VALUES = {
    "route": Route(models=["fast", "strong"], min_confidence=0.7, retry={"server": {"attempts": 2}}),
    "budget": Budget(task_usd="{{ params.cap }}", on_exceeded="skip"),
    "request": RequestFields(max_tokens=900, stop_sequences=["END"], thinking={"type": "adaptive"}),
    "long_input": LongInput(too_long="map_reduce", max_input_tokens=5_000),
    "on_invalid": OnInvalid(max_repairs=0),
}


def test_value_objects_travel_as_json_and_come_back_as_they_were():
    back = decoded(json.loads(json.dumps(encode_arguments({"prompt": "?", **VALUES}))))
    for name, value in VALUES.items():
        assert _plain(back[name]) == _plain(value)
        assert type(back[name]) is type(value)


def _plain(value):
    return json.loads(json.dumps(dataclasses.asdict(value)))


def test_reviewers_stay_behind_since_only_a_worker_asks_a_person():
    assert asked(reviewers=Reviewers(users=["ada"])).start_from_trigger is True


def test_a_mark_in_data_that_a_worker_has_resolved_means_nothing():
    """A document that looks like a reference, a value object or a template stays the text that it is."""
    hostile = {
        "row": {"__xcom__": ["secrets", "return_value"]},
        "object": {"__value_object__": "Route", "models": ["strong"]},
        "text": "{{ conn.claude_default.password }}",
    }
    arguments = encode_arguments({"prompt": "{{ 1/0 }}", "inputs": hostile})
    assert decoded(json.loads(json.dumps(arguments)))["inputs"] == hostile
    assert decoded(arguments)["prompt"] == "{{ 1/0 }}"


def test_the_trigger_is_made_again_from_what_it_serializes():
    call = json.dumps({"arguments": encode_arguments({"prompt": "?"}), "push": True})
    path, kwargs = ClaudeTrigger(call).serialize()
    assert path == TRIGGER == f"{ClaudeTrigger.__module__}.{ClaudeTrigger.__name__}"
    assert ClaudeTrigger(**kwargs).call == call


def test_a_serialized_dag_keeps_where_the_task_runs():
    from airflow.serialization.serialized_objects import DagSerialization

    over = mapped(over={"prompt": ["a", "b"]})
    back = DagSerialization.from_dict(DagSerialization.to_dict(over.dag)).get_task("ask")
    assert back.start_from_trigger is True
    assert back.start_trigger_args.trigger_cls == TRIGGER
    stored = back._get_specified_expand_input()
    assert stored.EXPAND_INPUT_TYPE == "dict-of-lists"
    assert dict(stored.value) == {"prompt": ["a", "b"]}


def test_a_mapped_task_that_is_made_for_its_run_does_not_choose_again(caplog):
    over = mapped(over={"version": ["1"]}, validators=[bool])
    caplog.clear()
    made = over.unmap({"version": "1"})
    assert made.deferrable is True
    assert caplog.text == ""
