"""What a DAG author writes, as a type checker sees it; test_typing.py runs mypy over this file."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, assert_type

import pydantic
from airflow.sdk import DAG
from anthropic import Anthropic

from airflow_llm_provider import (
    ApprovalSensor,
    Budget,
    ClaudeDocumentsOperator,
    ClaudeHook,
    ClaudeOperator,
    Complaint,
    Judge,
    LLMBranchOperator,
    LLMError,
    OnInvalid,
    Reading,
    RequestFields,
    Reviewers,
    Route,
    ValidationRepairOperator,
    tool,
)
from airflow_llm_provider.engine.engine import Engine
from airflow_llm_provider.engine.reply import Reply
from airflow_llm_provider.engine.request import Request
from airflow_llm_provider.engine.terms import Terms
from airflow_llm_provider.sensors.conditions import BelowConfidence
from airflow_llm_provider.tools import Tool
from airflow_llm_provider.validators import quotes_in_source


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
        route=["fast", Route(models=["strong"]).models[0]],
        budget=2.50,
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
    ClaudeDocumentsOperator(
        task_id="read", documents="/in", prompt="?", output="/out.jsonl", max_failed="10%"
    )

ClaudeOperator(task_id="ask", prompt=1)  # type: ignore[arg-type]
ClaudeOperator(task_id="ask", prompt="?", reuse="sometimes")  # type: ignore[arg-type]
Complaint()  # type: ignore[call-arg]


ClaudeOperator(task_id="ask", prompt="?", budget=Budget(task_eur=1))  # type: ignore[call-arg]
ClaudeOperator(task_id="ask", prompt="?", request={"max_tokens": 5})  # type: ignore[arg-type]
Reading(pdf="ocr")  # type: ignore[arg-type]
OnInvalid(then="review")  # type: ignore[arg-type]


async def engine(engine: Engine, request: Request, terms: Terms) -> None:
    assert_type(await engine.ask(request, terms), Reply[Any])


def hook(hook: ClaudeHook, rows: list[str]) -> None:
    text = hook.ask("?", inputs={"letter": "…"}, model="fast", budget=1)
    assert_type(text, Reply[str])
    assert_type(text.value, str)
    answer = hook.ask("?", output_type=Answer, request=RequestFields(max_tokens=100))
    assert_type(answer.value, Answer)
    assert_type(hook.ask("?", output_type={"type": "object"}).value, Any)
    for outcome in hook.map(rows, "?", output_type=Answer):
        if isinstance(outcome, LLMError):
            assert_type(outcome, LLMError)
        else:
            assert_type(outcome.value, Answer)
    for said in hook.map(rows, "?", route=["fast", "strong"]):
        assert_type(said, Reply[str] | LLMError)
    hook.ask("?", modle="fast")  # type: ignore[call-overload]
    hook.ask(1)  # type: ignore[call-overload]

    async def work() -> int:
        return 1

    assert_type(hook.run(work(), None), int)
    assert_type(hook.get_conn(), Anthropic)


async def session(hook: ClaudeHook, rows: list[str]) -> None:
    async with hook.session() as claude:
        assert_type((await claude.ask("?")).value, str)
        assert_type((await claude.ask("?", output_type=Answer)).value, Answer)
        first, second = await asyncio.gather(claude.ask("?", output_type=int), claude.ask("?"))
        assert_type(first.value, int)
        assert_type(second.value, str)
        async for outcome in claude.map(rows, "?", output_type=Answer):
            assert_type(outcome, Reply[Answer] | LLMError)
