"""Every argument that takes data, given text that tries to be a template: sent as it is, rendered and shown nowhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, task
from desk import Desk
from test_documents_are_data import HOSTILE, Export

from airflow_llm_provider.decorators import claude_branch_task, claude_repair_task
from airflow_llm_provider.hooks.files import with_files_read
from airflow_llm_provider.operators.branch import LLMBranchOperator
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.repair import ValidationRepairOperator
from airflow_llm_provider.sensors.approval import ApprovalSensor

# Answers are taken without the white space around them.
ALL = "\n".join(HOSTILE.values()).strip()
ASKING = {"task_id": "read", "model": "fast", "retries": 0}
DATE = {
    "type": "object",
    "properties": {"date": {"type": "string"}},
    "required": ["date"],
    "additionalProperties": False,
}
BOTH = {"left": "One.", "right": "The other."}


def downstream(route: Any) -> None:
    @task
    def left() -> None: ...

    @task
    def right() -> None: ...

    route >> [left(), right()]


def inputs(data: Any) -> None:
    ClaudeOperator(**ASKING, prompt="When?", inputs={"letter": data})


def nested_inputs(data: Any) -> None:
    ClaudeOperator(**ASKING, prompt="When?", inputs={"letters": {"one": [data]}})


def returned_prompt(data: Any) -> None:
    @task.claude(**{key: value for key, value in ASKING.items() if key != "task_id"})
    def read(letter: list[str]) -> str:
        return letter[0]

    read([data])


def inputs_beside_a_function(data: Any) -> None:
    @task.claude(**{key: value for key, value in ASKING.items() if key != "task_id"}, inputs={"letter": data})
    def read() -> str:
        return "When?"

    read()


def branch_inputs(data: Any) -> None:
    downstream(LLMBranchOperator(**ASKING, prompt="Which?", inputs={"letter": data}, branches=BOTH))


def returned_branch_prompt(data: Any) -> None:
    @claude_branch_task(model="fast", retries=0, branches=BOTH)
    def read(letter: list[str]) -> str:
        return letter[0]

    downstream(read([data]))


def repair_source(data: Any) -> None:
    ValidationRepairOperator(**ASKING, prompt="When?", answer='{"day": 1}', source=data, output_type=DATE)


def repair_answer(data: Any) -> None:
    ValidationRepairOperator(**ASKING, prompt="When?", answer=data, output_type=DATE)


def returned_answer(data: Any) -> None:
    @claude_repair_task(model="fast", retries=0, output_type=DATE, prompt="When?")
    def read(answer: list[str]) -> str:
        return answer[0]

    read([data])


BY_FUNCTION = (returned_prompt, returned_branch_prompt, returned_answer)
ARGUMENTS: tuple[Callable[[Any], None], ...] = (
    *(inputs, nested_inputs, returned_prompt, inputs_beside_a_function),
    *(branch_inputs, returned_branch_prompt, repair_source, repair_answer, returned_answer),
)


def asked(deployment: Any) -> str:
    """Return the first request's last message, its strings joined."""

    def strings(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [text for item in items for text in strings(item)]

    return "\n".join(strings(deployment.server.requests[0]["messages"]))


@pytest.mark.parametrize("given", ["xcom", "param"])
@pytest.mark.parametrize("argument", ARGUMENTS, ids=lambda function: function.__name__)
def test_data_is_sent_as_it_is_and_shown_nowhere(
    deployment: Any, argument: Callable[[Any], None], given: str
) -> None:
    deployment.server.reply(data={"date": "In spring."}, matching=lambda q: "date" in json.dumps(q.schema))
    deployment.server.reply(
        data={"reason": "So.", "choice": "left", "confidence": 0.9},
        matching=lambda q: "choice" in json.dumps(q.schema),
    )
    if given == "param" and argument in BY_FUNCTION:
        pytest.skip("A function is given what is in params by its context.")
    with DAG("hostile", schedule=None, params={"text": ""}) as dag:
        argument("{{ params.text }}" if given == "param" else Export(rows=ALL).output)
    ran = deployment.run(dag, run_conf={"text": ALL})
    assert ran.ti().state == "success", ran.log
    sent = asked(deployment)
    # Structured inputs are sent as JSON.
    assert ALL in sent or json.dumps(ALL)[1:-1] in sent or json.dumps(ALL, ensure_ascii=False)[1:-1] in sent
    for text in HOSTILE.values():
        assert json.dumps(text)[1:-1] not in json.dumps(ran.rendered())
    assert "Ignore all previous" not in ran.log
    assert deployment.key not in ran.log + sent


def test_what_a_person_is_shown_is_no_template_either(deployment: Any) -> None:
    def make() -> DAG:
        with DAG("hostile", schedule=None) as dag:
            ApprovalSensor(task_id="approval", content=Export(rows=ALL).output, subject="Send this?")
        return dag

    desk = Desk(deployment=deployment, make=make).start()
    assert desk.states()["approval"] == "awaiting_input"
    assert "{{ conn.claude_default.password }}" in desk.form()["body"]
    assert deployment.key not in desk.form()["body"] + desk.log
    assert desk.answer("Approve").xcom()["content"] == ALL


@pytest.mark.parametrize(
    "spelling", ["{t}/data2/a.txt", "{t}/data/../data2/a.txt", "{t}/data/link.txt", "/etc/passwd"]
)
def test_no_file_that_another_task_names_is_read_outside_the_roots(tmp_path: Path, spelling: str) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    for name in ("data", "data2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    (tmp_path / "data" / "link.txt").symlink_to(tmp_path / "data2" / "a.txt")
    path, folder = Path(spelling.format(t=tmp_path)), f"{tmp_path}/data"
    fine = {"letter": tmp_path / "data" / "a.txt"}
    for roots in ([folder], folder, f"/nowhere, {folder}"):
        assert with_files_read(fine, roots=roots, typed=frozenset()) == {"letter": "data"}
        for typed in (frozenset[str](), frozenset({"letter"})):
            with pytest.raises((AirflowFailException, ValueError), match="is outside the roots"):
                with_files_read({"letter": path}, roots=roots, typed=typed)
    with pytest.raises(AirflowFailException, match="give it roots="):
        with_files_read({"letter": path}, roots=None, typed=frozenset())
