"""What a DAG author writes, as a type checker sees it; test_typing.py runs mypy over this file."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

import pydantic
from airflow.sdk import DAG

from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.hooks.claude import ClaudeHook
from airflow_llm_provider.ledger.records import CallScope
from airflow_llm_provider.operators.branch import LLMBranchOperator
from airflow_llm_provider.operators.claude import ClaudeOperator
from airflow_llm_provider.operators.documents import ClaudeDocumentsOperator
from airflow_llm_provider.operators.repair import ValidationRepairOperator
from airflow_llm_provider.options import Reviewers
from airflow_llm_provider.sensors.approval import ApprovalSensor
from airflow_llm_provider.sensors.conditions import BelowConfidence
from airflow_llm_provider.tools import Tool, tool
from airflow_llm_provider.validators import Complaint, Judge, quotes_in_source


class Answer(pydantic.BaseModel):
    quote: str


def is_short(answer: Answer) -> str | None:
    return "too long" if len(answer.quote) > 100 else None


def in_euro(answer: Answer) -> Complaint | None:
    return Complaint("in dollars", fields=("quote",)) if "$" in answer.quote else None


@tool(irreversible=True)
def send(text: str) -> str:
    """Send it."""
    return text


assert_type(send, Tool)

with DAG("typed"):
    ask = ClaudeOperator(
        task_id="ask",
        prompt="?",
        output_type=Answer,
        validators=[is_short, in_euro, quotes_in_source("quote"), Judge(criteria=["polite"])],
        tools=[send],
        model=["fast", "strong"],
    )
    ApprovalSensor(
        task_id="approve",
        subject="Send?",
        content=ask.output,
        when=[BelowConfidence(0.8)],
        reviewers=Reviewers(timeout=timedelta(hours=1)),
    )
    LLMBranchOperator(task_id="route", prompt="Where to?", votes=3)
    ValidationRepairOperator(task_id="repair", answer=ask.output, output_type=Answer)
    ClaudeDocumentsOperator(task_id="read", documents="/in", prompt="?", output="/out.jsonl", max_failed=0.1)

ClaudeOperator(task_id="ask", prompt=1)  # type: ignore[arg-type]
ClaudeOperator(task_id="ask", prompt="?", reuse="sometimes")  # type: ignore[arg-type]
Complaint()  # type: ignore[call-arg]


async def engine(engine: Engine, request: Request) -> None:
    assert_type(await engine.ask(request, scope=CallScope()), Reply)


def hook() -> None:
    async def work(engine: Engine) -> int:
        return 1

    assert_type(ClaudeHook().run(work), int)
