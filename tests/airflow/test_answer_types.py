"""Types of answers are refused when the DAG is parsed, or asked for in words where the API does not take them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import pydantic
import pytest
from airflow.sdk import DAG, ObjectStoragePath, task

from airflow_llm_provider import (
    ApprovalSensor,
    ClaudeDocumentsOperator,
    ClaudeHook,
    ClaudeOperator,
    LLMBranchOperator,
    OnInvalid,
    RequestFields,
    ValidationRepairOperator,
)

CALL = {"task_id": "ask", "prompt": "What is owed?"}
DOCUMENTS = {"task_id": "read", "prompt": "Read.", "documents": "/data/in", "output": "/data/rows.jsonl"}
MAPPED = {name: value for name, value in DOCUMENTS.items() if name != "documents"}
DESCRIBED = RequestFields(enforce=False)


class Plain:
    """A class that pydantic knows nothing of."""


class Part(pydantic.BaseModel):
    name: str
    parts: list[Part] = []


NULLABLE: Any = pydantic.create_model("Nullable", **{f"f{n}": (int | None, ...) for n in range(17)})

MAKERS: list[Callable[..., Any]] = [
    lambda **given: ClaudeOperator(**CALL, **given),
    lambda **given: ClaudeOperator.partial(task_id="ask", **given).expand(prompt=["What?"]),
    lambda **given: ClaudeDocumentsOperator(**DOCUMENTS, **given),
    lambda **given: ClaudeDocumentsOperator.partial(**MAPPED, **given).expand(documents=["/data/in"]),
    lambda **given: ValidationRepairOperator(**CALL, **given),
    lambda **given: task.claude(task_id="ask", **given)(lambda: "What?")(),
    lambda **given: task.claude_documents(**MAPPED, **given)(lambda: ["a"])(),
    lambda **given: task.claude_repair(task_id="ask", **given)(lambda: "{}")(),
]


class Contract(pydantic.BaseModel):
    clauses: list[Clause]  # noqa: F821  # it may be defined further down the file


def test_a_type_that_names_a_class_further_down_the_file_is_not_refused() -> None:
    assert ClaudeOperator(**CALL, output_type=Contract).output_type is Contract


def refused(said: str, make: Callable[..., Any], **given: Any) -> None:
    with DAG("wrong", schedule=None), pytest.raises((TypeError, ValueError), match=re.escape(said)):
        make(**given)


@pytest.mark.parametrize("make", MAKERS, ids=range(len(MAKERS)))
def test_a_class_that_is_no_type_is_refused_when_the_dag_is_parsed(make: Callable[..., Any]) -> None:
    refused("Plain'>: Unable to generate pydantic-core schema", make, output_type=Plain)
    refused("output_type='Invoice' is a text. Give the type itself.", make, output_type="Invoice")
    refused("is not a JSON schema of draft 2020-12", make, output_type={"type": "strng"})


def test_so_it_is_where_no_model_is_asked() -> None:
    refused("Plain'>", ApprovalSensor, task_id="approve", subject="?", content="…", output_type=Plain)
    with DAG("fine", schedule=None):  # an edit is held to the type here, and not by the API
        ApprovalSensor(task_id="approve", subject="?", content="…", output_type=Part)


@pytest.mark.parametrize("make", MAKERS, ids=range(len(MAKERS)))
def test_a_type_over_the_limits_is_refused_when_the_dag_is_parsed_unless_it_is_asked_for_in_words(
    make: Callable[..., Any],
) -> None:
    refused("output_type.parts.* refers to itself", make, output_type=Part)
    refused("17 fields have more than one type (output_type.f0", make, output_type=NULLABLE)
    refused("with request=RequestFields(enforce=False)", make, output_type=dict[str, int])
    with DAG("fine", schedule=None):
        make(output_type=Part, request=DESCRIBED)
    with DAG("defaults", schedule=None, default_args={"request": DESCRIBED}):
        make(output_type=Part)


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
@pytest.mark.parametrize("make", [*MAKERS, RequestFields], ids=range(len(MAKERS) + 1))
def test_how_words_are_drawn_is_no_argument_and_the_error_says_what_is(
    make: Callable[..., Any], name: str
) -> None:
    refused(f"{name}= is not an argument: the current models refuse temperature", make, **{name: 0})
    refused(f'extra_body={{"{name}": …}}', make, **{name: 0})


def test_the_hook_takes_no_option_that_it_does_not_know(deployment: Any) -> None:
    hook = ClaudeHook()
    for unknown, said in (
        ({"temperature": 0}, "temperature= is not an argument"),
        ({"tool": []}, "tool= is not"),
    ):
        with pytest.raises(TypeError, match=said):
            hook.ask("What?", **unknown)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=said):
            list(hook.map(["a"], "What?", **unknown))  # type: ignore[arg-type]
    assert deployment.server.seen == 0


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("rows.jsonl", "output='rows.jsonl': it is relative"),
        (PurePath("out/rows.csv"), "it is relative"),
        ("/data/rows.txt", "rows cannot be written as 'txt'"),
        (ObjectStoragePath("s3://lake/rows.xlsx"), "rows cannot be written as 'xlsx'"),
        ("/data/in/rows.jsonl", "lies among the documents"),
        ("/data/in/", "lies among the documents"),
    ],
)
def test_an_output_that_no_run_can_write_is_refused_when_the_dag_is_parsed(output: Any, said: str) -> None:
    given = {**DOCUMENTS, "output": output}
    refused(said, ClaudeDocumentsOperator, **given)
    refused(said, ClaudeDocumentsOperator.partial, **given)
    if "lies among" not in said:  # the function of a decorator gives the documents
        refused(said, task.claude_documents, prompt="?", output=output)


def test_an_output_that_is_known_later_is_checked_then() -> None:
    with DAG("later", schedule=None):
        for at, output in enumerate(
            ("{{ params.out }}", "/data/{{ ds }}.txt", "/data/rows/", "s3://lake/rows.CSV")
        ):
            ClaudeDocumentsOperator(**{**DOCUMENTS, "task_id": f"read{at}", "output": output})


@pytest.mark.parametrize("make", [*MAKERS[:2], MAKERS[4], lambda **given: task.claude(**given)], ids=range(4))
def test_a_relative_path_of_an_answer_is_refused_when_the_dag_is_parsed(make: Callable[..., Any]) -> None:
    refused("output='answer.txt': it is relative", make, output="answer.txt")


def test_a_relative_folder_of_dead_letters_is_refused_when_it_is_typed() -> None:
    with pytest.raises(ValueError, match=r"on_invalid\.dead_letters='dead': it is relative"):
        OnInvalid(then="dead_letter", dead_letters="dead")
    OnInvalid(then="dead_letter", dead_letters="{{ params.folder }}")


# Asked for in words.

LETTER = "The engine has a pump. The pump has a valve."
TREE = {"name": "engine", "parts": [{"name": "pump", "parts": [{"name": "valve", "parts": []}]}]}


def asked_in_words(deployment: Any) -> list[str]:
    """Return the instructions of the requests, none of which the API was to enforce."""
    found = []
    for request in deployment.server.requests:
        assert "format" not in request.get("output_config", {})
        texts = [block["text"] for block in request["messages"][0]["content"] if block["type"] == "text"]
        found += [text for text in texts if "JSON schema" in text]
    return found


def test_every_operator_asks_for_a_recursive_type_in_words(deployment: Any) -> None:
    deployment.server.reply(data=TREE)
    with DAG("words", schedule=None) as dag:
        ClaudeOperator(**CALL, inputs={"letter": LETTER}, output_type=Part, request=DESCRIBED)

        @task.claude(output_type=Part, request=DESCRIBED, model="fast")
        def decorated() -> str:
            return LETTER

        decorated()

        @task
        def hook() -> Any:
            reply = ClaudeHook().ask(LETTER, output_type=Part, request=DESCRIBED)
            return reply.value.model_dump()

        hook()
        broken = json.dumps(TREE).replace('"pump"', "7")
        ValidationRepairOperator(task_id="repair", answer=broken, output_type=Part, request=DESCRIBED)
    ran = deployment.run(dag)
    assert ran.state == "success", ran.log
    for task_id in ("ask", "decorated", "hook", "repair"):
        value = ran.xcom(task_id)
        assert value.get("__data__", value) == TREE
    assert len(asked_in_words(deployment)) == 4


def test_documents_are_asked_about_in_words_once_and_answered_by_the_stand_in_alone(deployment: Any) -> None:
    asked = {"output_type": Part, "request": DESCRIBED, "prompt": "Name what has parts."}
    ran = deployment.ask(deployment.texts(3), **asked)
    assert ran.outcomes == {"answered": 3}
    assert all(set(row["data"]) == {"name", "parts"} for row in ran.rows)
    assert len(asked_in_words(deployment)) == 3
    again = deployment.ask(deployment.texts(3), **asked)
    assert (again.outcomes, deployment.server.seen) == ({"reused": 3}, 3)


def test_an_answer_in_words_is_not_taken_for_one_that_was_enforced(deployment: Any) -> None:
    class Debt(pydantic.BaseModel):
        amount: str

    for request in (DESCRIBED, None, DESCRIBED, None):
        assert deployment.ask(deployment.texts(1), output_type=Debt, request=request).state == "success"
    assert deployment.server.seen == 2


def test_a_branch_is_chosen_in_words(deployment: Any) -> None:
    deployment.server.reply(data={"choice": "left", "reason": "It says so.", "confidence": 0.9})
    with DAG("branch", schedule=None) as dag:
        choose = LLMBranchOperator(
            task_id="read",
            prompt="Where?",
            branches={"left": "left", "right": "right"},
            request=DESCRIBED,
        )

        @task
        def left() -> None: ...

        @task
        def right() -> None: ...

        choose >> [left(), right()]
    ran = deployment.run(dag)
    assert {name: ran.ti(name).state for name in ("left", "right")} == {"left": "success", "right": "skipped"}
    assert len(asked_in_words(deployment)) == 1


def test_what_only_the_api_knows_to_be_too_complex_is_named_with_the_cure(deployment: Any) -> None:
    wide: Any = pydantic.create_model("Wide", **{f"f{n}": (str, ...) for n in range(60)})
    deployment.server.fail(
        400, message="The compiled grammar is too large, which would cause performance issues."
    )
    with DAG("wide", schedule=None) as dag:
        ClaudeOperator(**CALL, output_type=wide)
    ran = deployment.run(dag)
    assert ran.state == "failed"
    assert "The output type is over a limit of the API." in ran.log
    assert "request=RequestFields(enforce=False)" in ran.log
