"""The lane of a deferrable call is chosen when the DAG is parsed, and what it reaches into in Airflow is there."""

from __future__ import annotations

import inspect
import json
import logging
from types import SimpleNamespace
from typing import Literal

import pydantic
import pytest
from airflow.sdk import DAG, Asset, Param, task, task_group

from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.triggers.claude import TEMPLATES, ClaudeTrigger
from airflow_llm_provider.triggers.deferral import ARGUMENTS, TRIGGER, NeedsWorker, encode, encode_arguments

pytestmark = pytest.mark.usefixtures("airflow_home")


class Debt(pydantic.BaseModel):
    amount: float


LocalDebt = type("LocalDebt", (Debt,), {"__module__": "unusual_prefix_0a1b_nightly"})
ASKED = {"task_id": "ask", "prompt": "What is owed?", "deferrable": True}


def asked(*, dag=(), **more):
    with DAG("lanes", schedule=None, **dict(dag)) as made:
        task = ClaudeOperator(**ASKED | more)
    assert task.dag is made
    return task


def mapped(dag=(), by="expand", **more):
    """Return a task mapped over what `more` holds under `over`."""
    over = more.pop("over")
    with DAG("lanes", schedule=None, **dict(dag)):
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
        asked(output_type=list[Debt], model=["fast", "strong"], tags=["nightly"], do_xcom_push=False)
    )
    assert call["push"] is False
    arguments = call["arguments"]
    assert set(arguments) == set(ARGUMENTS) - {"validators", "budget_notifiers"}
    assert arguments["model"] == ["fast", "strong"]
    assert arguments["output_type"] == {"list of": f"{__name__}:Debt"}


@pytest.mark.parametrize(
    "output_type", [None, str, int, Debt, list[str], Literal["a", "b"], {"type": "object"}]
)
def test_a_type_that_has_a_name_goes_to_the_triggerer(output_type):
    assert asked(output_type=output_type).start_from_trigger is True


def test_what_is_not_deferrable_says_nothing_of_lanes(caplog):
    task = asked(deferrable=False, validators=[bool])
    assert not task.start_from_trigger
    assert caplog.text == ""


def test_an_xcom_is_handed_over_as_a_reference():
    with DAG("lanes", schedule=None):

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
    with DAG("lanes", schedule=None):

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
    with DAG("lanes", schedule=None, default_args={"deferrable": True}):
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
    "object": ({"inputs": {"what": object()}}, {}, "a object can't be handed to the triggerer"),
}


@pytest.mark.parametrize(("more", "dag", "reason"), REASONS.values(), ids=REASONS)
def test_a_call_that_needs_a_worker_says_why_when_it_is_parsed(caplog, more, dag, reason):
    task = asked(dag=dag, **more)
    assert not task.start_from_trigger
    (said,) = [record for record in caplog.records if record.name == "airflow_llm_provider.triggers.lane"]
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
        ("expand", {"prompt": ["a"], "output_type": [Debt]}, "can't be handed to the triggerer"),
    ],
)
def test_mapping_over_what_a_trigger_can_not_know_needs_a_worker(caplog, by, over, reason):
    assert not mapped(by=by, over=over).start_from_trigger
    assert reason in caplog.text


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"on_exhausted": "skip"}, "on_exhausted= is not 'fail'"),
        ({"reuse": "never"}, "reuse='never' tells a retry from a clear"),
    ],
)
async def test_what_only_the_mapped_value_tells_sends_the_call_to_a_worker(deployment, given, reason):
    ((name, value),) = given.items()
    call = call_of(mapped(over={name: [value]}, prompt="What is owed?"))
    trigger = ClaudeTrigger(json.dumps({**call, "arguments": {**call["arguments"], name: value}}))
    one = {"dag_id": "lanes", "run_id": "today", "task_id": "ask", "map_index": -1}
    trigger.task_instance = SimpleNamespace(**one, try_number=1, max_tries=0, task=asked(deferrable=False))
    trigger._context = {"ti": trigger.task_instance}
    event = await anext(trigger.run())
    assert event.payload["needs_worker"].startswith(reason)
    assert deployment.server.seen == 0


def test_what_goes_with_a_mapped_argument_may_stand_in_partial():
    assert mapped(over={"dead_letters": ["/a", "/b"]}, on_exhausted="dead_letter")
    assert mapped(over={"on_exhausted": ["fail", "default"]}, default="Nothing.")


