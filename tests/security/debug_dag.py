"""The DAGs of test_debug_logs.py: each task meets one error, with a planted word in what it is about."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pydantic
from airflow.sdk import DAG, BaseOperator, task

from airflow_llm_provider.hooks.claude import ClaudeHook
from airflow_llm_provider.operators.branch import LLMBranchOperator
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.operators.repair import ValidationRepairOperator
from airflow_llm_provider.options import Budget, OnInvalid, Route
from airflow_llm_provider.sensors.approval import ApprovalSensor
from airflow_llm_provider.tools import tool
from airflow_llm_provider.validators import Judge

HOME = Path(os.environ["AIRFLOW_HOME"]).parent
ONE = {"model": "fast", "retries": 0}
ONCE = {**ONE, "route": Route(retry={"server": {"attempts": 1}, "network": {"attempts": 1}})}
DATE = {
    "type": "object",
    "properties": {"date": {"type": "string", "maxLength": 10}},
    "required": ["date"],
    "additionalProperties": False,
}


class Letter(pydantic.BaseModel):
    date: str

    @pydantic.field_validator("date")
    @classmethod
    def is_a_day(cls, value: str) -> str:
        if not value[:4].isdecimal():
            raise ValueError(f"{value} is no day")
        return value


class Export(BaseOperator):
    """Returns what a file holds, as text or in a dict, and does not log it as `@task` would."""

    def __init__(self, *, name: str, shape: str = "text", **kwargs) -> None:
        super().__init__(task_id=f"{name}_{shape}", **kwargs)
        self.name, self.shape = name, shape

    def execute(self, context):
        text = (HOME / f"{self.name}.txt").read_text()
        return {"text": text, "dict": {"letter": text}, "list": [text]}[self.shape]


def complains(answer) -> str | None:
    return f"{answer} is not right"


def breaks(answer) -> None:
    raise LookupError(f"{answer} is not in the table")


def look_up(name: str) -> str:
    """Look a name up."""
    if "broken" in name:
        raise LookupError(f"nobody is called {name}")
    return f"{name} lives at {(HOME / 'result.txt').read_text()}"


@tool(needs_approval=True)
def pay(to: str) -> str:
    """Pay somebody."""
    return f"{to} paid"


def asks(name: str, **how) -> ClaudeOperator:
    given = {"inputs": {"letter": text}, **ONE, **how}
    return ClaudeOperator(task_id=name, prompt=f"[{name}] When?", **given)


with DAG("debug", schedule=None, max_active_tasks=64):
    text = Export(name="document").output
    data = Export(name="document", shape="dict").output

    # The answer is wrong, in a worker and in the triggerer.
    for way in (False, True):
        end = "deferred" if way else "worker"
        asks(f"shape_{end}", output_type=DATE, deferrable=way)
        asks(f"keys_{end}", output_type=DATE, deferrable=way)
        asks(f"prose_{end}", output_type=DATE, deferrable=way)
        asks(f"refused_{end}", deferrable=way)
        asks(f"stopped_{end}", deferrable=way)
        asks(f"500_{end}", **{**ONCE, "deferrable": way})
        asks(f"dropped_{end}", **{**ONCE, "deferrable": way})
    asks("model", output_type=Letter)
    asks("complaint", validators=[complains])
    asks("validator", validators=[breaks])
    asks("judge", validators=[Judge(criteria=["The date is right."])])
    asks("skipped", output_type=DATE, on_invalid=OnInvalid(then="skip"))
    asks("letter", output_type=DATE, on_invalid=OnInvalid(then="dead_letter", dead_letters=f"{HOME}/dead"))
    ValidationRepairOperator(task_id="repair", prompt="[repair] When?", answer=text, output_type=DATE, **ONE)

    # Tools.
    for name in ("tool", "unknown", "arguments", "broken", "turns"):
        asks(name, tools=[look_up])

    # What another task returned is no prompt, no amount, no count, no path, and no model.
    ClaudeOperator(task_id="prompt_of_another", prompt=data, **ONE)
    ClaudeOperator(task_id="inputs_of_another", prompt="When?", inputs=text, **ONE)
    ClaudeOperator(
        task_id="messages_of_another",
        prompt="When?",
        messages=Export(name="document", shape="list").output,
        **ONE,
    )
    pulled = "{{ ti.xcom_pull(task_ids='document_text') }}"
    asks("budget_of_another", budget=Budget(task_usd=pulled))
    asks("output_of_another", output=pulled)

    # Documents.
    def reads(name: str, documents, **how) -> None:
        how = {"output": str(HOME / "out" / f"{name}.jsonl"), "output_type": DATE, **ONE, **how}
        ClaudeDocumentsOperator(task_id=name, prompt=f"[{name}] When?", documents=documents, **how)

    reads("folder", str(HOME / "inbox"))
    reads("path_of_another", text, roots=[str(HOME / "inbox")])
    reads("dict_of_another", data)
    reads("limit_of_another", str(HOME / "inbox"), limit=pulled)
    reads("share_of_another", str(HOME / "inbox"), max_failed=pulled)
    reads("parquet", str(HOME / "inbox"), output=str(HOME / "out" / "rows.parquet"), max_failed="100%")

    # Code of the author.
    @task(retries=0)
    def hook_ask():
        ClaudeHook().ask(
            "[hook] When?", inputs={"letter": (HOME / "document.txt").read_text()}, output_type=Letter
        )

    @task(retries=0)
    def hook_map():
        for outcome in ClaudeHook().map(
            [(HOME / "document.txt").read_text()], "[hook] When?", output_type=Letter
        ):
            raise outcome

    @task(retries=0)
    async def hook_session():
        async with ClaudeHook().session() as claude:
            await claude.ask(
                "[hook] When?", inputs={"row": (HOME / "document.txt").read_text()}, output_type=Letter
            )

    hook_ask(), hook_map(), hook_session()

    # Branches.
    how = {"branches": {"left": "l", "right": "r"}, "inputs": {"letter": text}, **ONE}
    unsure = LLMBranchOperator(
        task_id="unsure", prompt="[unsure] Which?", on_unsure="default", default_branch="left", **how
    )
    wrong = LLMBranchOperator(task_id="wrong", prompt="[wrong] Which?", **how)

    @task
    def left():
        pass

    @task
    def right():
        pass

    [unsure, wrong] >> left()
    [unsure, wrong] >> right()

with DAG("asked", schedule=None):
    shown = Export(name="document").output
    more = {"subject": "Send this?", "content": shown}
    soon = {"retries": 3, "retry_delay": dt.timedelta(seconds=10)}  # as an ApprovalSensor has it by default
    ApprovalSensor(task_id="rejected", on_reject="fail", **more)
    ApprovalSensor(task_id="edited", output_type=Letter, **more)
    ApprovalSensor(task_id="because", when=lambda content: f"{content} looks wrong", **more)
    ClaudeOperator(task_id="paying", prompt="[paying] Pay.", tools=[pay], **{**ONE, **soon})
    choice = LLMBranchOperator(
        task_id="choice",
        prompt="[choice] Which?",
        on_unsure="ask",
        branches={"here": "h", "there": "t"},
        inputs={"letter": shown},
        **{**ONE, **soon, "route": Route(min_confidence=0.9)},
    )

    @task
    def here():
        pass

    @task
    def there():
        pass

    choice >> [here(), there()]
