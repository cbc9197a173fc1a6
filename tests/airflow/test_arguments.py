# ruff: noqa: F821  # to be moved to the new arguments in the next commit
"""What a DAG author can't have meant is an error of the DAG file, whichever operator it is and however it is made."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import pytest
from airflow.sdk import DAG, XComArg, task

from airflow_llm_provider.documents.pdf import PdfMode
from airflow_llm_provider.engine.text_block import Framing
from airflow_llm_provider.hooks.branching import OnUnsure
from airflow_llm_provider.operators.branch import LLMBranchOperator
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.operators.repair import ValidationRepairOperator
from airflow_llm_provider.sensors.approval import ApprovalSensor, OnChanged

CALL = {"task_id": "ask", "prompt": "What is owed?"}
DOCUMENTS = {"task_id": "read", "prompt": "Read.", "documents": ["a text"], "output": "/data/rows.jsonl"}
ALL = (ApprovalSensor, ClaudeDocumentsOperator, ClaudeOperator, LLMBranchOperator, ValidationRepairOperator)

OF_BOTH = [
    ({"on_exceeded": "stop"}, "on_exceeded='stop': choose one of fail, skip, ask. A standing budget"),
    ({"budget_usd": "x"}, "budget_usd= 'x' is no amount"),
    ({"run_budget_usd": -1}, "run_budget_usd= -1"),
    ({"reuse": "alway"}, "reuse='alway': choose one of always, run, never."),
    ({"reuse": None}, "reuse=None: choose one of"),
    ({"too_long": "cut"}, "too_long='cut': choose one of fail, truncate, map_reduce."),
    ({"validators": len}, "validators=<built-in function len>: give a list of functions and Judges."),
    ({"validators": ["short"]}, "validators=['short']: give a list of functions and Judges."),
    ({"fallbacks": "fast"}, "fallbacks='fast': give a list of texts."),
    ({"tags": "monthly"}, "tags='monthly': give a list of texts."),
    ({"max_repairs": -1}, "max_repairs=-1: give a whole number, 0 or more."),
    ({"max_tokens": 0}, "max_tokens=0: give a whole number, 1 or more."),
    ({"max_tokens": "many"}, "max_tokens='many': give a whole number"),
    ({"max_input_tokens": -5}, "max_input_tokens=-5: give a whole number"),
    ({"max_repairs": True}, "max_repairs=True: give a whole number"),
    ({"min_confidence": 70}, "min_confidence=70: give a number from 0 to 1."),
    ({"model": []}, "model=[]: name a tier"),
    ({"model": 3}, "model=3: name a tier"),
    ({"model": [3]}, "model=[3]: name a tier"),
    ({"system": ["Be short."]}, "system=['Be short.']: give a text."),
    ({"prompt": 5}, "prompt=5: give a text."),
    ({"tags": [1, "a"]}, "tags=[1, 'a']: give a list of texts."),
    ({"fall_back_on": (kind for kind in ["network"])}, "give a list of texts."),
    ({"extra_body": "x"}, "extra_body='x': give a dict."),
    ({"approval": 7}, "approval=7: give a dict."),
    (
        {"max_tokens": "{{ params.n }}"},
        "max_tokens='{{ params.n }}': neither a template nor another task's output",
    ),
    ({"reuse": "{{ params.reuse }}"}, "neither a template"),
    ({"fall_back_on": ["weather"]}, "fall_back_on= knows no class of error 'weather'"),
    ({"approval": {"response_timeout": 3}}, "give a timedelta"),
    ({"retry": {"weather": {}}}, "weather"),
    ({"retry": {"network": {"tries": 3}}}, "tries"),
    ({"retry": {"network": {"attempts": "3"}}}, "attempts='3': give a whole number, 1 or more"),
    ({"retry": {"server": {"deadline_s": "60"}}}, "deadline_s='60': give a number of seconds"),
    ({"retry": ["network"]}, "retry=['network']: give a dict."),
]
OF_ONE_CALL = [
    (
        {"on_exhausted": "x"},
        "on_exhausted='x': choose one of fail, skip, default, review, dead_letter. A stronger",
    ),
    ({"stop_sequences": "END"}, "stop_sequences='END': give a list of texts."),
    ({"messages": "Hello"}, "messages='Hello': give a list."),
    ({"messages": ["Hello"]}, "messages= holds 'Hello': give dicts, each with a role and content."),
    ({"messages": [{"role": "user"}]}, "messages= holds {'role': 'user'}: give dicts"),
    ({"inputs": ["a letter"]}, "inputs=['a letter']: give a dict."),
    ({"max_tool_s": "600"}, "max_tool_s='600': give a number of seconds."),
    ({"max_tool_s": -1}, "max_tool_s=-1: give a number of seconds."),
    ({"tools": [3]}, "A tool is a function, and 3 is none."),
    ({"deferrable": "yes"}, "deferrable='yes': give True or False."),
    ({"max_tool_turns": -1}, "max_tool_turns=-1: give a whole number"),
    ({"max_tool_usd": "cheap"}, "max_tool_usd= 'cheap' is no amount"),
]
OF_DOCUMENTS = [
    ({"max_in_flight": 0}, "max_in_flight=0: give a whole number, 1 or more."),
    ({"max_failed": -1}, "max_failed=-1: give a count (int), or a share"),
    ({"max_failed": 1.5}, "max_failed=1.5: give a count (int), or a share (float, 0 to 1)"),
    ({"max_failed": math.nan}, "max_failed=nan: give a count"),
    ({"retry_dead": "{{ params.again }}"}, "neither a template"),
    ({"max_bytes": 0}, "max_bytes=0: give a whole number, 1 or more."),
    ({"limit": -1}, "limit=-1: give a whole number, 0 or more."),
    ({"confirm_above_usd": "much"}, "confirm_above_usd= 'much' is no amount"),
    ({"strings": "texts"}, "strings='texts': choose one of text, path."),
    ({"pdf": "ocr"}, "pdf='ocr': choose one of auto, text, native."),
    ({"framing": "xml"}, "framing='xml': choose one of document, tag."),
    ({"encoding": "utf-99"}, "encoding='utf-99': Python knows no such encoding."),
    ({"encoding": None}, "encoding=None: Python knows no such encoding."),
]
WRONG = [
    *[(ClaudeOperator, CALL, wrong, said) for wrong, said in [*OF_BOTH, *OF_ONE_CALL]],
    *[(ClaudeDocumentsOperator, DOCUMENTS, wrong, said) for wrong, said in [*OF_BOTH, *OF_DOCUMENTS]],
]


@pytest.mark.parametrize(
    ("operator", "given", "wrong", "said"), WRONG, ids=lambda value: getattr(value, "__name__", None)
)
def test_what_can_not_be_meant_is_refused_when_the_dag_is_parsed(
    operator: Any, given: Mapping[str, Any], wrong: Mapping[str, Any], said: str
) -> None:
    with DAG("wrong", schedule=None):
        for make in (operator, operator.partial):
            with pytest.raises((TypeError, ValueError), match=re.escape(said)):
                make(**{**given, **wrong})


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
        ({"when": "nver"}, "when='nver'"),
        ({"reviewers": 3600}, "give user names or Reviewers"),
        ({"editable": "no"}, "editable='no': give True or False."),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(said)):
            ApprovalSensor.partial(task_id="approve", subject="?", **wrong)


@pytest.mark.parametrize(
    ("later", "said"),
    [
        ({"prompt": 5}, "The prompt is a int, and should be text."),
        ({"prompt": " "}, "The prompt is empty."),
        ({"system": ["Be short."]}, "system= is a list, and should be text."),
        ({"inputs": ["ab", "cd"]}, "inputs= is ['ab', 'cd'], and should be a dict of data by name."),
        ({"messages": ["hi"]}, "messages= holds 'hi': give dicts, each with a role and content."),
    ],
    ids=str,
)
def test_what_another_task_gives_and_can_not_be_meant_is_named_and_costs_nothing(
    deployment: Any, later: Mapping[str, Any], said: str
) -> None:
    ((name, value),) = later.items()
    with DAG("later", schedule=None) as dag:

        @task
        def give() -> Any:
            return value

        ClaudeOperator(**{**CALL, name: give()})
    ran = deployment.run(dag)
    assert (ran.state, deployment.server.seen) == ("failed", 0)
    assert "AirflowFailException" in ran.log
    assert said in ran.log


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
            **DOCUMENTS, limit="{{ params.limit }}", budget_usd=later, confirm_above_usd="{{ params.usd }}"
        )


def test_every_choice_that_a_signature_offers_is_known() -> None:
    named = {
        "Framing": Framing,
        "OnChanged": OnChanged,
        "OnExhausted": OnExhausted,
        "OnUnsure": OnUnsure,
        "PdfMode": PdfMode,
    }
    offered = {}
    for operator in ALL:
        for name, parameter in inspect.signature(operator).parameters.items():
            stated = str(parameter.annotation).removesuffix(" | None")
            if stated.startswith("Literal[") or stated in named:
                offered[name] = get_args(eval(stated, {"Literal": Literal, **named}))
    assert offered == CHOICES