@pytest.mark.parametrize("how", ["mapped upstream", "map", "zip", "concat", "input map", "input mapped"])
def test_an_xcom_that_a_trigger_can_not_follow_needs_a_worker(caplog, how):
    with DAG("lanes", schedule=None):

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
    with DAG("lanes", schedule=None) as dag:

        @task_group
        def each(n):
            ClaudeOperator(**ASKED)

        each.expand(n=[1, 2])
    assert not dag.task_dict["each.ask"].start_from_trigger
    assert "it is in a mapped task group" in caplog.text


def test_a_decorated_function_runs_in_a_worker_and_only_then_defers(caplog):
    with DAG("lanes", schedule=None):

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
    with pytest.raises(NeedsWorker, match="a set can't be handed"):
        encode({1})


def test_the_trigger_renders_what_the_operator_renders():
    names = {"output" if field == "output_path" else field for field in ClaudeOperator.template_fields}
    assert names == TEMPLATES


def test_the_trigger_is_made_again_from_what_it_serializes():
    call = json.dumps({"arguments": encode_arguments({"prompt": "?"}), "push": True})
    path, kwargs = ClaudeTrigger(call).serialize()
    assert path == TRIGGER == f"{ClaudeTrigger.__module__}.{ClaudeTrigger.__name__}"
    assert ClaudeTrigger(**kwargs).call == call


def test_a_serialized_dag_keeps_the_lane():
    from airflow.serialization.serialized_objects import DagSerialization

    over = mapped(over={"prompt": ["a", "b"]})
    back = DagSerialization.from_dict(DagSerialization.to_dict(over.dag)).get_task("ask")
    assert back.start_from_trigger is True
    assert back.start_trigger_args.trigger_cls == TRIGGER
    stored = back._get_specified_expand_input()
    assert stored.EXPAND_INPUT_TYPE == "dict-of-lists"
    assert dict(stored.value) == {"prompt": ["a", "b"]}


# Where we reach into Airflow: each line is used by triggers/ in the shape that stands here.


def test_the_private_parts_of_airflow_are_as_the_lanes_need_them():
    from airflow.sdk.definitions._internal.expandinput import DictOfListsExpandInput
    from airflow.sdk.definitions._internal.templater import create_template_env
    from airflow.sdk.definitions.mappedoperator import MappedOperator, OperatorPartial, is_mappable_value
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import DeleteXCom
    from airflow.sdk.execution_time.xcom import XCom
    from airflow.serialization.definitions.mappedoperator import is_mapped
    from airflow.serialization.definitions.xcom_arg import SchedulerPlainXComArg
    from airflow.triggers.base import BaseTrigger, StartTriggerArgs

    def takes(function, *names):
        assert set(names) <= set(inspect.signature(function).parameters), function

    takes(OperatorPartial._expand, "expand_input", "strict")
    assert {"operator_class", "kwargs", "params", "_expand_called"} <= {
        field.name for field in OperatorPartial.__attrs_attrs__
    }
    takes(MappedOperator._get_specified_expand_input)
    assert DictOfListsExpandInput.EXPAND_INPUT_TYPE == "dict-of-lists"
    takes(DictOfListsExpandInput.resolve, "context")
    takes(create_template_env)
    assert is_mappable_value([1])
    assert not is_mappable_value("text")
    takes(DeleteXCom, "key", "dag_id", "run_id", "task_id", "map_index")
    assert "SUPERVISOR_COMMS" in task_runner.__annotations__ or hasattr(task_runner, "SUPERVISOR_COMMS")
    takes(XCom.aget_one, "key", "dag_id", "task_id", "run_id", "map_index")
    takes(XCom.aset, "key", "value", "dag_id", "task_id", "run_id", "map_index", "_mapped_length")
    assert callable(is_mapped)
    assert {"operator", "key"} <= {field.name for field in SchedulerPlainXComArg.__attrs_attrs__}
    takes(StartTriggerArgs, "trigger_cls", "trigger_kwargs", "next_method", "timeout")
    takes(BaseTrigger.render_template_fields, "context", "jinja_env")
    # Set when a mapped task is made for its run; then `partial` has chosen the lane.
    with DAG("lanes", schedule=None):
        over = ClaudeOperator.partial(task_id="ask").expand(prompt=["a"])
    assert over.unmap({"prompt": "a"})._BaseOperator__from_mapped is True


def test_a_mapped_task_that_is_made_for_its_run_does_not_choose_again(caplog):
    over = mapped(over={"version": ["1"]}, validators=[bool])
    caplog.clear()
    made = over.unmap({"version": "1"})
    assert made.deferrable is True
    assert caplog.text == ""
