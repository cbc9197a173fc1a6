"""Arguments that are not valid are errors of the DAG file, whichever operator takes them and however it is made."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator, XComArg, task

from airflow_llm_provider.operators.branch import LLMBranchOperator
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.operators.repair import ValidationRepairOperator
from airflow_llm_provider.operators.task import SHARED_TEMPLATE_FIELDS
from airflow_llm_provider.options import (
    Budget,
    LongInput,
    OnInvalid,
    Reading,
    RequestFields,
    Reviewers,
    Route,
    ToolLimits,
)
from airflow_llm_provider.sensors.approval import ApprovalSensor

CALL = {"task_id": "ask", "prompt": "What is owed?"}
DOCUMENTS = {"task_id": "read", "prompt": "Read.", "documents": ["a text"], "output": "/data/rows.jsonl"}


class Given(BaseOperator):
    """An upstream task that, unlike `@task`, does not log what it returns."""

    def __init__(self, *, value: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value = value

    def execute(self, context: Any) -> Any:
        return self.value


OPERATORS = (ClaudeDocumentsOperator, ClaudeOperator, LLMBranchOperator, ValidationRepairOperator)

OF_BOTH = [
    ({"budget": "x"}, "budget.task_usd='x': give an amount in US dollars"),
    ({"budget": -1}, "budget.task_usd=-1: give an amount"),
    ({"budget": True}, "budget= is a bool: give an amount in US dollars or a Budget(task_usd=…)"),
    ({"budget": {"task_usd": 1}}, "budget= is a dict: give an amount"),
    ({"reuse": "alway"}, "reuse='alway': choose one of always, run, never."),
    ({"reuse": "{{ params.reuse }}"}, "neither a template"),
    ({"long_input": "cut"}, "long_input.too_long='cut': choose one of fail, truncate, map_reduce."),
    ({"long_input": 5}, "long_input= is a int: give 'fail', 'truncate', 'map_reduce' or a LongInput(…)"),
    ({"validators": len}, "validators=<built-in function len>: give a list of functions and Judges."),
    ({"validators": ["short"]}, "validators=['short']: give a list of functions and Judges."),
    ({"tags": "monthly"}, "tags='monthly': give a list of strings."),
    ({"tags": [1, "a"]}, "tags=[1, 'a']: give a list of strings."),
    ({"model": []}, "model=[]: name one. Several to escalate through are a route=."),
    ({"model": ["fast", "strong"]}, "model=['fast', 'strong']: name one."),
    ({"model": 3}, "model=3: give a tier or a model id"),
    ({"model": "fast", "route": ["fast", "strong"]}, "model= and route.models: give one of them."),
    ({"route": "fast"}, "route= is a str: give a list of models"),
    ({"route": [3]}, "route= is a list: give a list of models"),
    ({"request": {"max_tokens": 5}}, "request= is a dict: give RequestFields(max_tokens=…, …)"),
    ({"request": "{{ params.n }}"}, "request='{{ params.n }}': neither a template nor the output of another"),
    ({"reviewers": 7}, "reviewers= is a int: give user names or Reviewers(users=…, timeout=…)"),
    ({"system": ["Be short."]}, "system= is of type list: give a text."),
    ({"prompt": 5}, "prompt= is of type int: give a text."),
    ({"on_invalid": 3}, "on_invalid= is a int: give OnInvalid(max_repairs=…, then=…)"),
]
OF_ONE_CALL = [
    (
        {"on_invalid": "x"},
        "on_invalid.then='x': choose one of fail, skip, default, return, dead_letter. To ask a stronger model",
    ),
    ({"messages": "Hello"}, "messages= is of type str: give a list."),
    ({"messages": ["Hello"]}, "messages[0] is of type str: give dicts, each with a role and content."),
    ({"messages": [{"role": "user"}]}, "messages[0] is of type dict: give dicts"),
    ({"inputs": ["a letter"]}, "inputs= is of type list: give a dict of data by name."),
    ({"tools": [3]}, "A tool has to be a function"),
    ({"deferrable": "yes"}, "deferrable='yes': give True or False."),
    ({"tool_limits": 5}, "tool_limits= is a int: give ToolLimits(max_turns=…, …)"),
]
OF_DOCUMENTS = [
    ({"max_in_flight": 0}, "max_in_flight=0: give a whole number, 1 or more."),
    ({"max_failed": -1}, 'max_failed=-1: give a count, such as 10, or a share, such as "1%".'),
    ({"max_failed": 0.5}, "max_failed=0.5: give a count"),
    ({"max_failed": 1.0}, "max_failed=1.0: give a count"),
    ({"max_failed": math.nan}, "max_failed=nan: give a count"),
    ({"max_failed": True}, "max_failed=True: give a count"),
    ({"max_failed": "101%"}, "max_failed='101%': give a count"),
    ({"max_failed": "-1%"}, "max_failed='-1%': give a count"),
    ({"max_failed": "nan%"}, "max_failed='nan%': give a count"),
    ({"max_failed": "some"}, "max_failed='some': give a count"),
    ({"retry_dead": "{{ params.again }}"}, "neither a template"),
    ({"limit": -1}, "limit=-1: give a whole number, 0 or more."),
    ({"reading": "*.txt"}, "reading= is a str: give Reading(pattern=…, …)"),
    (
        {"on_invalid": "skip"},
        "on_invalid.then='skip': a document whose answer stays invalid is a dead letter",
    ),
]
FIELDS: list[tuple[Callable[[], Any], str]] = [
    (lambda: Budget(task_usd="x"), "budget.task_usd='x': give an amount"),
    (lambda: Budget(run_usd=-1), "budget.run_usd=-1: give an amount"),
    (lambda: Budget(confirm_above_usd="much"), "budget.confirm_above_usd='much': give an amount"),
    (
        lambda: Budget(on_exceeded="stop"),
        "budget.on_exceeded='stop': choose one of fail, skip, ask. A budget per",
    ),
    (lambda: Route(models="fast"), "route.models='fast': give a list of names."),
    (lambda: Route(models=[3]), "route.models=[3]: give a list of names."),
    (lambda: Route(fallbacks="fast"), "route.fallbacks='fast': give a list of names."),
    (lambda: Route(fall_back_on=(kind for kind in ["network"])), "give a list of names."),
    (lambda: Route(fall_back_on=["weather"]), "route.fall_back_on= knows no class of error 'weather'"),
    (lambda: Route(min_confidence=70), "route.min_confidence=70: give a number from 0 to 1."),
    (lambda: Route(min_confidence=True), "route.min_confidence=True: give a number"),
    (lambda: Route(retry={"weather": {}}), "weather"),
    (lambda: Route(retry={"network": {"tries": 3}}), "tries"),
    (lambda: Route(retry={"network": {"attempts": "3"}}), "attempts='3': give a whole number, 1 or more"),
    (lambda: Route(retry={"server": {"deadline_s": "60"}}), "deadline_s='60': give a number of seconds"),
    (lambda: Route(retry=["network"]), "route.retry=['network']: give a dict"),
    (lambda: RequestFields(max_tokens=0), "request.max_tokens=0: give a whole number, 1 or more."),
    (lambda: RequestFields(max_tokens="many"), "request.max_tokens='many': give a whole number"),
    (lambda: RequestFields(max_tokens="{{ params.n }}"), "request.max_tokens='{{ params.n }}': give a whole"),
    (lambda: RequestFields(effort=3), "request.effort=3: give a text"),
    (lambda: RequestFields(stop_sequences="END"), "request.stop_sequences='END': give a list of strings."),
    (lambda: RequestFields(extra_body="x"), "request.extra_body='x': give a dict."),
    (lambda: RequestFields(thinking="much"), "request.thinking='much': give a dict."),
    (lambda: RequestFields(metadata=[]), "request.metadata=[]: give a dict."),
    (lambda: OnInvalid(max_repairs=-1), "on_invalid.max_repairs=-1: give a whole number, 0 or more."),
    (lambda: OnInvalid(max_repairs=True), "on_invalid.max_repairs=True: give a whole number"),
    (lambda: OnInvalid(then="review"), "on_invalid.then='review': choose one of"),
    (lambda: LongInput(max_input_tokens=-5), "long_input.max_input_tokens=-5: give a whole number"),
    (lambda: ToolLimits(max_s="600"), "tool_limits.max_s='600': give a number of seconds above 0."),
    (lambda: ToolLimits(max_s=-1), "tool_limits.max_s=-1: give a number of seconds"),
    (lambda: ToolLimits(max_turns=-1), "tool_limits.max_turns=-1: give a whole number"),
    (lambda: ToolLimits(max_usd="cheap"), "tool_limits.max_usd='cheap': give an amount"),
    (lambda: Reviewers(timeout=3), "reviewers.timeout=3: give a timedelta"),
    (
        lambda: Reviewers(on_timeout="deny"),
        "reviewers.on_timeout='deny': choose one of reject, approve, fail",
    ),
    (
        lambda: Reviewers(on_timeout="approve"),
        "reviewers.on_timeout='approve' goes with a timeout: give one.",
    ),
    (lambda: Reading(max_bytes=0), "reading.max_bytes=0: give a number of bytes, 1 or more."),
    (lambda: Reading(strings="texts"), "reading.strings='texts': choose one of text, path."),
    (lambda: Reading(pdf="ocr"), "reading.pdf='ocr': choose one of auto, text, native."),
    (lambda: Reading(framing="xml"), "reading.framing='xml': choose one of document, tag."),
    (lambda: Reading(encoding="utf-99"), "reading.encoding='utf-99': Python knows no such encoding."),
    (lambda: Reading(encoding=None), "reading.encoding=None: Python knows no such encoding."),
    (lambda: Reading(pattern=3), "reading.pattern=3: give a text such as '*.txt', or several."),
    (lambda: Reading(id_field=None), "reading.id_field=None: give the name of a field."),
]
WRONG = [
    *[(ClaudeOperator, CALL, wrong, said) for wrong, said in [*OF_BOTH, *OF_ONE_CALL]],
    *[(ClaudeDocumentsOperator, DOCUMENTS, wrong, said) for wrong, said in [*OF_BOTH, *OF_DOCUMENTS]],
]


@pytest.mark.parametrize(
    ("operator", "given", "wrong", "said"), WRONG, ids=lambda value: getattr(value, "__name__", None)
)
def test_arguments_that_are_not_valid_are_refused_when_the_dag_is_parsed(
    operator: Any, given: Mapping[str, Any], wrong: Mapping[str, Any], said: str
) -> None:
    with DAG("wrong", schedule=None):
        for make in (operator, operator.partial):
            with pytest.raises((TypeError, ValueError), match=re.escape(said)):
                make(**{**given, **wrong})


@pytest.mark.parametrize(("make", "said"), FIELDS, ids=[said[:40] for _, said in FIELDS])
def test_fields_that_are_not_valid_are_refused_when_the_value_object_is_made(
    make: Callable[[], Any], said: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        make()


@pytest.mark.parametrize(
    ("decorate", "wrong", "said"),
    [
        (task.claude, {"reuse": "zz"}, "reuse='zz': choose one of"),
        (task.claude_documents, {"output": "/data/rows.jsonl", "max_failed": -1}, "max_failed=-1"),
        (task.claude_branch, {"votes": 0}, "votes=0"),
        (task.claude_repair, {"validators": len}, "give a list"),
    ],
)
def test_so_it_is_in_a_decorator_even_of_a_task_that_will_be_mapped(
    decorate: Any, wrong: Mapping[str, Any], said: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        decorate(**wrong)


def test_so_it_is_in_a_partial_of_the_sensor() -> None:
    for wrong, said in (
        ({"on_changed": "zzz"}, "on_changed='zzz': choose one of"),
        ({"reviewers": {"timeout": 3600}}, "reviewers= is a dict: give user names or Reviewers"),
        ({"when": "nver"}, "when='nver'"),
        ({"editable": "no"}, "editable='no': give True or False."),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(said)):
            ApprovalSensor.partial(task_id="approve", subject="?", **wrong)


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ({"prompt": 5}, "prompt= is of type int: give a text."),
        ({"prompt": " "}, "The prompt is empty."),
        ({"inputs": {"letter": " \n"}}, "The input 'letter' is empty"),
        ({"system": ["Be short."]}, "system= is of type list: give a text."),
        ({"inputs": ["ab", "cd"]}, "inputs= is of type list: give a dict of data by name."),
        ({"inputs": "a secret letter"}, "inputs= is of type str: give a dict of data by name."),
        ({"messages": ["hi"]}, "messages[0] is of type str: give dicts, each with a role and content."),
        ({"model": ["fast"]}, "model= is not valid, it is of type list: give a tier or a model id"),
        ({"budget": "a secret letter"}, "budget.task_usd= is not valid, it is of type str: give an amount"),
        ({"route": "fast"}, "route= is a str: give a list of models"),
    ],
    ids=str,
)
def test_a_value_of_another_task_that_is_not_valid_is_named_and_costs_nothing(
    deployment: Any, later: Mapping[str, Any], said: str
) -> None:
    ((name, value),) = later.items()
    with DAG("later", schedule=None) as dag:
        ClaudeOperator(**{**CALL, name: Given(task_id="give", value=value).output})
    ran = deployment.run(dag)
    assert (ran.state, deployment.server.seen) == ("failed", 0)
    assert "AirflowFailException" in ran.log
    assert said in ran.log
    assert "a secret letter" not in ran.log


def test_a_function_that_returns_no_prompt_is_told_so(deployment: Any) -> None:
    with DAG("nothing", schedule=None) as dag:

        @task.claude
        def letter() -> None:
            pass

        letter()
    ran = deployment.run(dag)
    assert (ran.state, deployment.server.seen) == ("failed", 0)
    assert "The prompt is empty. Nothing was sent." in ran.log


def test_a_sensor_may_be_mapped_over_its_reviewers() -> None:
    with DAG("mapped", schedule=None):
        whom = [Reviewers(timeout=timedelta(hours=hours), on_timeout="approve") for hours in (1, 2)]
        ApprovalSensor.partial(task_id="approve", subject="?", content="…").expand(reviewers=whom)


def test_a_number_is_a_version_and_a_path_is_an_output(deployment: Any) -> None:
    with DAG("fine", schedule=None) as dag:
        ClaudeOperator(**CALL, version=3, output=deployment.folder / "answer.txt")
    ran = deployment.run(dag)
    assert ran.xcom(task_id="ask") == str(deployment.folder / "answer.txt")


def test_what_a_template_or_another_task_will_give_is_read_when_the_task_runs() -> None:
    with DAG("later", schedule=None):
        first = ClaudeOperator(**CALL)
        later: XComArg = first.output
        ClaudeOperator(
            **{**CALL, "task_id": "second"},
            model="{{ params.model }}",
            inputs=later,
            messages=later,
            version=later,
        )
        ClaudeDocumentsOperator(
            **DOCUMENTS, limit="{{ params.limit }}", budget=later, max_failed="{{ params.failed }}"
        )


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
def test_all_operators_render_the_same_arguments(operator: Any) -> None:
    assert set(SHARED_TEMPLATE_FIELDS) <= set(operator.template_fields)


@pytest.mark.parametrize(
    ("decorate", "operator", "returns"),
    [
        (task.claude, ClaudeOperator, "prompt"),
        (task.claude_branch, LLMBranchOperator, "prompt"),
        (task.claude_documents, ClaudeDocumentsOperator, "documents"),
        (task.claude_repair, ValidationRepairOperator, "answer"),
    ],
)
def test_decorated_tasks_render_them_too_except_what_the_function_returns(
    decorate: Any, operator: Any, returns: str
) -> None:
    more = {"output": "/data/rows.jsonl", "prompt": "?"} if operator is ClaudeDocumentsOperator else {}
    with DAG("decorated", schedule=None):

        @decorate(**more)
        def made() -> str:
            return "?"

        fields = made().operator.template_fields
    assert set(fields) == {"op_args", "op_kwargs", *operator.template_fields} - {returns}


@pytest.mark.parametrize(("operator", "most"), [(ClaudeOperator, 22), (ClaudeDocumentsOperator, 25)])
def test_an_operator_has_no_more_arguments_than_agreed(operator: Any, most: int) -> None:
    # Of documents 24 and `on_empty`; `each`, `canary` and `batch` may join them.
    own = [
        parameter
        for parameter in inspect.signature(operator).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    assert len(own) <= most, [parameter.name for parameter in own]


@pytest.mark.parametrize(
    ("defaults", "own", "retries", "delay_s"),
    [({}, {}, 3, 10), ({"retries": 0}, {}, 0, 10), ({"retries": 5}, {"retries": 1}, 1, 10)],
    ids=str,
)
def test_the_sensor_is_tried_again_soon_unless_the_author_says_otherwise(
    defaults: dict[str, Any], own: dict[str, Any], retries: int, delay_s: int
) -> None:
    with DAG("retries", schedule=None, default_args=defaults):
        plain = ApprovalSensor(task_id="plain", subject="?", content="?", **own)
        mapped = ApprovalSensor.partial(task_id="mapped", subject="?", **own).expand(content=["?"])
    for sensor in (plain, mapped):
        assert (sensor.retries, sensor.retry_delay.total_seconds()) == (retries, delay_s)
