"""The DAGs of test_planted.py, which copies this file into the DAGs folder, beside a folder of documents."""

from __future__ import annotations

import os
from pathlib import Path

from airflow.sdk import DAG, BaseOperator, task

from airflow_llm_provider.operators.branch import LLMBranchOperator
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.operators.repair import ValidationRepairOperator
from airflow_llm_provider.options import Route
from airflow_llm_provider.sensors.approval import ApprovalSensor
from airflow_llm_provider.tools import tool

HOME = Path(os.environ["AIRFLOW_HOME"])
INBOX = HOME.parent / "inbox"
ONE = {"model": "fast", "retries": 0}
DATE = {
    "type": "object",
    "properties": {"date": {"type": "string", "maxLength": 10}},
    "required": ["date"],
    "additionalProperties": False,
}


class Export(BaseOperator):
    """Returns what a file holds and, unlike `@task`, does not log it."""

    def __init__(self, *, name: str, **kwargs) -> None:
        super().__init__(task_id=name, **kwargs)
        self.name = name

    def execute(self, context):
        return (HOME.parent / f"{self.name}.txt").read_text()


def look_up(name: str) -> str:
    """Look a name up."""
    raise LookupError(f"nobody is called {name}; the tool's own words")


@tool(needs_approval=True)
def pay(amount: float) -> str:
    """Pay an amount."""
    return f"{amount} paid"


with DAG("planted", schedule=None):
    exported = Export(name="exported").output
    file = {"letter": INBOX / "letter.txt"}
    letter = {"letter": exported}
    ClaudeOperator(task_id="file", prompt="[file] When?", inputs=file, output_type=DATE, **ONE)
    ClaudeOperator(task_id="worker", prompt="[worker] When?", inputs=letter, output_type=DATE, **ONE)
    ClaudeOperator(task_id="deferred", prompt="[deferred] When?", inputs=letter, deferrable=True, **ONE)
    ClaudeOperator(task_id="tools", prompt="[tools] Who?", inputs=file, tools=[look_up], **ONE)
    for way in (False, True):
        how = {**ONE, "route": Route(retry={"server": {"attempts": 1}}), "deferrable": way}
        for fate in ("401", "500", "400"):
            ClaudeOperator(task_id=f"{fate}_{way}", prompt=f"[{fate}] When?", inputs=letter, **how)

    @task.claude(inputs=letter, deferrable=True, **ONE)
    def returned():
        return "[returned] " + (HOME.parent / "returned.txt").read_text()

    returned()

    ClaudeDocumentsOperator(
        task_id="documents",
        prompt="[documents] When?",
        documents=str(INBOX),
        output=str(HOME.parent / "out" / "rows.jsonl"),
        max_failed=10,
        output_type=DATE,
        **ONE,
    )
    ValidationRepairOperator(
        task_id="repair",
        prompt="[repair] When?",
        answer=Export(name="invalid").output,
        output_type=DATE,
        **ONE,
    )
    route = LLMBranchOperator(
        task_id="route", prompt="[route] Which?", inputs=file, branches={"left": "l", "right": "r"}, **ONE
    )

    @task
    def left():
        pass

    @task
    def right():
        pass

    route >> [left(), right()]

with DAG("asked", schedule=None):
    ApprovalSensor(task_id="approval", content=Export(name="shown").output, subject="Send this?")
    ClaudeOperator(task_id="paying", prompt="[paying] Pay.", tools=[pay], inputs=file, **ONE)

with DAG("waiting", schedule=None):
    letter = {"letter": Export(name="waiting").output}

    @task.claude(inputs=letter, deferrable=True, **ONE)
    def parked():
        return "[slow] Take your time."

    parked()
    ClaudeOperator(task_id="started", prompt="[slow] When?", inputs=letter, deferrable=True, **ONE)
